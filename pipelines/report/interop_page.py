"""The page of ``monograph interop``: what to do with the models, then fusions and what explains them, then all the rest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monograph.models.files import write_atomically
from monograph.pipelines.report import interop_tables as tables
from monograph.pipelines.report import view
from monograph.pipelines.report.interop_plots import (
    Matrix,
    heatmap_svg,
    last_layers_matrix,
    layer_matrices,
    lesson_matrix,
    pair_matrices,
    trade_points,
)
from monograph.pipelines.report.page import Plot, render_page
from monograph.pipelines.report.trade_plot import trade_svg

if TYPE_CHECKING:
    from monograph.pipelines.interop import Interop

_WIDE_PX, _NARROW_PX = 960, 350


@dataclass(frozen=True)
class Heatmap:
    """A figure with its title and what its numbers are."""

    title: str
    note: str
    plot: Plot


def write_interop_page(study: Interop, path: Path) -> None:
    """Write the page to ``path``."""
    page = render_interop_page(study)
    with write_atomically(path) as staged:
        staged.write_text(page, encoding="utf-8")


def render_interop_page(study: Interop) -> str:
    """Return the page."""
    lesson, last = lesson_matrix(study), last_layers_matrix(study)
    content: dict[str, Any] = {
        "version": study.monograph,
        "created": study.created,
        "title": study.title,
        "headline": study.advice[0].text[0].upper() + study.advice[0].text[1:] + "."
        if study.advice
        else "Nothing can be joined.",
        "findings": (f"{study.advice[0].reason[0].upper()}{study.advice[0].reason[1:]}.",) if study.advice else (),
        "tiles": (),
        "warnings": {},
        "record": view.record_json(study),
        "study": study,
        "subjects": tables.subject_grid(study),
        "contacts": tables.contact_grid(study),
        "fusions": tables.fusion_grids(study),
        "others": tables.other_grids(study),
        "lessons": tables.lesson_grid(study) if study.lessons else None,
        "lesson_map": _heatmap(lesson, "lessons") if lesson else None,
        "transfers": tables.transfer_grid(study) if study.transfers else None,
        "stitches": tables.stitch_grid(study) if study.stitches else None,
        "pair_maps": [_heatmap(one, f"pair{number}") for number, one in enumerate(pair_matrices(study))],
        "last_map": _heatmap(last, "last") if last else None,
        "layer_maps": [_heatmap(one, f"cka{number}") for number, one in enumerate(layer_matrices(study))],
        "trade": _trade(study),
    }
    return render_page("interop.html.j2", content)


def _heatmap(matrix: Matrix, key: str) -> Heatmap:
    draw = partial(heatmap_svg, matrix)
    return Heatmap(matrix.title, matrix.note, Plot(draw(key=f"{key}w", width=_WIDE_PX), draw(key=f"{key}n", width=_NARROW_PX)))


def _trade(study: Interop) -> Plot | None:
    points = trade_points(study)
    if not points:
        return None
    draw = partial(trade_svg, points, over="multiply-accumulates", label="Multiply-accumulates a row, millions")
    return Plot(draw(key="tradew", width=_WIDE_PX), draw(key="traden", width=_NARROW_PX))
