"""From raw nanoseconds to latency and throughput with their intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monograph.errors import MonographError
from monograph.runtime.load import LoadSpec, RawLoad
from monograph.runtime.results import Interval, Latency, Load, Throughput
from monograph.runtime.statistics import batched_quantile_interval, quantile_interval
from monograph.runtime.timing import FEWEST_RUNS, RawTiming

_NS_PER_S = 1_000_000_000
_DISTURBED_SHARE, _LATE_SHARE = 0.05, 0.2


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
        device_p50_s=_quantile_s(raw.device_ns, 0.5) if raw.device_ns else None,
        device_ns=raw.device_ns,
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


def summarise_load(raw: RawLoad, spec: LoadSpec) -> Load:
    """Turn what a load gave into quantiles; intervals are by batches, since calls in a queue wait for each other.

    Raises:
        MonographError: fewer than 40 calls.
    """
    if len(raw.latency_ns) < FEWEST_RUNS or not raw.service_ns:
        raise MonographError(
            f"{len(raw.latency_ns)} calls under load are too few for an interval of p90: raise --max-seconds or --rate so that "
            f"there are at least {FEWEST_RUNS}"
        )
    p50, p90, p99 = (_in_seconds(batched_quantile_interval(raw.latency_ns, quantile)) for quantile in (0.5, 0.9, 0.99))
    assert p50 is not None
    assert p90 is not None
    return Load(
        concurrency=spec.concurrency,
        rate_per_s=spec.rate_per_s,
        arrivals=None if spec.rate_per_s is None else spec.arrivals,
        completed_per_s=len(raw.service_ns) / raw.elapsed_ns * _NS_PER_S,
        run_count=len(raw.service_ns),
        not_begun=raw.not_begun,
        p50_s=p50,
        p90_s=p90,
        p99_s=p99,
        service_p50_s=float(np.quantile(raw.service_ns, 0.5)) / _NS_PER_S,
        service_p99_s=float(np.quantile(raw.service_ns, 0.99)) / _NS_PER_S if p99 else None,
        lateness_p99_s=float(np.quantile(raw.lateness_ns, 0.99)) / _NS_PER_S if raw.lateness_ns else None,
        latency_ns=raw.latency_ns,
        service_ns=raw.service_ns,
    )


def load_warnings(load: Load) -> list[str]:
    """Return what makes the figures of a load doubtful."""
    found = []
    if load.not_begun:
        found.append(
            f"{load.not_begun} of {load.run_count + load.not_begun} calls had not begun when time was over: {load.rate_per_s:g} "
            f"a second are more than the {load.completed_per_s:.3g} that were answered, and the queue grows for ever; they "
            "count with the time that they had waited"
        )
    if load.lateness_p99_s is not None and load.lateness_p99_s > _LATE_SHARE * load.p50_s.estimate:
        found.append(
            f"the generator of arrivals woke up to {load.lateness_p99_s * 1e3:.2g} ms late (p99), which the latencies contain"
        )
    return found


def _in_seconds(interval: Interval | None) -> Interval | None:
    if interval is None:
        return None
    return Interval(interval.estimate / _NS_PER_S, interval.low / _NS_PER_S, interval.high / _NS_PER_S, interval.confidence)


def _quantile_s(samples_ns: Sequence[int], quantile: float) -> Interval | None:
    return _in_seconds(quantile_interval(samples_ns, quantile))
