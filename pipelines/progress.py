"""What a person sees while a verb works: bars on a terminal, one line a step elsewhere. All of it on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from monograph.errors import MonographError


class Progress:
    """The progress of one verb: stages one after another, each with a bar where its length is known."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self._bars = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[detail]}", style="dim"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            refresh_per_second=2,  # it runs beside measurements, and must not disturb them
            disable=quiet or not self.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._detail = ""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show that ``name`` is being done, and afterwards how long it took."""
        began = time.monotonic()
        self._detail = ""
        with self._bars:
            self._task = self._bars.add_task(name, total=None, detail="")
            try:
                yield
            except (MonographError, KeyboardInterrupt):
                self.console.print(f"[red]✗[/red] {name}")
                raise
            finally:
                self._bars.remove_task(self._task)
                self._task = None
        detail = f"  [dim]{self._detail}[/dim]" if self._detail else ""
        self.console.print(f"[green]✓[/green] {name:<32}{time.monotonic() - began:7.1f} s{detail}", soft_wrap=True)

    def skipped(self, name: str) -> None:
        """Show that ``name`` was done before."""
        self.console.print(f"[dim]· {name:<32}   done before[/dim]")

    def update(self, completed: int, total: int, detail: str) -> None:
        """Move the current stage's bar; ``detail`` stays beside its name when it is done."""
        self._detail = detail
        if self._task is not None:
            self._bars.update(self._task, completed=completed, total=total, detail=detail)

    def note(self, text: str) -> None:
        """Tell the user what was assumed or decided."""
        self.console.print(f"[yellow]note[/yellow] {text}", markup=True, soft_wrap=True)
