"""The figure of accuracy over cost: a point a model, with its intervals, its name and the Pareto front.

It takes ``width`` in pixels; below ``NARROW`` it is drawn for a phone: less height, shorter names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monograph.pipelines.report.axes import ROLE_COLOURS, batch_label, pixels, scale_cost, time_ms, write_headings
from monograph.pipelines.report.formats import milliseconds, shortened
from monograph.pipelines.report.labels import Box, place_labels
from monograph.pipelines.report.merit import Merit, merit_of
from monograph.pipelines.report.model import MAIN_ROLES, Contender, Role
from monograph.pipelines.report.svg import FAINT, NARROW, PAPER, Margins, add_axes, drawing, new_figure, text_size, to_svg
from monograph.runtime.results import Interval


@dataclass(frozen=True)
class Point:
    """A model in the figure."""

    name: str
    role: Role
    cost: Interval
    """In the unit of the axis, above 0; without room between its bounds where it was counted."""
    cost_text: str
    """For people, with its unit."""
    merit: Merit | None
    """None where it was not scored, which puts a tick on the axis of costs."""
    is_named: bool = True
    """False draws it small, with its name on hovering alone: of many points those that matter keep theirs."""

    @property
    def tooltip(self) -> str:
        """What is said of it on hovering."""
        if self.merit is None:
            return f"{self.name}: {self.cost_text}, accuracy not measured"
        return f"{self.name}: {self.merit.describe()}, {self.cost_text}"


def accuracy_latency_svg(contenders: Sequence[Contender], *, key: str, width: int) -> str:
    """Draw how right contenders are over the median latency of one call (ms), on one target whose hardware was real.

    Raises ValueError where nothing was both timed and scored.
    """
    points = [_timed_point(one) for one in contenders if one.latency]
    label = batch_label("Median latency of one call", contenders)
    return trade_svg(points, over="latency", label=label, key=key, width=width)


def trade_svg(points: Sequence[Point], *, over: str, label: str, key: str, width: int) -> str:
    """Draw how right models are over what they cost; what is best stands at the top, also of errors.

    Args:
        points: judged by one metric; those without stand as ticks on the axis of costs.
        over: what the cost is, to be read aloud.
        label: of the axis of costs, with its unit.
        key: starts every id.
        width: in pixels.

    Raises ValueError where no point has accuracy.
    """
    merits = [one.merit for one in points if one.merit]
    scored = [one for one in points if one.merit]
    unscored = [one for one in points if not one.merit]
    if not scored:
        raise ValueError(f"nothing has both accuracy and {over}: leave the figure out")
    with drawing(key):
        figure = new_figure(width, 380 if width >= NARROW else 320)
        axes = add_axes(figure, Margins(44, 14, 30, 42))
        costs = [one.cost.estimate for one in points]
        scale_cost(axes, min(costs), max(costs), width)
        write_headings(axes, merits[0].heading, label)
        axes.set_ylim(*_ends(merits, has_ticks=bool(unscored)))
        axes.grid(axis="y")
        _draw_front(axes, scored)
        tooltips = {}
        for index, one in enumerate([*scored, *unscored]):
            tooltips[f"tip-{index}"] = one.tooltip
            _draw_point(axes, one, f"tip-{index}")
        _label_points(figure, axes, [one for one in (*scored, *unscored) if one.is_named], width)
        names = ", ".join(tooltips.values())
        return to_svg(figure, key=key, description=f"Accuracy over {over}: {names}", tooltips=tooltips)


def _ends(merits: Sequence[Merit], *, has_ticks: bool) -> tuple[float, float]:
    """Return the bottom and the top of the axis, with room around the intervals, and for ticks below."""
    bounds = [bound for one in merits for bound in (one.drawn.low, one.drawn.high)]
    low, high = min(bounds), max(bounds)
    room = 0.12 * (high - low) + (0.1 if merits[0].is_share else 1e-3 * max(abs(high), abs(low)) or 1e-3)
    below = room * (2.2 if has_ticks else 1)
    if merits[0].is_error:
        return high + below, low - room
    return low - below, min(high + room, 100.5) if merits[0].is_share else high + room


def _timed_point(one: Contender) -> Point:
    assert one.latency is not None
    p50 = one.latency.p50_s
    drawn = Interval(time_ms(p50.estimate), time_ms(p50.low), time_ms(p50.high))
    shown = milliseconds(p50)
    return Point(one.name, one.role, drawn, f"{shown.value} ms {shown.bounds}", merit_of(one.measurement))


def _draw_front(axes: Axes, points: Sequence[Point]) -> None:
    """Draw the staircase below which every point is beaten in both accuracy and cost."""
    judged = [(one.cost.estimate, one.merit) for one in points if one.merit]
    sign = -1 if judged[0][1].is_error else 1
    # Of two at one cost the better comes first.
    pairs = sorted((cost, -sign * merit.drawn.estimate) for cost, merit in judged)
    bottom, right = axes.get_ylim()[0], axes.get_xlim()[1]
    xs, ys, best = [pairs[0][0]], [bottom], -np.inf
    for x, negative in pairs:
        if -negative > best:
            xs += [x, x]
            ys += [max(best, sign * bottom) * sign, -negative * sign]
            best = -negative
    best *= sign
    axes.plot([*xs, right], [*ys, best], color=FAINT, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1, gid="pareto")


def _draw_point(axes: Axes, one: Point, gid: str) -> None:
    """Draw a point with its intervals, or a tick where there is no accuracy."""
    colour, x = ROLE_COLOURS[one.role], one.cost.estimate
    if one.merit is None:
        axes.plot([x, x], [0, 0.035], transform=axes.get_xaxis_transform(), color=colour, linewidth=2, gid=gid, zorder=3)
        return
    drawn = one.merit.drawn
    y = drawn.estimate
    if not one.is_named:
        axes.plot([x], [y], "o", color=colour, markersize=4.5, alpha=0.45, markeredgewidth=0, gid=gid, zorder=2)
        return
    axes.plot([x, x], [drawn.low, drawn.high], color=colour, linewidth=1.2, zorder=2)
    axes.plot([one.cost.low, one.cost.high], [y, y], color=colour, linewidth=1.2, zorder=2)
    fill = PAPER if one.role == "baseline" else colour
    size = 10 if one.role in MAIN_ROLES else 7.5
    axes.plot([x], [y], "o", color=colour, markersize=size, markerfacecolor=fill, markeredgewidth=1.6, gid=gid, zorder=4)


def _label_points(figure: Figure, axes: Axes, points: Sequence[Point], width: int) -> None:
    """Write each name beside its point, and a thin line to it where there was no room nearby."""
    names = [shortened(one.name, 30 if width >= NARROW else 20) for one in points]
    sizes = [text_size(figure, name) for name in names]
    anchors, obstacles = [], []
    for one in points:
        merit, x = one.merit, one.cost.estimate
        if merit is None:
            anchors.append((pixels(axes, x, axes.get_ylim()[0])[0], axes.bbox.y0 + 6))
            continue
        px, py = pixels(axes, x, merit.drawn.estimate)
        low, high = sorted(pixels(axes, x, bound)[1] for bound in (merit.drawn.low, merit.drawn.high))
        anchors.append((px, py))
        obstacles += [Box(px - 1.5, low, px + 1.5, high), Box(px - 6, py - 6, px + 6, py + 6)]
    obstacles += _front_boxes(axes)
    bounds = Box(axes.bbox.x0 + 2, axes.bbox.y0 + 2, axes.bbox.x1 + 10, axes.bbox.y1 + 8)
    boxes = place_labels(anchors, sizes, bounds, obstacles)
    inverse = axes.transData.inverted()
    for one, name, (x, y), box in zip(points, names, anchors, boxes, strict=True):
        near = (min(max(x, box.left), box.right), min(max(y, box.bottom), box.top))
        if np.hypot(near[0] - x, near[1] - y) > 20:
            ends = inverse.transform([near, (x, y)])
            axes.plot(ends[:, 0], ends[:, 1], color=FAINT, linewidth=0.8, zorder=1)
        # Anchored on the side of the point: the browser's font is narrower than the one that was measured.
        side = "left" if box.left >= x else "right" if box.right <= x else "center"
        at = {"left": box.left, "right": box.right, "center": (box.left + box.right) / 2}[side]
        text_x, text_y = inverse.transform((at, (box.bottom + box.top) / 2))
        axes.text(
            text_x, text_y, name, ha=side, va="center_baseline", color=ROLE_COLOURS[one.role], zorder=5,
            fontweight="bold" if one.role in MAIN_ROLES else "normal",
        )  # fmt: skip


def _front_boxes(axes: Axes) -> list[Box]:
    """The level steps of the Pareto front, as thin boxes that labels keep clear of."""
    (front,) = (line for line in axes.lines if line.get_gid() == "pareto")
    corners = axes.transData.transform(front.get_xydata())
    return [Box(x0, y0 - 1, x1, y0 + 1) for (x0, y0), (x1, y1) in pairwise(corners) if y0 == y1]
