"""The figure of how models learned: small multiples on common scales."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from monograph.pipelines.report.formats import shortened
from monograph.pipelines.report.model import TrainingCurve
from monograph.pipelines.report.svg import ACCENT, INK, MUTED, NARROW, Margins, add_axes, drawing, new_figure, to_svg

_MOST_COLUMNS, _MOST_NARROW_COLUMNS = 4, 2
_PANEL_HEIGHT, _LEFT, _RIGHT, _ABOVE, _BELOW = 118, 40, 12, 42, 40
"""Of one panel and the room around it, in pixels."""
_DASHED = (0, (4, 2.5))


@dataclass(frozen=True)
class _Panel:
    """One pair of axes: what a model's epochs gave, in the unit of the heading."""

    heading: str
    solid: tuple[float, ...] = ()
    dashed: tuple[float, ...] = ()
    is_share: bool = False


def training_svg(curves: Sequence[TrainingCurve], *, key: str, width: int) -> str:
    """Draw loss and validation top-1 (%) over the epochs, the panels of a model below or beside each other.

    The epoch whose weights were kept is marked where it is told. Raises ValueError where there is no curve.
    """
    drawn = [one for one in curves if one.train_loss or one.validation_loss or one.validation_top1]
    if not drawn:
        raise ValueError("no training curve has values: leave the figure out")
    models = _panels(drawn)
    limits = [_limits([panels[kind] for panels in models]) for kind in range(len(models[0]))]
    kinds, narrow = len(limits), width < NARROW
    beside = kinds <= _MOST_NARROW_COLUMNS if narrow else len(drawn) == 1
    columns = kinds if beside else 1 if narrow else min(len(drawn), _MOST_COLUMNS)
    rows = len(drawn) if beside else kinds * -(-len(drawn) // columns)
    with drawing(key):
        figure = new_figure(width, rows * (_PANEL_HEIGHT + _ABOVE + _BELOW))
        for index, (curve, panels) in enumerate(zip(drawn, models, strict=True)):
            row, column = divmod(index, columns)
            for kind, panel in enumerate(panels):
                place = (index, kind) if beside else (kinds * row + kind, column)
                axes = _add_panel(figure, *place, rows, columns, epochs=max(len(panel.solid), len(panel.dashed)))
                _draw(axes, panel, limits[kind], curve.kept_epoch)
                if kind == 0:
                    room = width if beside else width / columns
                    _heading(axes, shortened(curve.name, int((room - _LEFT - _RIGHT) / 9)), 23, bold=True)
        names = ", ".join(f"{one.name}{_kept_text(one)}" for one in drawn)
        return to_svg(figure, key=key, description=f"Training curves of {names}")


def _panels(curves: Sequence[TrainingCurve]) -> list[list[_Panel]]:
    """Return the panels of each model, as many for each: losses together or apart, then top-1 where any model has it."""
    apart = any(one.minimised for one in curves)
    has_top1 = any(_finite(one.validation_top1) for one in curves)
    models = []
    for one in curves:
        unit = one.validation_unit
        if apart:
            panels = [_Panel(f"Training loss, {one.minimised or unit}", one.train_loss)]
            panels.append(_Panel(f"Validation loss, {unit}", one.validation_loss))
        else:
            panels = [_Panel(f"Loss, {unit}", one.validation_loss, one.train_loss)]
        if has_top1:
            panels.append(_Panel("Validation top-1, %", tuple(100 * value for value in one.validation_top1), is_share=True))
        models.append(panels)
    return models


def _limits(panels: Sequence[_Panel]) -> tuple[float, float]:
    """Return the ends of the scale that panels of one kind share: losses start at 0, shares end at 100."""
    values = _finite(value for one in panels for value in (*one.solid, *one.dashed))
    if panels[0].is_share:
        floor = min(values, default=100.0)
        room = 0.06 * max(100 - floor, 1.0)
        return floor - room, 100 + room
    return 0, 1.05 * max(values, default=0.0) or 1.0


def _add_panel(figure: Figure, row: int, column: int, rows: int, columns: int, *, epochs: int) -> Axes:
    cell = figure.get_figwidth() * 72 / columns
    height = _PANEL_HEIGHT + _ABOVE + _BELOW
    left, right = column * cell + _LEFT, (columns - 1 - column) * cell + _RIGHT
    axes = add_axes(figure, Margins(left, right, row * height + _ABOVE, (rows - 1 - row) * height + _BELOW))
    axes.grid(axis="y")
    axes.set_xlim(0.5, max(epochs, 1) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("Epoch", loc="right", fontsize=11)
    return axes


def _draw(axes: Axes, panel: _Panel, limits: tuple[float, float], kept_epoch: int | None) -> None:
    axes.set_ylim(*limits)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    if kept_epoch is not None:
        axes.axvline(kept_epoch + 1, color=ACCENT, linewidth=1, zorder=1)
    for values, colour, style in ((panel.dashed, MUTED, _DASHED), (panel.solid, INK, "-")):
        if values:
            marker = "o" if len(values) == 1 else ""
            epochs = range(1, len(values) + 1)
            axes.plot(epochs, values, color=colour, linewidth=1.6, linestyle=style, marker=marker, markersize=5)
    if kept_epoch is not None and kept_epoch < len(panel.solid):
        axes.plot([kept_epoch + 1], [panel.solid[kept_epoch]], "o", color=ACCENT, markersize=7, zorder=4, clip_on=False)
    _heading(axes, panel.heading, 7)


def _heading(axes: Axes, text: str, above: float, *, bold: bool = False) -> None:
    axes.annotate(
        text, (0, 1), xycoords="axes fraction", xytext=(0, above), textcoords="offset points",
        color=INK if bold else MUTED, fontsize=12 if bold else 11, fontweight="bold" if bold else "normal",
    )  # fmt: skip


def _kept_text(curve: TrainingCurve) -> str:
    return "" if curve.kept_epoch is None else f", epoch {curve.kept_epoch + 1} kept"


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]
