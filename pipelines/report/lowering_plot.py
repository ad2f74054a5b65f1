"""The figure of a lowered model's error: a layer a place, in order, its own error and that of all before it."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from monograph.export.lowering.explain import ExplainedLayer
from monograph.pipelines.report.axes import write_headings
from monograph.pipelines.report.formats import shortened
from monograph.pipelines.report.svg import ACCENT, FAINT, INK, MUTED, NARROW, Margins, add_axes, drawing, new_figure, to_svg

_DECADES = 6
"""Errors smaller than a millionth of the largest stand on the floor."""


def lowering_error_svg(layers: Sequence[ExplainedLayer], *, key: str, width: int) -> str:
    """Draw the relative error of each layer alone (stems) and of all so far (line), on a logarithmic scale.

    Raises ValueError where nothing differs.
    """
    top = max(max(layer.local.relative_error, layer.accumulated.relative_error) for layer in layers)
    if top <= 0:
        raise ValueError("no layer differs: leave the figure out")
    least = [e for layer in layers for e in (layer.local.relative_error, layer.accumulated.relative_error) if e > 0]
    floor = max(min(least), top / 10**_DECADES) / 2
    worst = max(range(len(layers)), key=lambda index: layers[index].local.relative_error)
    with drawing(key):
        figure = new_figure(width, 330 if width >= NARROW else 290)
        axes = add_axes(figure, Margins(60, 16, 34, 46))
        axes.set_yscale("log")
        axes.set_ylim(floor, top * 3)
        axes.set_xlim(0.4, len(layers) + 0.6)
        axes.yaxis.set_major_locator(LogLocator(numticks=8))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
        axes.xaxis.set_major_locator(MaxNLocator(8 if width >= NARROW else 5, integer=True))
        axes.grid(axis="y")
        write_headings(axes, "Error, share of the float values", "Layer, in the order of the graph")
        places = range(1, len(layers) + 1)
        together = [max(layer.accumulated.relative_error, floor) for layer in layers]
        axes.plot(places, together, color=INK, linewidth=1.6, zorder=2)
        tooltips = {}
        for place, layer in zip(places, layers, strict=True):
            is_worst = place == worst + 1
            height = max(layer.local.relative_error, floor)
            colour = ACCENT if is_worst else MUTED
            axes.plot(
                [place, place], [floor, height], color=colour if is_worst else FAINT, linewidth=2 if is_worst else 1, zorder=1
            )
            gid = f"tip-{place}"
            axes.plot([place], [height], "o", color=colour, markersize=7 if is_worst else 4, zorder=4, gid=gid, clip_on=False)
            tooltips[gid] = (
                f"{layer.node} ({layer.operator}): alone {layer.local.relative_error:.3%}, "
                f"together {layer.accumulated.relative_error:.3%}"
            )
        is_left = worst + 1 > len(layers) / 2
        axes.annotate(
            shortened(layers[worst].node, 40 if width >= NARROW else 24),
            (worst + 1, layers[worst].local.relative_error), xytext=(-9 if is_left else 9, 9), textcoords="offset points",
            ha="right" if is_left else "left", color=ACCENT, fontweight="bold",
        )  # fmt: skip
        told = f"largest at {layers[worst].node}, {layers[worst].local.relative_error:.2%} alone"
        return to_svg(figure, key=key, description=f"Error of {len(layers)} layers, {told}", tooltips=tooltips)
