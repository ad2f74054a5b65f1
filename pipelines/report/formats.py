"""Numbers as people read them: few digits, the interval in brackets with as many decimals as its estimate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from monograph.runtime.results import Interval

MISSING = "\u2013"

# Not strftime's: its months follow the locale.
_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Shown(NamedTuple):
    """An estimate and its interval, ready to print; the unit stands in the heading."""

    value: str
    bounds: str
    """``[low, high]``; empty where there is no interval."""

    def __str__(self) -> str:
        return f"{self.value} {self.bounds}".strip()


def significant(value: float, digits: int = 3) -> str:
    """Write ``value`` with ``digits`` significant digits and no exponent: 0.312, 12.4, 3,210."""
    return _fixed(value, _decimals(value, digits))


def scientific(value: float) -> str:
    """Write ``value`` as ``3.1 × 10⁻⁷``; 0 stays 0."""
    if value == 0 or not math.isfinite(value):
        return _fixed(value, 0)
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def show(interval: Interval | None, scale: float = 1.0, decimals: int | None = None) -> Shown:
    """Show an interval multiplied by ``scale``; three significant digits of the estimate unless told ``decimals``."""
    if interval is None:
        return Shown(MISSING, "")
    estimate = interval.estimate * scale
    places = _decimals(estimate, 3) if decimals is None else decimals
    return Shown(_fixed(estimate, places), f"[{_fixed(interval.low * scale, places)}, {_fixed(interval.high * scale, places)}]")


def percent(interval: Interval | None) -> Shown:
    """Show a share of 1 in percent."""
    return show(interval, scale=100.0, decimals=1)


def milliseconds(interval: Interval | None) -> Shown:
    """Show seconds in milliseconds."""
    return show(interval, scale=1e3)


def size_text(size_bytes: float | None) -> str:
    """Write bytes with a decimal unit: 812 kB, 1.43 MB."""
    if size_bytes is None:
        return MISSING
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{significant(size_bytes / factor)} {unit}"
    return f"{size_bytes:.0f} B"


def count_text(count: float) -> str:
    """Write a large count in thousands, millions or billions: 812, 6.83 k, 1.43 M."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= factor:
            return f"{significant(count / factor)} {unit}"
    return f"{count:.0f}"


def duration_text(duration_s: float) -> str:
    """Write seconds as people say them: 8.4 s, 2 min 14 s, 1 h 5 min."""
    if duration_s < 60:
        return f"{significant(duration_s, 2)} s"
    minutes, seconds = divmod(round(duration_s), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"


def date_text(iso: str) -> str:
    """Write an ISO 8601 time as ``23 November 2026, 21:40 UTC``; anything else stays as it is."""
    try:
        moment = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{moment.day} {_MONTHS[moment.month - 1]} {moment.year}, {moment:%H:%M} {moment.tzname() or ''}".rstrip()


def placement_text(nodes_per_provider: Mapping[str, int]) -> str:
    """Write which provider ran how many nodes: ``CPU 42``, ``QNN 40, CPU 2``."""
    parts = (f"{name.removesuffix('ExecutionProvider')} {count}" for name, count in nodes_per_provider.items())
    return ", ".join(parts) or MISSING


def shortened(name: str, length: int) -> str:
    """Cut the middle out of a name longer than ``length``: names of a family differ at their ends."""
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}…{name[len(name) - tail :]}"


def _decimals(value: float, digits: int) -> int:
    if value == 0 or not math.isfinite(value):
        return 0
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])
    return max(0, digits - 1 - exponent)


def _fixed(value: float, decimals: int) -> str:
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "\u2212∞"
    return f"{value:,.{decimals}f}".replace("-", "\u2212")
