"""Teachers and student side by side, as tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table

from monograph.pipelines.report.formats import MISSING, count_text, percent, significant, size_text
from monograph.pipelines.report.grid import Grid, grid_table

if TYPE_CHECKING:
    from monograph.pipelines.distill import Distilled, Standing


def distillation_tables(distilled: Distilled) -> Iterator[Table]:
    """Yield accuracy, fidelity and cost of all, then latency by target; the record has more."""
    headings = ("model", "top-1 %", "NLL", "agrees %", "MACs", "weights", "size")
    rows = tuple(_row(one) for one in (*distilled.teachers, distilled.student))
    kept = "" if distilled.retention is None else f"; the student keeps {distilled.retention:.1%} of the teachers' top-1"
    yield grid_table(Grid("teachers and student", headings, rows, f"on {distilled.test_rows}{kept}"))
    timed = tuple(
        (one.model, one.target, significant(one.latency.p50_s.estimate * 1e3) if one.latency else one.evidence.value)
        for one in distilled.measurements
    )
    if timed:
        yield grid_table(Grid("latency", ("model", "target", "p50 ms"), timed, words=("target",)))


def _row(one: Standing) -> tuple[str, ...]:
    accuracy = one.accuracy
    agrees = one.fidelity.top1_agreement if one.fidelity else None
    return (
        one.name,
        str(percent(accuracy.top1)) if accuracy else MISSING,
        significant(accuracy.nll) if accuracy else MISSING,
        f"{100 * agrees.estimate:.1f}" if agrees else MISSING,
        MISSING if one.macs is None else count_text(one.macs),
        MISSING if one.parameter_count is None else count_text(one.parameter_count),
        MISSING if one.size_bytes is None else size_text(one.size_bytes),
    )
