"""The page of ``monograph lower --explain``: which layer broke it, and what makes it slower."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import monograph
from monograph.models.files import write_atomically
from monograph.pipelines.explain import Explained
from monograph.pipelines.report import view
from monograph.pipelines.report.formats import significant
from monograph.pipelines.report.lowering_plot import lowering_error_svg
from monograph.pipelines.report.lowering_tables import explanation_grids
from monograph.pipelines.report.page import render_page, two_sizes
from monograph.pipelines.report.view import Machine, Tile


def write_lowering_page(explained: Explained, path: Path) -> None:
    """Write the page to ``path``."""
    page = render_lowering_page(explained)
    with write_atomically(path) as staged:
        staged.write_text(page, encoding="utf-8")


def render_lowering_page(explained: Explained) -> str:
    """Return the page."""
    explanation, speed = explained.explanation, explained.speed
    differs = any(layer.accumulated.relative_error > 0 for layer in explanation.layers)
    errors, *times = explanation_grids(explained, most=None)
    content = {
        "version": monograph.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "title": f"{explanation.lowered} beside {explanation.source}",
        "headline": _headline(explained),
        "findings": _findings(explained),
        "tiles": _tiles(explained),
        "warnings": {text: [explanation.lowered] for text in explained.warnings},
        "record": view.record_json(explained),
        "explained": explained,
        "plot": two_sizes(lowering_error_svg, explanation.layers, "errors") if differs else None,
        "errors": errors,
        "times": times,
        "machines": [] if speed is None else [Machine(speed.environment, "cpu")],
    }
    return render_page("lowering.html.j2", content)


def _headline(explained: Explained) -> str:
    worst = explained.explanation.broke
    if worst.local.relative_error == 0:
        return f"{explained.explanation.lowered} computes what its source does, layer by layer."
    return f"The error is largest at {worst.node}."


def _findings(explained: Explained) -> tuple[str, ...]:
    worst, last = explained.explanation.broke, explained.explanation.layers[-1]
    told = [] if explained.speed is None else [explained.speed.describe()]
    if worst.local.relative_error > 0:
        told.insert(
            0,
            f"With inputs in float, this {worst.operator} alone is off by {worst.local.relative_error:.2%} "
            f"({worst.local.sqnr_db:.1f} dB); at {last.tensor}, all together come to {last.accumulated.relative_error:.2%}",
        )
    return tuple(f"{text[0].upper()}{text[1:]}." for text in told)


def _tiles(explained: Explained) -> list[Tile]:
    explanation = explained.explanation
    worst, last = explanation.broke.local, explanation.layers[-1].accumulated
    made = [
        Tile("Largest error of a layer alone", significant(100 * worst.relative_error, 2), "%", explanation.broke.operator),
        Tile("All together", significant(100 * last.relative_error, 2), "%", f"at {explanation.layers[-1].tensor}"),
    ]
    if explained.speed is not None:
        found = explained.speed.ratio.ratio
        bounds = f"[{significant(found.low)}, {significant(found.high)}], batch {explained.speed.ratio.batch_size}"
        made.append(Tile("Time over the source's", significant(found.estimate), "×", bounds))
    return made
