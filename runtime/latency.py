"""Timing of single calls: first run and steady state apart, raw samples kept.

The floor is a bare loop over the same call: reading the clock twice (about 0.1 µs) and one list append a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from monograph.errors import MonographError
from monograph.runtime.results import Interval, Latency, Throughput
from monograph.runtime.statistics import quantile_interval

_NS_PER_S = 1_000_000_000


@dataclass(frozen=True)
class TimingRule:
    """How long to measure: until both minima are met, but no longer than ``max_s`` seconds once 40 runs are done."""

    min_runs: int = 400
    """368 runs are the fewest that bound p99 on both sides at 95%."""
    min_s: float = 1.0
    max_s: float = 20.0
    warmup_s: float = 0.3

    _FEWEST_RUNS = 40
    """The fewest that bound p90 on both sides at 95%."""

    def enough(self, run_count: int, elapsed_s: float) -> bool:
        """Say whether to stop."""
        if run_count >= self.min_runs and elapsed_s >= self.min_s:
            return True
        return run_count >= self._FEWEST_RUNS and elapsed_s >= self.max_s


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


def summarise_latency(raw: RawTiming) -> Latency:
    """Turn raw nanoseconds into quantiles with distribution-free 95% intervals.

    Raises:
        MonographError: fewer than 40 samples.
    """
    p50, p90, p99 = (_quantile_s(raw.samples_ns, quantile) for quantile in (0.5, 0.9, 0.99))
    if p50 is None or p90 is None:
        raise MonographError(f"{len(raw.samples_ns)} runs are too few for an interval of p90: measure at least 40")
    return Latency(
        batch_size=raw.batch_size,
        create_s=raw.create_ns / _NS_PER_S,
        first_run_s=raw.first_run_ns / _NS_PER_S,
        warmup_runs=raw.warmup_runs,
        samples_ns=raw.samples_ns,
        p50_s=p50,
        p90_s=p90,
        p99_s=p99,
    )


def summarise_throughput(raw: RawTiming) -> Throughput:
    """Rows a second from the median call; the interval is that of the median.

    Raises:
        MonographError: fewer than 40 samples.
    """
    median = summarise_latency(raw).p50_s
    rate = Interval(raw.batch_size / median.estimate, raw.batch_size / median.high, raw.batch_size / median.low)
    return Throughput(raw.batch_size, rate, len(raw.samples_ns))


def _quantile_s(samples_ns: Sequence[int], quantile: float) -> Interval | None:
    interval = quantile_interval(samples_ns, quantile)
    if interval is None:
        return None
    return Interval(interval.estimate / _NS_PER_S, interval.low / _NS_PER_S, interval.high / _NS_PER_S, interval.confidence)
