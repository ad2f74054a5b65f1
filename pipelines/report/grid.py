"""A table as text, for a terminal and for the page alike."""

from __future__ import annotations

from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

_LONGEST_UNBROKEN = 40


@dataclass(frozen=True)
class Grid:
    """The first column names things; the others are figures, unless they are named in ``words``."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    words: tuple[str, ...] = ()
    """Headings of columns that hold text, which reads from the left."""


@dataclass(frozen=True)
class Section:
    """Grids that belong together on the page."""

    key: str
    title: str
    lede: str
    grids: tuple[Grid, ...]


def grid_table(grid: Grid) -> Table:
    """Lay out ``grid`` for a terminal."""
    table = Table(
        title=Text(grid.title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1),
        collapse_padding=True,
        caption=Text(grid.note) if grid.note else None,
        caption_justify="left",
    )
    table.add_column(grid.headings[0], overflow="fold")
    for heading, *cells in zip(*(row[1:] for row in (grid.headings, *grid.rows)), strict=True):
        is_words = heading in grid.words
        # No figure is broken where room is short: sentences give way.
        is_long = is_words and any(len(cell) > _LONGEST_UNBROKEN for cell in cells)
        table.add_column(heading, justify="left" if is_words else "right", overflow="fold", no_wrap=not is_long)
    for row in grid.rows:
        # Text, not str: rich would read brackets in a name as markup.
        table.add_row(*map(Text, row))
    return table
