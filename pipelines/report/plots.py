"""The report's figures, each one function from contenders to inline SVG.

All take ``width`` in pixels; below ``NARROW`` they draw for a phone: less margin, shorter names. Only contenders
on one target, whose times were measured on real hardware, belong in one figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from monograph.pipelines.report.formats import milliseconds, percent, shortened, significant
from monograph.pipelines.report.labels import Box, place_labels, spread_apart
from monograph.pipelines.report.model import Contender
from monograph.pipelines.report.svg import (
    ACCENT,
    FAINT,
    FONT_SIZE,
    INK,
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

_WIDE_SPREAD = 4.0
"""A logarithmic axis is used where the largest value is at least this many times the smallest."""
_SHORTEST_MS = 1e-3
"""A browser's clock may be so coarse that a call took no time, which has no place on a logarithmic axis."""
_MOST_TIMES_P90 = 5.0
"""The axis of the distributions ends at this many times the largest p90."""
_BIN_PX = 3
"""Width of a bin of the latency histograms, in pixels."""
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 2)), (0, (6, 2, 1.5, 2)))
_MARKERS = ("o", "s", "^", "D", "v")


def accuracy_latency_svg(contenders: Sequence[Contender], *, key: str, width: int) -> str:
    """Draw top-1 (%) over the median latency of one call (ms), with both intervals and the Pareto front.

    A contender that was timed but not scored stands as a tick on the time axis. Raises ValueError where nothing was
    both timed and scored.
    """
    points = [one for one in contenders if one.latency and one.measurement.accuracy]
    unscored = [one for one in contenders if one.latency and not one.measurement.accuracy]
    if not points:
        raise ValueError("no contender has both accuracy and a measured latency: leave the figure out")
    with drawing(key):
        figure = new_figure(width, 380 if width >= NARROW else 320)
        axes = add_axes(figure, Margins(44, 14, 30, 42))
        times = [_time_ms(one.latency.p50_s.estimate) for one in [*points, *unscored] if one.latency]
        _scale_time(axes, min(times), max(times), width)
        _heading(axes, "Top-1, %", _batch_label("Median latency of one call", contenders))
        intervals = [one.measurement.accuracy.top1 for one in points if one.measurement.accuracy]
        shares = [bound for one in intervals for bound in (one.low, one.high)]
        room = 0.12 * (max(shares) - min(shares)) + 1e-3
        axes.set_ylim(100 * (min(shares) - room * (2.2 if unscored else 1)), 100 * min(max(shares) + room, 1.005))
        axes.grid(axis="y")
        _pareto_front(axes, points)
        tooltips = {}
        for index, one in enumerate([*points, *unscored]):
            tooltips[f"tip-{index}"] = _draw_point(axes, one, f"tip-{index}")
        _label_points(figure, axes, [*points, *unscored], width)
        names = ", ".join(tooltips.values())
        return to_svg(figure, key=key, description=f"Accuracy over latency: {names}", tooltips=tooltips)


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
        samples = [np.maximum(np.asarray(one.latency.samples_ns) / 1e6, _SHORTEST_MS) for one in timed if one.latency]
        low, high = min(float(each.min()) for each in samples), _end_of_axis(samples)
        _scale_time(axes, low, high, width, logarithmic=True)
        _heading(axes, "", _batch_label("Latency of one call", contenders))
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
        _heading(axes, "Rows a second", "Batch size, rows")
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
    if min(rates) > 0 and max(rates) / min(rates) >= _WIDE_SPREAD:
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


def _scale_time(axes: Axes, low: float, high: float, width: float, *, logarithmic: bool = False) -> None:
    """Set the time axis (ms): logarithmic where the values spread widely, with room at both ends."""
    if logarithmic or high / low >= _WIDE_SPREAD:
        pad = max((high / low) ** 0.08, 1.12)
        axes.set_xscale("log")
        axes.set_xlim(low / pad, high * pad)
        decades = np.log10(high / low)
        dense = decades < 1.2 and width >= NARROW
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if dense else (1, 2, 5) if decades < 3 else (1,)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        room = 0.15 * (high - low) or 0.2 * high
        axes.set_xlim(max(low - room, 0), high + room)
        axes.xaxis.set_major_locator(MaxNLocator(6 if width >= NARROW else 4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))


def _end_of_axis(samples_ms: Sequence[Array]) -> float:
    """The slowest call, unless a few stragglers would squeeze all else into a corner."""
    slowest = max(float(each.max()) for each in samples_ms)
    return min(slowest, _MOST_TIMES_P90 * max(float(np.quantile(each, 0.9)) for each in samples_ms))


def _time_ms(seconds: float) -> float:
    return max(1e3 * seconds, _SHORTEST_MS)


def _heading(axes: Axes, above: str, below: str) -> None:
    """Write the y label upright above its axis, where it can be read without turning the head, and the x label."""
    axes.annotate(
        above, (0, 1), xycoords="axes fraction", xytext=(-axes.bbox.x0 + 2, 14), textcoords="offset points", color=MUTED
    )
    axes.set_xlabel(below, loc="right")


def _batch_label(what: str, contenders: Sequence[Contender]) -> str:
    sizes = sorted({one.latency.batch_size for one in contenders if one.latency})
    return f"{what} at batch {' and '.join(str(size) for size in sizes)}, ms"


def _colour(contender: Contender) -> str:
    return {"fused": ACCENT, "member": INK, "baseline": MUTED}[contender.role]


def _pareto_front(axes: Axes, points: Sequence[Contender]) -> None:
    """Draw the staircase below which every contender is beaten in both accuracy and time."""
    pairs = sorted(
        (_time_ms(one.latency.p50_s.estimate), -100 * one.measurement.accuracy.top1.estimate)
        for one in points
        if one.latency and one.measurement.accuracy
    )
    bottom, right = axes.get_ylim()[0], axes.get_xlim()[1]
    xs, ys, best = [pairs[0][0]], [bottom], -np.inf
    for x, negative in pairs:
        if -negative > best:
            xs += [x, x]
            ys += [max(best, bottom), -negative]
            best = -negative
    axes.plot([*xs, right], [*ys, best], color=FAINT, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1, gid="pareto")


def _draw_point(axes: Axes, one: Contender, gid: str) -> str:
    """Draw a point with its intervals, or a tick where there is no accuracy; return its tooltip."""
    assert one.latency is not None
    colour, p50, accuracy = _colour(one), one.latency.p50_s, one.measurement.accuracy
    x = _time_ms(p50.estimate)
    shown = milliseconds(p50)
    if accuracy is None:
        axes.plot([x, x], [0, 0.035], transform=axes.get_xaxis_transform(), color=colour, linewidth=2, gid=gid, zorder=3)
        return f"{one.name}: {shown.value} ms {shown.bounds}, accuracy not measured"
    y, top1 = 100 * accuracy.top1.estimate, percent(accuracy.top1)
    axes.plot([x, x], [100 * accuracy.top1.low, 100 * accuracy.top1.high], color=colour, linewidth=1.2, zorder=2)
    axes.plot([_time_ms(p50.low), _time_ms(p50.high)], [y, y], color=colour, linewidth=1.2, zorder=2)
    fill = PAPER if one.role == "baseline" else colour
    size = 10 if one.role == "fused" else 7.5
    axes.plot([x], [y], "o", color=colour, markersize=size, markerfacecolor=fill, markeredgewidth=1.6, gid=gid, zorder=4)
    return f"{one.name}: {top1.value}% {top1.bounds} top-1, {shown.value} ms {shown.bounds}"


def _label_points(figure: Figure, axes: Axes, contenders: Sequence[Contender], width: int) -> None:
    """Write each name beside its point, and a thin line to it where there was no room nearby."""
    names = [shortened(one.name, 30 if width >= NARROW else 20) for one in contenders]
    sizes = [text_size(figure, name) for name in names]
    anchors, obstacles = [], []
    for one in contenders:
        assert one.latency is not None
        accuracy, x = one.measurement.accuracy, _time_ms(one.latency.p50_s.estimate)
        if accuracy is None:
            anchors.append((_pixels(axes, x, axes.get_ylim()[0])[0], axes.bbox.y0 + 6))
            continue
        (px, py), (_, low) = _pixels(axes, x, 100 * accuracy.top1.estimate), _pixels(axes, x, 100 * accuracy.top1.low)
        high = _pixels(axes, x, 100 * accuracy.top1.high)[1]
        anchors.append((px, py))
        obstacles += [Box(px - 1.5, low, px + 1.5, high), Box(px - 6, py - 6, px + 6, py + 6)]
    obstacles += _front_boxes(axes)
    bounds = Box(axes.bbox.x0 + 2, axes.bbox.y0 + 2, axes.bbox.x1 + 10, axes.bbox.y1 + 8)
    boxes = place_labels(anchors, sizes, bounds, obstacles)
    inverse = axes.transData.inverted()
    for one, name, (x, y), box in zip(contenders, names, anchors, boxes, strict=True):
        near = (min(max(x, box.left), box.right), min(max(y, box.bottom), box.top))
        if np.hypot(near[0] - x, near[1] - y) > 20:
            ends = inverse.transform([near, (x, y)])
            axes.plot(ends[:, 0], ends[:, 1], color=FAINT, linewidth=0.8, zorder=1)
        # Anchored on the side of the point: the browser's font is narrower than the one that was measured.
        side = "left" if box.left >= x else "right" if box.right <= x else "center"
        at = {"left": box.left, "right": box.right, "center": (box.left + box.right) / 2}[side]
        text_x, text_y = inverse.transform((at, (box.bottom + box.top) / 2))
        axes.text(
            text_x, text_y, name, ha=side, va="center_baseline", color=_colour(one), zorder=5,
            fontweight="bold" if one.role == "fused" else "normal",
        )  # fmt: skip


def _front_boxes(axes: Axes) -> list[Box]:
    """The level steps of the Pareto front, as thin boxes that labels keep clear of."""
    (front,) = (line for line in axes.lines if line.get_gid() == "pareto")
    corners = axes.transData.transform(front.get_xydata())
    return [Box(x0, y0 - 1, x1, y0 + 1) for (x0, y0), (x1, y1) in pairwise(corners) if y0 == y1]


def _pixels(axes: Axes, x: float, y: float) -> tuple[float, float]:
    px, py = axes.transData.transform((x, y))
    return float(px), float(py)


def _draw_ridge(axes: Axes, one: Contender, samples_ms: Array, *, base: float, width: int) -> None:
    """Draw one row of the distribution figure; ``base`` is the y of its ground line, its height is 1."""
    assert one.latency is not None
    colour, latency = _colour(one), one.latency
    low, high = axes.get_xlim()
    counts, edges = np.histogram(samples_ms, bins=np.geomspace(low, high, width // _BIN_PX + 1))
    used = np.flatnonzero(counts)
    heights = base + 0.52 * counts[used[0] : used[-1] + 1] / counts.max()
    alpha = 0.42 if one.role == "fused" else 0.3
    axes.stairs(heights, edges[used[0] : used[-1] + 2], baseline=base, fill=True, color=colour, alpha=alpha, linewidth=0)
    axes.plot([low, high], [base, base], color=RULE, linewidth=1, zorder=1)
    for interval, tall in ((latency.p50_s, 0.6), (latency.p90_s, 0.34), (latency.p99_s, 0.34)):
        if interval is not None and _time_ms(interval.estimate) <= high:
            x = _time_ms(interval.estimate)
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
    weight = "bold" if one.role == "fused" else "normal"
    axes.text(0, base + 0.76, name, transform=across, color=_colour(one), fontweight=weight, va="center")
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
    colour = _colour(one)
    axes.fill_between(
        sizes, [p.rows_per_s.low for p in points], [p.rows_per_s.high for p in points], color=colour, alpha=0.15, linewidth=0
    )
    fused = one.role == "fused"
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
    heights = [_pixels(axes, end.batch_size, end.rows_per_s.estimate) for end in ends]
    placed = spread_apart([y for _, y in heights], FONT_SIZE + 4, axes.bbox.y0 + 6, axes.bbox.y1)
    inverse = axes.transData.inverted()
    for one, name, (x, y), height in zip(contenders, names, heights, placed, strict=True):
        line = inverse.transform([(x + 7, y), (axes.bbox.x1 + 10, height)])
        axes.plot(line[:, 0], line[:, 1], color=FAINT, linewidth=0.8, clip_on=False)
        weight = "bold" if one.role == "fused" else "normal"
        text_x, text_y = inverse.transform((axes.bbox.x1 + 13, height))
        axes.text(text_x, text_y, name, color=_colour(one), fontweight=weight, va="center_baseline", clip_on=False)
