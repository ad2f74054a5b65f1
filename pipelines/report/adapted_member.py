"""What a run's report tells of an adapted member: beside what needs no adaptation, and how it learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monograph.pipelines.report.formats import MISSING, percent, significant
from monograph.pipelines.report.grid import Grid
from monograph.pipelines.report.model import AdaptationSummary

if TYPE_CHECKING:
    from monograph.pipelines.adapt import Adapted, Standing


def adaptation_summary(member: str, adapted: Adapted) -> AdaptationSummary:
    """Return what came of an adaptation."""
    rows = tuple(map(_row, (adapted.model, *adapted.baselines)))
    top1 = any(one.accuracy for one in (adapted.model, *adapted.baselines))
    headings = ("model", *(("top-1 %",) if top1 else ()), adapted.quality)
    cells = tuple((name, *((share,) if top1 else ()), quality) for name, share, quality in rows)
    grids = [Grid(f"{member}, {adapted.task}: beside simple models on features of the frozen trunk", headings, cells)]
    if adapted.trials:
        tried = tuple(
            (one.method, MISSING if one.validation is None else significant(one.validation, 4), f"{one.epochs}", one.state)
            for one in adapted.trials
        )
        grids.append(Grid(f"{member}: what was tried", ("method", "validation", "epochs", "state"), tried, words=("state",)))
    told = f"{member} by {adapted.method}: {adapted.verdict()}"
    return AdaptationSummary(member, adapted.method, told, tuple(grids), adapted.notes)


def _row(one: Standing) -> tuple[str, str, str]:
    return one.name, str(percent(one.accuracy.top1)) if one.accuracy else MISSING, significant(one.quality, 4)
