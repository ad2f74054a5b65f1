"""The page of ``monograph adapt``: what the model reaches beside simple ones, how it learned, how fast it is."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import monograph
from monograph.models.files import write_atomically
from monograph.pipelines.report import view
from monograph.pipelines.report.adaptation_tables import adaptation_grids
from monograph.pipelines.report.formats import percent, significant
from monograph.pipelines.report.grid import Grid
from monograph.pipelines.report.model import Contender, TrainingCurve
from monograph.pipelines.report.page import render_page, two_sizes
from monograph.pipelines.report.plots import latency_distribution_svg
from monograph.pipelines.report.scorecard import score_text
from monograph.pipelines.report.sections import page_sections
from monograph.pipelines.report.training_plot import training_svg
from monograph.pipelines.report.view import Tile

if TYPE_CHECKING:
    from monograph.pipelines.adapt import Adapted

_OF_NUMBERS = ("regression", "rating")
"""Tasks whose loss is the squared error."""


def write_adaptation_page(adapted: Adapted, path: Path) -> None:
    """Write the page to ``path``."""
    page = render_adaptation_page(adapted)
    with write_atomically(path) as staged:
        staged.write_text(page, encoding="utf-8")


def render_adaptation_page(adapted: Adapted) -> str:
    """Return the page."""
    contenders = [Contender(adapted.model.name, "adapted", one) for one in adapted.measurements]
    curves = [_curve(adapted, index) for index in range(len(adapted.stages))]
    content = {
        "version": monograph.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "title": f"{adapted.model.name} adapted by {adapted.method}",
        "headline": _headline(adapted),
        "findings": (f"On {adapted.row_counts['test']:,} test rows it is {adapted.verdict()}.",),
        "tiles": _tiles(adapted),
        "warnings": view.warnings_by_text(contenders),
        "record": view.record_json(adapted),
        "adapted": adapted,
        "grids": [*adaptation_grids(adapted), *_class_grid(adapted)],
        "training": two_sizes(training_svg, curves, "training") if curves else None,
        "contenders": contenders,
        "distribution": _distribution(contenders),
        "sections": page_sections(adapted.measurements),
        "machines": view.machines(contenders),
        "notes": adapted.notes,
    }
    return render_page("adaptation.html.j2", content)


def _headline(adapted: Adapted) -> str:
    accuracy = adapted.model.accuracy
    if accuracy is not None:
        reached = f"reaches {percent(accuracy.top1).value}% top-1"
    else:
        name, score = next(iter(adapted.model.scorecard.scores.items()))
        reached = f"has {name} {score_text(score)}"
    beaten = "better than" if adapted.beats_baselines else "not shown to be better than"
    return f"{adapted.model.name} {reached}, {beaten} {adapted.best_baseline}."


def _tiles(adapted: Adapted) -> list[Tile]:
    made = []
    if adapted.model.accuracy is not None:
        top1 = percent(adapted.model.accuracy.top1)
        made.append(Tile("Top-1 accuracy", top1.value, "%", top1.bounds))
    share = adapted.quality.startswith(("top-1", "share"))
    factor, unit = (100, "points") if share else (1, "")
    gain = adapted.gain
    bounds = f"[{significant(factor * gain.low, 2)}, {significant(factor * gain.high, 2)}]; {adapted.best_baseline}"
    made.append(Tile("Over the best baseline", f"{factor * gain.estimate:+.2f}", unit, bounds))
    if adapted.temperature is not None:
        made.append(Tile("Temperature", f"{adapted.temperature:.2f}", "", "of validation rows, in the head's weights"))
    for one in adapted.measurements:
        if one.latency:
            made.append(Tile("Median latency", significant(one.latency.p50_s.estimate * 1e3), "ms", f"on {one.target}, batch 1"))
    return made


def _curve(adapted: Adapted, index: int) -> TrainingCurve:
    stage = adapted.stages[index]
    epochs = stage.training.epochs
    return TrainingCurve(
        name=stage.name,
        train_loss=tuple(epoch.train_loss for epoch in epochs),
        validation_loss=tuple(epoch.validation_loss for epoch in epochs),
        validation_top1=tuple(epoch.validation_top1 for epoch in epochs if epoch.validation_top1 == epoch.validation_top1),
        kept_epoch=stage.training.best_epoch,
        validation_unit="squared error" if adapted.task in _OF_NUMBERS else "nats",
    )


def _class_grid(adapted: Adapted) -> list[Grid]:
    classes = adapted.model.scorecard.classes
    if not classes or len(classes) > 30:
        return []
    names = tuple(classes[0].scores)
    rows = tuple((one.name, *(score_text(one.scores[name]) for name in names), f"{one.row_count:,}") for one in classes)
    return [Grid("each class", ("class", *names, "rows"), rows)]


def _distribution(contenders: list[Contender]) -> object | None:
    timed = [one for one in contenders if one.latency and one.latency.samples_ns]
    return two_sizes(latency_distribution_svg, timed, "distribution") if timed else None
