"""Timing of single calls: first run and steady state apart, raw nanoseconds kept.

The floor is a bare loop over the same call: reading the clock twice (about 0.1 µs) and one list append a run. This
module runs inside the measuring process and imports the standard library only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

FEWEST_RUNS = 40
"""36 are the fewest that bound p90 on both sides at 95%."""
_NS_PER_S = 1_000_000_000


@dataclass(frozen=True)
class TimingRule:
    """How long to measure: until both minima are met, but no longer than ``max_s`` seconds once 40 runs are done."""

    min_runs: int = 400
    """368 runs are the fewest that bound p99 on both sides at 95%."""
    min_s: float = 1.0
    max_s: float = 20.0
    warmup_s: float = 0.3

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

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        """Read back what crossed a process boundary as JSON."""
        return cls(**record | {"samples_ns": tuple(record["samples_ns"])})


def time_calls(call: Callable[[], object], batch_size: int, create_ns: int, rule: TimingRule) -> RawTiming:
    """Call once cold, warm up, then time single calls until ``rule`` says enough."""
    clock = time.perf_counter_ns
    start = clock()
    call()
    first_run_ns = clock() - start

    warmup_runs = 0
    warm_at = clock() + int(rule.warmup_s * _NS_PER_S)
    while clock() < warm_at:
        call()
        warmup_runs += 1

    samples: list[int] = []
    append = samples.append
    began = clock()
    while not rule.enough(len(samples), (clock() - began) / _NS_PER_S):
        start = clock()
        call()
        append(clock() - start)
    return RawTiming(batch_size, create_ns, first_run_ns, warmup_runs, tuple(samples))
