"""Timing of single calls: first run, warm-up and steady state apart, raw nanoseconds of all of them kept.

The floor is a bare loop over the same call: reading the clock twice (about 0.1 µs) and one list append a run. This
module runs inside the measuring process and imports numpy and the standard library only; numpy looks for the end of
warm-up (:mod:`monograph.runtime.warmup`) between runs, some milliseconds each time, once enough of them are done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from monograph.runtime.warmup import find_steady_state

FEWEST_RUNS = 40
"""36 are the fewest that bound p90 on both sides at 95%."""
_NS_PER_S = 1_000_000_000
_GROWTH = 1.25
"""By how much a series grows, at least, before the end of its warm-up is looked for again."""


@dataclass(frozen=True)
class TimingRule:
    """How long to measure: until runs after warm-up meet both minima, but no longer than ``max_s`` once 40 runs are done."""

    min_runs: int = 400
    """368 runs are the fewest that bound p99 on both sides at 95%."""
    min_s: float = 1.0
    max_s: float = 20.0
    warmup_s: float = 0.3
    """Least warm-up; where it ends after that, the change-point rule says. 0 counts every run and looks for no change."""

    def enough(self, run_count: int, elapsed_s: float) -> bool:
        """Say whether to stop."""
        if run_count >= self.min_runs and elapsed_s >= self.min_s:
            return True
        return run_count >= min(self.min_runs, FEWEST_RUNS) and elapsed_s >= self.max_s


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

    series: list[int] = []
    _time_until(call, series, lambda elapsed_s: elapsed_s >= rule.warmup_s)
    least = len(series)
    began = clock()
    _time_until(call, series, lambda elapsed_s: rule.enough(len(series) - least, elapsed_s))
    steady = find_steady_state(series[least:]) if rule.warmup_s > 0 else find_steady_state(())
    while steady.warmup_runs > 0:
        steady_count = len(series) - least - steady.warmup_runs
        steady_s = sum(series[-steady_count:]) / _NS_PER_S
        if rule.enough(steady_count, steady_s) or (clock() - began) / _NS_PER_S >= rule.max_s:
            break
        _time_more(call, series, steady_count, steady_s, rule, rule.max_s - (clock() - began) / _NS_PER_S)
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


def _time_more(
    call: Callable[[], object], series: list[int], steady_count: int, steady_s: float, rule: TimingRule, left_s: float
) -> None:
    """Go on until the runs after warm-up would be enough, the series has grown by a quarter, or time is over."""
    before, least = len(series), int(len(series) * _GROWTH)

    def is_done(elapsed_s: float) -> bool:
        enough = rule.enough(steady_count + len(series) - before, steady_s + elapsed_s)
        return elapsed_s >= left_s or (enough and len(series) >= least)

    _time_until(call, series, is_done)


def _time_until(call: Callable[[], object], series: list[int], is_done: Callable[[float], bool]) -> None:
    """Append the nanoseconds of call after call to ``series`` until ``is_done``, which is told the seconds so far."""
    clock, append = time.perf_counter_ns, series.append
    began = clock()
    while not is_done((clock() - began) / _NS_PER_S):
        start = clock()
        call()
        append(clock() - start)
