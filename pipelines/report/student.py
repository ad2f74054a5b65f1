"""What a run's report tells of the student: beside the fused graph, in float and in 8 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monograph.pipelines.report import distillation_view
from monograph.pipelines.report.formats import MISSING, count_text, percent, size_text
from monograph.pipelines.report.grid import Grid
from monograph.pipelines.report.model import StudentSummary

if TYPE_CHECKING:
    from monograph.pipelines.distill import Distilled, Standing
    from monograph.pipelines.distill.quantize import Quantized


def student_summary(distilled: Distilled) -> StudentSummary:
    """Return what came of a distillation from the fused graph."""
    teacher, own, small = distilled.teachers[0], distilled.student, distilled.quantized
    fidelity = distillation_view.fidelity_grid(distilled)
    grids = [_standing_grid(distilled), *([fidelity] if fidelity else []), *([_quantized_grid(small)] if small else [])]
    return StudentSummary(
        name=own.name,
        sentence=distillation_view.headline(distilled).replace("The student", f"The student {own.name}"),
        loss=distilled.loss,
        retention=distilled.retention,
        macs=own.macs,
        teacher_macs=teacher.macs,
        parameter_count=own.parameter_count,
        grids=tuple(grids),
        notes=(*distilled.notes, *(() if small is None else (*_news(small), small.describe()))),
    )


def _news(small: Quantized) -> list[str]:
    """Return what the table of ways to 8 bits does not tell."""
    return [note for note in small.notes if note not in [trial.describe() for trial in small.trials]]


def _standing_grid(distilled: Distilled) -> Grid:
    teacher, own = distilled.teachers[0], distilled.student
    share = "" if not (own.macs and teacher.macs) else f"{100 * own.macs / teacher.macs:.2g}%"
    kept = MISSING if distilled.retention is None else f"{distilled.retention:.1%}"
    rows = ((*_figures(teacher), MISSING, MISSING), (*_figures(own), share or MISSING, kept))
    headings = ("model", "top-1 %", "MACs", "weights", "size", "of MACs", "kept")
    return Grid(
        "the student beside its teacher",
        headings,
        rows,
        f"on {distillation_view.rows_text(distilled)}; kept: of the fused graph's top-1",
    )


def _figures(one: Standing) -> tuple[str, ...]:
    return (
        one.name,
        str(percent(one.accuracy.top1)) if one.accuracy else MISSING,
        MISSING if one.macs is None else count_text(one.macs),
        MISSING if one.parameter_count is None else count_text(one.parameter_count),
        size_text(one.size_bytes),
    )


def _quantized_grid(small: Quantized) -> Grid:
    rows = tuple(
        (
            f"{trial.mode}{' (kept)' if small.path is not None and trial == small.chosen else ''}",
            str(percent(trial.accuracy.top1)) if trial.accuracy else MISSING,
            f"{trial.loss_points:.2f}",
            size_text(trial.weight_bytes),
            size_text(trial.size_bytes),
        )
        for trial in small.trials
    )
    note = f"on validation rows; {small.largest_loss_points:g} points may be lost"
    return Grid("in 8 bits", ("way", "top-1 %", "points lost", "weights", "size"), rows, note)
