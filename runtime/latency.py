"""From raw nanoseconds to latency and throughput with their intervals."""

from __future__ import annotations

from collections.abc import Sequence

from monograph.errors import MonographError
from monograph.runtime.results import Interval, Latency, Throughput
from monograph.runtime.statistics import quantile_interval
from monograph.runtime.timing import FEWEST_RUNS, RawTiming

_NS_PER_S = 1_000_000_000
_DISTURBED_SHARE = 0.05


def summarise_latency(raw: RawTiming) -> Latency:
    """Turn raw nanoseconds into quantiles with distribution-free 95% intervals.

    Raises:
        MonographError: fewer than 40 samples.
    """
    if len(raw.samples_ns) < FEWEST_RUNS:
        raise MonographError(f"{len(raw.samples_ns)} runs are too few for an interval of p90: measure at least {FEWEST_RUNS}")
    p50, p90, p99 = (_quantile_s(raw.samples_ns, quantile) for quantile in (0.5, 0.9, 0.99))
    assert p50 is not None
    assert p90 is not None
    return Latency(
        batch_size=raw.batch_size,
        create_s=raw.create_ns / _NS_PER_S,
        first_run_s=raw.first_run_ns / _NS_PER_S,
        warmup_runs=raw.warmup_runs,
        warmup_ns=raw.warmup_ns,
        samples_ns=raw.samples_ns,
        p50_s=p50,
        p90_s=p90,
        p99_s=p99,
    )


def timing_warnings(raw: RawTiming) -> list[str]:
    """Return what makes the figures of one series doubtful."""
    found, run_count = [], len(raw.samples_ns)
    if not raw.is_steady:
        found.append(
            f"calls at batch {raw.batch_size} were still changing speed when time was over: the figures are of the last "
            f"{run_count} of {run_count + raw.warmup_runs} runs; measure longer (--max-seconds)"
        )
    if raw.other_level_runs > _DISTURBED_SHARE * run_count:
        found.append(
            f"{raw.other_level_runs} of {run_count} runs at batch {raw.batch_size} came while calls went at another speed "
            "for a time: something disturbed the machine"
        )
    return found


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
