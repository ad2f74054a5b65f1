"""What the figures of accuracy, time and throughput have in common: their scales, headings and colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from monograph.pipelines.report.model import Contender, Role
from monograph.pipelines.report.svg import ACCENT, INK, MUTED, NARROW

ROLE_COLOURS: dict[Role, str] = {
    "fused": ACCENT,
    "student": ACCENT,
    "adapted": ACCENT,
    "member": INK,
    "teacher": INK,
    "baseline": MUTED,
}
WIDE_SPREAD = 4.0
"""A logarithmic axis is used where the largest value is at least this many times the smallest."""
SHORTEST_MS = 1e-3
"""A browser's clock may be so coarse that a call took no time, which has no place on a logarithmic axis."""


def scale_cost(axes: Axes, low: float, high: float, width: float, *, logarithmic: bool = False) -> None:
    """Set the axis of times or other costs: logarithmic where the values spread widely, with room at both ends."""
    if logarithmic or high / low >= WIDE_SPREAD:
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


def time_ms(seconds: float) -> float:
    """Return what a time is drawn at."""
    return max(1e3 * seconds, SHORTEST_MS)


def write_headings(axes: Axes, above: str, below: str) -> None:
    """Write the y label upright above its axis, where it can be read without turning the head, and the x label."""
    axes.annotate(
        above, (0, 1), xycoords="axes fraction", xytext=(-axes.bbox.x0 + 2, 14), textcoords="offset points", color=MUTED
    )
    axes.set_xlabel(below, loc="right")


def batch_label(what: str, contenders: Sequence[Contender]) -> str:
    """Return the label of an axis of times: of what, and at which batch sizes."""
    sizes = sorted({one.latency.batch_size for one in contenders if one.latency})
    return f"{what} at batch {' and '.join(str(size) for size in sizes)}, ms"


def pixels(axes: Axes, x: float, y: float) -> tuple[float, float]:
    """Return where a point of the data lies in the figure."""
    px, py = axes.transData.transform((x, y))
    return float(px), float(py)
