"""Figures of latency and throughput, each one function from contenders to inline SVG.

All take ``width`` in pixels; below ``NARROW`` they draw for a phone: less margin, shorter names. Only contenders
on one target, whose times were measured on real hardware, belong in one figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from monograph.pipelines.report.axes import (
    ROLE_COLOURS,
    SHORTEST_MS,
    WIDE_SPREAD,
    batch_label,
    pixels,
    scale_cost,
    time_ms,
    write_headings,
)
from monograph.pipelines.report.formats import milliseconds, shortened, significant
from monograph.pipelines.report.labels import spread_apart
from monograph.pipelines.report.model import MAIN_ROLES, Contender
from monograph.pipelines.report.svg import (
    FAINT,
    FONT_SIZE,
    MUTED,
    NARROW,
    PAPER,
    RULE,
    Margins,
    add_axes,
    drawing,
    new_figure,
    text_size,
    to_svg,
)
from monograph.runtime.results import Throughput

Array = npt.NDArray[Any]

_MOST_TIMES_P90 = 5.0
"""The axis of the distributions ends at this many times the largest p90."""
_BIN_PX = 3
"""Width of a bin of the latency histograms, in pixels."""
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 2)), (0, (6, 2, 1.5, 2)))
_MARKERS = ("o", "s", "^", "D", "v")


def latency_distribution_svg(contenders: Sequence[Contender], *, key: str, width: int) -> str:
    """Draw where the raw samples of each contender lie: a histogram with ticks at p50, p90 and p99, the slowest as dots.

    Raises ValueError where nothing was timed.
    """
    timed = [one for one in contenders if one.latency and one.latency.samples_ns]
    if not timed:
        raise ValueError("no contender has latency samples: leave the figure out")
    with drawing(key):
        row_height = 62
        figure = new_figure(width, row_height * len(timed) + 50)
        axes = add_axes(figure, Margins(2, 14, 8, 42))
        samples = [np.maximum(np.asarray(one.latency.samples_ns) / 1e6, SHORTEST_MS) for one in timed if one.latency]
        low, high = min(float(each.min()) for each in samples), _end_of_axis(samples)
        scale_cost(axes, low, high, width, logarithmic=True)
        write_headings(axes, "", batch_label("Latency of one call", contenders))
        axes.spines["left"].set_visible(False)
        axes.set_yticks([])
        axes.set_ylim(0, len(timed))
        axes.grid(axis="x")
        for row, (one, milliseconds_each) in enumerate(zip(timed, samples, strict=True)):
            _draw_ridge(axes, one, milliseconds_each, base=len(timed) - 1 - row, width=width)
            _label_ridge(axes, one, milliseconds_each, base=len(timed) - 1 - row, width=width)
        names = ", ".join(f"{one.name} {milliseconds(one.latency.p50_s).value} ms" for one in timed if one.latency)
        return to_svg(figure, key=key, description=f"Latency distributions, medians: {names}")


def throughput_svg(contenders: Sequence[Contender], *, key: str, width: int) -> str:
    """Draw rows a second over the batch size, with its interval as a band.

    Raises ValueError where no throughput was measured.
    """
    measured = [one for one in contenders if one.throughput]
    if not measured:
        raise ValueError("no contender has a measured throughput: leave the figure out")
    with drawing(key):
        figure = new_figure(width, 340 if width >= NARROW else 300)
        names = [shortened(one.name, 24 if width >= NARROW else 18) for one in measured]
        room = max(text_size(figure, name)[0] for name in names)
        axes = add_axes(figure, Margins(52, room + 22, 30, 42))
        _scale_throughput(axes, [one for contender in measured for one in contender.throughput])
        write_headings(axes, "Rows a second", "Batch size, rows")
        axes.grid(axis="y")
        tooltips = {}
        for index, one in enumerate(measured):
            tooltips[f"tip-{index}"] = _draw_throughput(axes, one, f"tip-{index}", index)
        _label_line_ends(axes, measured, names)
        best = ", ".join(tooltips.values())
        return to_svg(figure, key=key, description=f"Throughput over batch size: {best}", tooltips=tooltips)


def _scale_throughput(axes: Axes, points: Sequence[Throughput]) -> None:
    """Set the batch sizes as ticks and the rate axis: logarithmic where the values spread widely, else from zero."""
    rates, sizes = [one.rows_per_s.estimate for one in points], sorted({one.batch_size for one in points})
    if min(rates) > 0 and max(rates) / min(rates) >= WIDE_SPREAD:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, 1.08 * max(rates))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(sizes[0] / 1.1, sizes[-1] * 1.1)


def _end_of_axis(samples_ms: Sequence[Array]) -> float:
    """The slowest call, unless a few stragglers would squeeze all else into a corner."""
    slowest = max(float(each.max()) for each in samples_ms)
    return min(slowest, _MOST_TIMES_P90 * max(float(np.quantile(each, 0.9)) for each in samples_ms))


def _draw_ridge(axes: Axes, one: Contender, samples_ms: Array, *, base: float, width: int) -> None:
    """Draw one row of the distribution figure; ``base`` is the y of its ground line, its height is 1."""
    assert one.latency is not None
    colour, latency = ROLE_COLOURS[one.role], one.latency
    low, high = axes.get_xlim()
    counts, edges = np.histogram(samples_ms, bins=np.geomspace(low, high, width // _BIN_PX + 1))
    used = np.flatnonzero(counts)
    heights = base + 0.52 * counts[used[0] : used[-1] + 1] / counts.max()
    alpha = 0.42 if one.role in MAIN_ROLES else 0.3
    axes.stairs(heights, edges[used[0] : used[-1] + 2], baseline=base, fill=True, color=colour, alpha=alpha, linewidth=0)
    axes.plot([low, high], [base, base], color=RULE, linewidth=1, zorder=1)
    for interval, tall in ((latency.p50_s, 0.6), (latency.p90_s, 0.34), (latency.p99_s, 0.34)):
        if interval is not None and time_ms(interval.estimate) <= high:
            x = time_ms(interval.estimate)
            axes.plot([x, x], [base, base + tall], color=colour, linewidth=1.8 if tall > 0.5 else 1.2)
    slowest = samples_ms[(samples_ms > np.quantile(samples_ms, 0.99)) & (samples_ms <= high)]
    # One dot a pixel: more would only make the file larger.
    pixels = np.unique(np.round(width * np.log(slowest / low) / np.log(high / low)))
    dots = low * (high / low) ** (pixels / width)
    axes.plot(dots, np.full(dots.shape, base + 0.07), ".", color=colour, markersize=4, alpha=0.6)


def _label_ridge(axes: Axes, one: Contender, samples_ms: Array, *, base: float, width: int) -> None:
    """Write the name of a row, its figures, and how many calls lie beyond the end of the axis."""
    assert one.latency is not None
    narrow, across = width < NARROW, axes.get_yaxis_transform()
    name = shortened(one.name, 24 if narrow else 40)
    weight = "bold" if one.role in MAIN_ROLES else "normal"
    axes.text(0, base + 0.76, name, transform=across, color=ROLE_COLOURS[one.role], fontweight=weight, va="center")
    figures = f"p50 {milliseconds(one.latency.p50_s).value}"
    if not narrow:
        p99 = f", p99 {milliseconds(one.latency.p99_s).value}" if one.latency.p99_s else ""
        figures += f"{p99}, slowest of {len(samples_ms):,} calls {significant(float(samples_ms.max()))}"
    axes.text(1, base + 0.76, f"{figures} ms", transform=across, color=MUTED, ha="right", va="center", fontsize=11)
    beyond = int(np.count_nonzero(samples_ms > axes.get_xlim()[1]))
    if beyond:
        axes.text(1, base + 0.46, f"{beyond:,} beyond →", transform=across, color=MUTED, ha="right", va="center", fontsize=10)


def _draw_throughput(axes: Axes, one: Contender, gid: str, index: int) -> str:
    points = sorted(one.throughput, key=lambda point: point.batch_size)
    sizes = [point.batch_size for point in points]
    colour = ROLE_COLOURS[one.role]
    axes.fill_between(
        sizes, [p.rows_per_s.low for p in points], [p.rows_per_s.high for p in points], color=colour, alpha=0.15, linewidth=0
    )
    fused = one.role in MAIN_ROLES
    axes.plot(
        sizes, [p.rows_per_s.estimate for p in points], color=colour, gid=gid, zorder=4 if fused else 3,
        linewidth=2.4 if fused else 1.4, linestyle="-" if fused else _DASHES[index % len(_DASHES)],
        marker=_MARKERS[index % len(_MARKERS)], markersize=6 if fused else 5,
        markerfacecolor=PAPER if one.role == "baseline" else colour, markeredgewidth=1.3,
    )  # fmt: skip
    best = max(points, key=lambda point: point.rows_per_s.estimate)
    return f"{one.name}: up to {significant(best.rows_per_s.estimate)} rows/s at batch {best.batch_size}"


def _label_line_ends(axes: Axes, contenders: Sequence[Contender], names: Sequence[str]) -> None:
    """Write each name right of the axes at the height of its line's end, moved apart where two ends are close."""
    axes.autoscale_view()
    ends = [max(one.throughput, key=lambda point: point.batch_size) for one in contenders]
    heights = [pixels(axes, end.batch_size, end.rows_per_s.estimate) for end in ends]
    placed = spread_apart([y for _, y in heights], FONT_SIZE + 4, axes.bbox.y0 + 6, axes.bbox.y1)
    inverse = axes.transData.inverted()
    for one, name, (x, y), height in zip(contenders, names, heights, placed, strict=True):
        line = inverse.transform([(x + 7, y), (axes.bbox.x1 + 10, height)])
        axes.plot(line[:, 0], line[:, 1], color=FAINT, linewidth=0.8, clip_on=False)
        weight = "bold" if one.role in MAIN_ROLES else "normal"
        text_x, text_y = inverse.transform((axes.bbox.x1 + 13, height))
        axes.text(text_x, text_y, name, color=ROLE_COLOURS[one.role], fontweight=weight, va="center_baseline", clip_on=False)
