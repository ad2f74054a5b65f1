"""Metrics, slices and the parity matrix: as tables for a terminal, and as cells for the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from monograph.pipelines.report.formats import MISSING, scientific, significant
from monograph.runtime.results import Measurement, Score

_MOST_CLASSES_SHOWN = 30


@dataclass(frozen=True)
class Grid:
    """A table as text: the first column names things, the others are figures."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def grids(measurements: Sequence[Measurement]) -> Iterator[Grid]:
    """Yield what was scored beside the main figures of a classifier: all metrics, classes, slices, then the parity matrix."""
    for one in measurements:
        yield from _scorecard_grids(one)
    yield from _parity_grid(measurements)


def scorecard_tables(measurements: Sequence[Measurement]) -> Iterator[Table]:
    """Yield the same as tables for a terminal."""
    for grid in grids(measurements):
        table = Table(
            title=Text(grid.title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, caption=grid.note or None
        )
        table.add_column(grid.headings[0], overflow="fold")
        for heading in grid.headings[1:]:
            table.add_column(heading, justify="right", overflow="fold")
        for row in grid.rows:
            table.add_row(*map(Text, row))
        yield table


def _scorecard_grids(one: Measurement) -> Iterator[Grid]:
    card, where = one.scorecard, f"{one.model} on {one.target}"
    if card is None:
        return
    if card.task != "classification":
        yield Grid(f"{where}: {card.task}, {card.row_count:,} rows", ("metric", "value", "note"), _metric_rows(card.scores))
    if 0 < len(card.classes) <= _MOST_CLASSES_SHOWN:
        names = tuple(card.classes[0].scores)
        rows = tuple((each.name, *_cells(each.scores, names), f"{each.row_count:,}") for each in card.classes)
        yield Grid(f"{where}: each class", ("class", *names, "rows"), rows)
    for column in dict.fromkeys(each.column for each in card.slices):
        slices = [each for each in card.slices if each.column == column]
        names = tuple(dict.fromkeys(name for each in slices for name in each.scores))
        rows = tuple(
            (each.value, *_cells(each.scores, names), f"{each.row_count:,}{f' ({each.note})' if each.note else ''}")
            for each in slices
        )
        yield Grid(f"{where}: slices by {column}", (column, *names, "rows"), rows)


def _parity_grid(measurements: Sequence[Measurement]) -> Iterator[Grid]:
    rows = tuple(
        (
            f"{one.model} · {one.target} ({one.evidence.value})",
            each.reference,
            _error_text(each.max_abs_error),
            _error_text(each.relative_error),
            f"{each.cosine:.7f}",
            f"{100 * each.top1_agreement.estimate:.2f} %" if each.top1_agreement else MISSING,
            f"{each.row_count:,}",
        )
        for one in measurements
        for each in one.parity
    )
    if rows:
        headings = ("target", "against", "max abs error", "relative", "cosine", "same top-1", "rows")
        yield Grid("parity matrix", headings, rows, "relative: to the largest absolute output of the reference")


def _error_text(error: float | None) -> str:
    return "not finite" if error is None else scientific(error)


def _metric_rows(scores: Mapping[str, Score]) -> tuple[tuple[str, ...], ...]:
    return tuple((name, score_text(score), score.note or "") for name, score in scores.items())


def _cells(scores: Mapping[str, Score], names: Sequence[str]) -> list[str]:
    return [score_text(scores[name]) if name in scores else MISSING for name in names]


def score_text(score: Score) -> str:
    """Return ``0.912 [0.896, 0.925]``, or a dash where these rows have no figure."""
    if score.estimate is None:
        return MISSING
    if score.low is None or score.high is None:
        return significant(score.estimate)
    return f"{significant(score.estimate)} [{significant(score.low)}, {significant(score.high)}]"
