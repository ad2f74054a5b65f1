"""One check: an estimate with its bounds against a limit, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from scipy.stats import norm

from monograph.runtime.results import Interval
from monograph.runtime.statistics import CONFIDENCE, units_to_decide


class Outcome(StrEnum):
    """What a check, or the whole gate, comes to."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"

    @property
    def exit_code(self) -> int:
        """What the command line returns."""
        return {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.INCONCLUSIVE: 3}[self]


@dataclass(frozen=True)
class Check:
    """One limit of the policy, tested."""

    name: str
    """Where the limit stands in the policy, such as ``accuracy.max_loss_points``, with its part where it has several."""
    target: str | None
    """Where the candidate ran; None for what is the same everywhere."""
    outcome: Outcome
    estimate: float | None
    low: float | None
    """One-sided 95% bounds; None where there were too few rows or runs for one, equal to the estimate where nothing is drawn."""
    high: float | None
    limit: float
    unit: str
    is_least: bool
    """Whether the limit is the least that is allowed, rather than the most."""
    count: int | None
    """On how many rows, runs, processes or blocks it rests; None where nothing is drawn."""
    counted: str
    needed: int | None
    """How many in all would decide at 80% power, if what was seen is the truth; None where decided, or where none would."""
    method: str
    note: str = ""

    @property
    def bound(self) -> float | None:
        """The bound that has to keep the limit."""
        return self.low if self.is_least else self.high

    @property
    def more(self) -> int | None:
        """How many rows or runs beside those there are would decide."""
        return None if self.needed is None or self.count is None else self.needed - self.count

    def describe(self) -> str:
        """Return the check in one line: what was found, what is allowed, and what is missing."""
        allowed = f"{'least' if self.is_least else 'most'} allowed {amount(self.limit, self.unit)}"
        if self.count is None:
            found = [amount(self.estimate, self.unit), allowed]
        else:
            bounds = f"one-sided 95% bounds {amount(self.low, self.unit)} and {amount(self.high, self.unit)}"
            found = [amount(self.estimate, self.unit), bounds, allowed, f"{self.count:,} {self.counted}"]
        return f"{self.outcome.value}: {self.name}: {', '.join(found)}" + "".join(
            f"; {text}" for text in (self.note, self.advice) if text
        )

    @property
    def advice(self) -> str:
        """What would decide, where nothing is decided yet."""
        if self.outcome is not Outcome.INCONCLUSIVE:
            return ""
        if self.more is None:
            return "no number decides: what was seen is the limit itself"
        return f"about {self.more:,} more {self.counted} would decide, if what was seen is the truth"


def amount(value: float | None, unit: str) -> str:
    """Return a figure with its unit; what has no finite value is infinite, or cannot be bounded yet."""
    text = "none" if value is None else f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    return f"{text} {unit}".strip()


def judge(
    name: str,
    interval: Interval,
    limit: float,
    unit: str,
    count: int,
    counted: str,
    method: str,
    *,
    target: str | None,
    z: float | None = None,
    outcome: Outcome | None = None,
    note: str = "",
) -> Check:
    """Judge what may be at most ``limit``.

    It passes where the upper one-sided 95% bound keeps the limit, and fails where the lower one is beyond it, which proves it
    worse; between them there is not enough evidence.

    Args:
        name: of the limit.
        interval: the estimate, and both bounds.
        limit: the most that is allowed, in the unit of the interval.
        unit: for people.
        count: of rows or runs.
        counted: what was counted.
        method: the test and its source, for people.
        target: where it ran.
        z: the test's standardised statistic at the limit, where the bounds do not tell it.
        outcome: where several tests are judged together.
        note: for people.
    """
    outcome = outcome or outcome_of(interval, limit)
    statistic = z if z is not None else _statistic(interval, limit)
    return Check(
        name=name,
        target=target,
        outcome=outcome,
        estimate=interval.estimate,
        low=_finite(interval.low),
        high=_finite(interval.high),
        limit=limit,
        unit=unit,
        is_least=False,
        count=count,
        counted=counted,
        needed=units_to_decide(statistic, count) if outcome is Outcome.INCONCLUSIVE else None,
        method=method,
        note=note,
    )


def outcome_of(interval: Interval, limit: float) -> Outcome:
    """Compare both bounds with the most that is allowed."""
    if interval.high <= limit:
        return Outcome.PASS
    return Outcome.FAIL if interval.low > limit else Outcome.INCONCLUSIVE


def compare(
    name: str, value: float, limit: float, unit: str, *, target: str | None, is_least: bool = False, note: str = ""
) -> Check:
    """Compare a value that no chance is in with its limit."""
    keeps = value >= limit if is_least else value <= limit
    return Check(
        name=name,
        target=target,
        outcome=Outcome.PASS if keeps else Outcome.FAIL,
        estimate=_finite(value),
        low=_finite(value),
        high=_finite(value),
        limit=limit,
        unit=unit,
        is_least=is_least,
        count=None,
        counted="",
        needed=None,
        method="counted, not estimated",
        note=note,
    )


def conclude(outcomes: Iterable[Outcome]) -> Outcome:
    """Any fail is a fail; else anything inconclusive blocks; else it passes."""
    found = set(outcomes)
    return next((outcome for outcome in (Outcome.FAIL, Outcome.INCONCLUSIVE) if outcome in found), Outcome.PASS)


def _statistic(interval: Interval, limit: float) -> float:
    """How many standard errors the estimate lies beyond the limit, by the bound on that side."""
    beyond = interval.estimate - limit
    width = interval.estimate - interval.low if beyond > 0 else interval.high - interval.estimate
    return 0.0 if width <= 0 or math.isinf(width) else float(norm.ppf(CONFIDENCE)) * beyond / width


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
