"""Timing of single calls: first run, warm-up and steady state apart, raw nanoseconds of all of them kept.

The floor is a bare loop over the same call: reading the clock twice (about 0.1 µs) and one list append a run. This
module runs inside the measuring process and imports numpy and the standard library only; numpy looks for the end of
warm-up (:mod:`monograph.runtime.warmup`) between runs, some milliseconds each time, once enough of them are done.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from monograph.runtime.warmup import find_steady_state

FEWEST_RUNS = 40
"""36 are the fewest that bound p90 on both sides at 95%."""
_NS_PER_S = 1_000_000_000
_GROWTH = 1.25
"""By how much a series grows, at least, before the end of its warm-up is looked for again."""


@dataclass(frozen=True)
class Until:
    """When a series of calls ends: once both minima are met, or at ``max_s``, but not before ``fewest_runs`` are done."""

    min_runs: int
    min_s: float
    max_s: float = math.inf
    fewest_runs: int = 0

    def is_reached(self, run_count: int, elapsed_s: float) -> bool:
        """Say whether to stop."""
        if run_count >= self.min_runs and elapsed_s >= self.min_s:
            return True
        return run_count >= self.fewest_runs and elapsed_s >= self.max_s


@dataclass(frozen=True)
class TimingRule:
    """How long to measure: until runs after warm-up meet both minima, but no longer than ``max_s`` once 40 runs are done."""

    min_runs: int = 400
    """368 runs are the fewest that bound p99 on both sides at 95%."""
    min_s: float = 1.0
    max_s: float = 20.0
    warmup_s: float = 0.3
    """Least warm-up; where it ends after that, the change-point rule says. 0 counts every run and looks for no change."""

    @property
    def until(self) -> Until:
        """When there are enough runs after warm-up."""
        return Until(self.min_runs, self.min_s, self.max_s, min(self.min_runs, FEWEST_RUNS))


ONE_RUN = TimingRule(min_runs=1, min_s=0.0, max_s=0.0, warmup_s=0.0)
"""Where the time of a call is an emulator's: one call, after the cold one, tells how long the rest will take."""


@dataclass(frozen=True)
class RawTiming:
    """Nanoseconds of one contender at one batch size, as they were read off the clock."""

    batch_size: int
    create_ns: int
    first_run_ns: int
    warmup_runs: int
    samples_ns: tuple[int, ...]
    """Of the steady state."""
    warmup_ns: tuple[int, ...] = ()
    is_steady: bool = True
    """False where the level of the end was reached too late to tell whether it lasts."""
    other_level_runs: int = 0
    """Steady runs during which the level was, for a while, another one: something else disturbed them."""
    device_ns: tuple[int, ...] = ()
    """Of calls by the device's own clock, where it has one."""

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        """Read back what crossed a process boundary as JSON."""
        return cls(**record | {name: tuple(record[name]) for name in ("samples_ns", "warmup_ns", "device_ns") if name in record})


def time_calls(call: Callable[[], object], batch_size: int, create_ns: int, rule: TimingRule) -> RawTiming:
    """Call once cold, then time single calls until ``rule`` says enough of those after warm-up."""
    clock = time.perf_counter_ns
    start = clock()
    call()
    first_run_ns = clock() - start
    return time_series(partial(_time_until, call), batch_size, create_ns, first_run_ns, rule)


def time_series(
    extend: Callable[[Until], Sequence[int]], batch_size: int, create_ns: int, first_run_ns: int, rule: TimingRule
) -> RawTiming:
    """Time single calls until ``rule`` says enough of those after warm-up.

    ``extend`` calls, wherever that is, until it is told to stop, and returns the nanoseconds of each call.
    """
    clock = time.perf_counter_ns
    series = list(extend(Until(0, rule.warmup_s)))
    least = len(series)
    began = clock()
    series += extend(rule.until)
    steady = find_steady_state(series[least:]) if rule.warmup_s > 0 else find_steady_state(())
    while steady.warmup_runs > 0:
        steady_count = len(series) - least - steady.warmup_runs
        steady_s = sum(series[-steady_count:]) / _NS_PER_S
        left_s = rule.max_s - (clock() - began) / _NS_PER_S
        if rule.until.is_reached(steady_count, steady_s) or left_s <= 0:
            break
        # Until the runs after warm-up would be enough and the series has grown by a quarter, or time is over.
        more_runs = max(rule.min_runs - steady_count, int(len(series) * (_GROWTH - 1)))
        series += extend(Until(more_runs, rule.min_s - steady_s, left_s))
        steady = find_steady_state(series[least:])

    run_count = len(series) - least
    steady_count = max(run_count - steady.warmup_runs, min(FEWEST_RUNS, run_count))
    is_steady = steady_count >= min(rule.min_runs, run_count) or 2 * steady_count >= run_count
    split = len(series) - steady_count
    return RawTiming(
        batch_size,
        create_ns,
        first_run_ns,
        split,
        tuple(series[split:]),
        tuple(series[:split]),
        is_steady,
        steady.other_level_runs,
    )


def _time_until(call: Callable[[], object], until: Until) -> list[int]:
    """Return the nanoseconds of call after call."""
    series: list[int] = []
    clock, append = time.perf_counter_ns, series.append
    began = clock()
    while not until.is_reached(len(series), (clock() - began) / _NS_PER_S):
        start = clock()
        call()
        append(clock() - start)
    return series
