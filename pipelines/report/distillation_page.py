"""The page of ``monograph distill``: what the student keeps of its teachers, at what cost, and how it learned."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import monograph
from monograph.models.files import write_atomically
from monograph.pipelines.report import distillation_view, view
from monograph.pipelines.report.model import by_target
from monograph.pipelines.report.page import render_page, two_sizes
from monograph.pipelines.report.plots import latency_distribution_svg
from monograph.pipelines.report.sections import page_sections
from monograph.pipelines.report.trade_plot import trade_svg
from monograph.pipelines.report.training_plot import training_svg

if TYPE_CHECKING:
    from monograph.pipelines.distill import Distilled, Recipe
    from monograph.pipelines.report.page import Plot
    from monograph.pipelines.training import TrainingSettings


def write_distillation_page(
    distilled: Distilled, path: Path, recipe: Recipe | None = None, settings: TrainingSettings | None = None
) -> None:
    """Write one HTML file that needs nothing else, beside ``path`` first and renamed when complete.

    Args:
        distilled: what came of it.
        path: where to write.
        recipe: the loss and its options, where the page is to tell them.
        settings: of the training, likewise.

    Raises:
        ConfigError: ``path`` cannot be written to.
    """
    created = datetime.now(UTC).isoformat(timespec="seconds")
    with write_atomically(path) as staged:
        staged.write_text(render_distillation(distilled, created, recipe, settings), encoding="utf-8")


def render_distillation(
    distilled: Distilled, created: str, recipe: Recipe | None = None, settings: TrainingSettings | None = None
) -> str:
    """Return the whole page, ``created`` at an ISO 8601 time; the same arguments give the same text."""
    contenders = distillation_view.contenders(distilled)
    rows = distillation_view.standing_rows(distilled)
    grids = (distillation_view.fidelity_grid(distilled), distillation_view.speed_grid(distilled))
    content = {
        "title": f"Distillation of {' + '.join(one.name for one in distilled.teachers)}",
        "created": created,
        "version": monograph.__version__,
        "headline": distillation_view.headline(distilled),
        "findings": distillation_view.findings(distilled),
        "tiles": distillation_view.tiles(distilled),
        "warnings": view.warnings_by_text(contenders),
        "record": view.record_json(distilled),
        "distilled": distilled,
        "rows": rows,
        "top1_spans": view.top1_spans([row.standing.accuracy for row in rows]),
        "trade": _trade(distilled),
        "fidelity": grids[0],
        "speed": grids[1],
        "training": two_sizes(training_svg, [distillation_view.curve(distilled)], "training"),
        "learned": _learned(distilled, recipe, settings),
        "contenders": contenders,
        "distributions": _distributions(distilled),
        "sections": page_sections(distilled.measurements),
        "machines": view.machines(contenders),
        "notes": (*distilled.notes, *dict.fromkeys(note for one in distilled.measurements for note in one.assumed)),
    }
    return render_page("distillation.html.j2", content)


def _trade(distilled: Distilled) -> tuple[Plot, str] | None:
    """Draw accuracy over the first cost that is known of all, and name it; None where there is nothing to compare."""
    cost = distillation_view.shared_cost(distilled)
    if cost is None:
        return None
    points = distillation_view.trade_points(distillation_view.standing_rows(distilled), cost)
    if len({one.role for one in points}) < 2:
        return None
    return two_sizes(partial(trade_svg, over=cost.name, label=cost.label), points, "trade"), cost.name


def _distributions(distilled: Distilled) -> dict[str, Plot]:
    """Draw the calls of all that was timed, by target."""
    drawn = {}
    for index, (target, group) in enumerate(by_target(distillation_view.contenders(distilled)).items()):
        if any(one.latency and one.latency.samples_ns for one in group):
            drawn[target] = two_sizes(latency_distribution_svg, group, f"distribution{index}")
    return drawn


def _learned(distilled: Distilled, recipe: Recipe | None, settings: TrainingSettings | None) -> list[tuple[str, str]]:
    """Return how the student learned, as names and values."""
    from monograph.pipelines.losses import LOSSES, options_for

    loss, training = LOSSES[distilled.loss], distilled.training
    told = [("loss", f"{loss.title} ({loss.name})"), ("source of the loss", loss.source)]
    if recipe is not None:
        options = options_for(loss, recipe.options)
        told += [(name.replace("_", " "), f"{getattr(options, name):g}") for name in (*loss.reads, "hard_weight")]
        told += distillation_view.told(recipe, "loss", "options")
    told.append(("epochs", f"{len(training.epochs)}, of which number {training.best_epoch + 1} was kept"))
    return told + ([] if settings is None else distillation_view.told(settings, "epochs"))
