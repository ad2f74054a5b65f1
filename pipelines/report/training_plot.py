"""The figure of how the members learned: small multiples on common scales."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from monograph.pipelines.report.formats import shortened
from monograph.pipelines.report.model import TrainingCurve
from monograph.pipelines.report.svg import INK, MUTED, NARROW, Margins, add_axes, drawing, new_figure, to_svg

_MOST_COLUMNS = 4
_PANEL_HEIGHT, _LEFT, _RIGHT, _ABOVE, _BELOW = 118, 40, 12, 42, 40
"""Of one panel and the room around it, in pixels."""


def training_svg(curves: Sequence[TrainingCurve], *, key: str, width: int) -> str:
    """Draw loss (nats) and validation top-1 (%) over the epochs, the two panels of a model below or beside each other.

    Raises ValueError where there is no curve.
    """
    drawn = [one for one in curves if one.train_loss or one.validation_loss or one.validation_top1]
    if not drawn:
        raise ValueError("no training curve has values: leave the figure out")
    beside = width < NARROW or len(drawn) == 1
    columns = 2 if beside else min(len(drawn), _MOST_COLUMNS)
    rows = len(drawn) if beside else 2 * -(-len(drawn) // columns)
    losses = _finite(value for one in drawn for value in (*one.train_loss, *one.validation_loss))
    floor = 100 * min(_finite(value for one in drawn for value in one.validation_top1), default=1.0)
    with drawing(key):
        figure = new_figure(width, rows * (_PANEL_HEIGHT + _ABOVE + _BELOW))
        for index, curve in enumerate(drawn):
            row, column = divmod(index, columns)
            first, second = ((index, 0), (index, 1)) if beside else ((2 * row, column), (2 * row + 1, column))
            upper = _panel(figure, *first, rows, columns, epochs=max(len(curve.train_loss), len(curve.validation_loss)))
            _draw_losses(upper, curve, 1.05 * max(losses, default=0.0) or 1.0)
            room = width if beside else width / columns
            _heading(upper, shortened(curve.name, int((room - _LEFT - _RIGHT) / 9)), 23, bold=True)
            lower = _panel(figure, *second, rows, columns, epochs=len(curve.validation_top1))
            _draw_top1(lower, curve, floor)
        names = ", ".join(one.name for one in drawn)
        return to_svg(figure, key=key, description=f"Training curves of {names}")


def _panel(figure: Figure, row: int, column: int, rows: int, columns: int, *, epochs: int) -> Axes:
    cell = figure.get_figwidth() * 72 / columns
    height = _PANEL_HEIGHT + _ABOVE + _BELOW
    left, right = column * cell + _LEFT, (columns - 1 - column) * cell + _RIGHT
    axes = add_axes(figure, Margins(left, right, row * height + _ABOVE, (rows - 1 - row) * height + _BELOW))
    axes.grid(axis="y")
    axes.set_xlim(0.5, max(epochs, 1) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("Epoch", loc="right", fontsize=11)
    return axes


def _draw_losses(axes: Axes, curve: TrainingCurve, limit: float) -> None:
    axes.set_ylim(0, limit)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    _line(axes, curve.train_loss, MUTED, dashed=True)
    _line(axes, curve.validation_loss, INK, dashed=False)
    _heading(axes, "Loss, nats", 7)


def _draw_top1(axes: Axes, curve: TrainingCurve, floor: float) -> None:
    room = 0.06 * max(100 - floor, 1.0)
    axes.set_ylim(floor - room, 100 + room)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    _line(axes, [100 * value for value in curve.validation_top1], INK, dashed=False)
    _heading(axes, "Validation top-1, %", 7)


def _heading(axes: Axes, text: str, above: float, *, bold: bool = False) -> None:
    axes.annotate(
        text, (0, 1), xycoords="axes fraction", xytext=(0, above), textcoords="offset points",
        color=INK if bold else MUTED, fontsize=12 if bold else 11, fontweight="bold" if bold else "normal",
    )  # fmt: skip


def _line(axes: Axes, values: Sequence[float], colour: str, *, dashed: bool) -> None:
    if values:
        marker = "o" if len(values) == 1 else ""
        style = (0, (4, 2.5)) if dashed else "-"
        axes.plot(range(1, len(values) + 1), values, color=colour, linewidth=1.6, linestyle=style, marker=marker, markersize=5)


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]
