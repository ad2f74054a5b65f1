"""An adaptation as tables: beside its baselines, the candidates that were tried, the means of weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table

from monograph.pipelines.report.formats import MISSING, duration_text, percent, significant
from monograph.pipelines.report.grid import Grid, grid_table
from monograph.pipelines.report.scorecard import score_text

if TYPE_CHECKING:
    from monograph.pipelines.adapt import Adapted, Standing


def adaptation_tables(adapted: Adapted) -> Iterator[Table]:
    """Yield the tables for a terminal; the record has more."""
    yield from map(grid_table, adaptation_grids(adapted))
    timed = tuple(
        (one.target, significant(one.latency.p50_s.estimate * 1e3) if one.latency else one.evidence.value)
        for one in adapted.measurements
    )
    if timed:
        yield grid_table(Grid("latency of a row", ("target", "p50 ms"), timed))


def adaptation_grids(adapted: Adapted) -> list[Grid]:
    """Return the tables of what was reached, and of what was tried for it."""
    return [standing_grid(adapted), *_trial_grid(adapted), *_mix_grid(adapted)]


def standing_grid(adapted: Adapted) -> Grid:
    """Set the adapted model above its baselines, the best of them first."""
    others = sorted(adapted.baselines, key=lambda one: -one.quality)
    standings = (adapted.model, *others)
    title = f"{adapted.model.name} by {adapted.method} and its baselines"
    note = f"on {adapted.row_counts['test']:,} test rows; {adapted.verdict()}"
    if adapted.model.accuracy is not None:
        headings = ("model", "top-1 %", "macro F1 %", "NLL", "ECE %")
        return Grid(title, headings, tuple(map(_accuracy_row, standings)), note)
    names = tuple(adapted.model.scorecard.scores)
    rows = tuple((one.name, *(score_text(one.scorecard.scores[name]) for name in names)) for one in standings)
    return Grid(title, ("model", *names), rows, note)


def _accuracy_row(one: Standing) -> tuple[str, ...]:
    accuracy = one.accuracy
    if accuracy is None:
        return (one.name, *[MISSING] * 4)
    figures = percent(accuracy.top1)
    return (
        one.name,
        f"{figures.value} {figures.bounds}",
        f"{100 * accuracy.macro_f1:.1f}",
        significant(accuracy.nll),
        f"{100 * accuracy.ece:.2f}",
    )


def _trial_grid(adapted: Adapted) -> Iterator[Grid]:
    if not adapted.trials:
        return
    rows = tuple(
        (
            one.method,
            ", ".join(f"{name} {value:g}" for name, value in one.settings.items()) or MISSING,
            MISSING if one.validation is None else significant(one.validation, 4),
            str(one.epochs) if one.epochs else MISSING,
            duration_text(one.seconds),
            one.state,
        )
        for one in adapted.trials
    )
    headings = ("method", "settings", "validation", "epochs", "took", "what became of it")
    note = f"validation: {adapted.quality} on validation rows; candidates are stopped by successive halving (arXiv 1810.05934)"
    yield Grid("what was tried", headings, rows, note, words=("settings", "what became of it"))


def _mix_grid(adapted: Adapted) -> Iterator[Grid]:
    if not adapted.mixes:
        return
    rows = tuple(
        (
            f"{one.share:.1f}",
            significant(one.validation, 4),
            MISSING if one.shifted is None else significant(one.shifted, 4),
        )
        for one in adapted.mixes
    )
    headings = ("share of the new weights", "validation", "shifted rows")
    yield Grid("means of the weights before and after", headings, rows, f"{adapted.quality}; chosen by validation alone")
