"""Checks of what a candidate costs: time, memory, size, and where its nodes run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from monograph.errors import ConfigError
from monograph.models.onnx_file import OnnxFile
from monograph.pipelines.gate.check import Check, compare, judge
from monograph.pipelines.gate.policy import SizeLimits, TargetLimits
from monograph.runtime.compare import Comparison
from monograph.runtime.job import RawRun
from monograph.runtime.results import Latency, Measurement
from monograph.runtime.statistics import quantile_bounds

_QUANTILE = "order statistics (Conover 1999, section 3.2)"
_NS_PER_MS = 1e6
_BYTES_PER_MB = 1e6


def size_checks(candidate: OnnxFile, reference: OnnxFile, limits: SizeLimits) -> Iterator[Check]:
    """Compare bytes on disk."""
    if limits.max_ratio is not None:
        ratio = candidate.size_bytes / reference.size_bytes
        note = f"{candidate.size_bytes:,} bytes beside {reference.size_bytes:,}"
        yield compare("size.max_ratio", ratio, limits.max_ratio, "×", target=None, note=note)
    if limits.max_mb is not None:
        yield compare("size.max_mb", candidate.size_bytes / _BYTES_PER_MB, limits.max_mb, "MB", target=None)


def latency_checks(latency: Latency | None, limits: TargetLimits, target: str) -> Iterator[Check]:
    """Test quantiles of the time of a call.

    Raises:
        ConfigError: the target gave no times.
    """
    for name, quantile in (("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99)):
        limit = getattr(limits, name)
        if limit is not None and latency is None:
            raise _not_told(f"targets.{target}.{name}", target)
        if limit is not None and latency is not None:
            samples_ms = np.asarray(latency.samples_ns) / _NS_PER_MS
            yield quantile_check(f"targets.{target}.{name}", samples_ms, quantile, limit, "ms", "runs", target)


def start_checks(runs: Sequence[RawRun], limits: TargetLimits, target: str) -> Iterator[Check]:
    """Test what each of several fresh processes took to open the model, for its first call, and in memory.

    Raises:
        ConfigError: the target does not tell one of them.
    """
    timings = [run.timings[0] for run in runs if run.timings]
    memory = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None]
    for name, values, unit in (
        ("first_run_ms", [timing.first_run_ns / _NS_PER_MS for timing in timings], "ms"),
        ("load_ms", [timing.create_ns / _NS_PER_MS for timing in timings], "ms"),
        ("peak_memory_mb", [size / _BYTES_PER_MB for size in memory], "MB"),
    ):
        limit = getattr(limits, name)
        if limit is not None and len(values) < len(runs):
            raise _not_told(f"targets.{target}.{name}", target)
        if limit is not None:
            yield quantile_check(f"targets.{target}.{name}", np.asarray(values), 0.5, limit, unit, "processes", target)


def quantile_check(name: str, samples: np.ndarray, quantile: float, limit: float, unit: str, counted: str, target: str) -> Check:
    """Test a quantile; standardised, it is the number of samples beyond the limit, of which chance puts 1 - quantile there."""
    count = len(samples)
    within = int((samples <= limit).sum())
    z = (count * quantile - within) / math.sqrt(count * quantile * (1 - quantile))
    bounds = quantile_bounds(samples, quantile)
    note = f"{within} of {count} within the limit"
    return judge(name, bounds, limit, unit, count, counted, _QUANTILE, target=target, z=z, note=note)


def ratio_check(found: Comparison, candidate: str, reference: str, limit: float, target: str) -> Check:
    """Test how long a call takes beside the reference's: the median over blocks of fresh processes.

    Its bounds are exact; a bootstrap over so few blocks proves a candidate slower in 8 of 100 cases where it is not.
    """
    ratios = np.asarray(found.p50_s[candidate]) / np.asarray(found.p50_s[reference])
    return quantile_check(f"targets.{target}.p50_ratio", ratios, 0.5, limit, "×", "blocks", target)


def placement_checks(measured: Measurement, provider: str, limits: TargetLimits) -> Iterator[Check]:
    """Compare where the nodes ran, or are predicted to run, with what the policy wants of ``provider``.

    Raises:
        ConfigError: the target does not tell, or the multiply-accumulates cannot be counted.
    """
    target, prediction = measured.target, measured.prediction
    note = "" if measured.placement else f"predicted by {prediction.rules}" if prediction else ""
    for name, value, is_least in (
        ("min_macs_share", macs_share(measured, provider), True),
        ("max_partitions", _part_count(measured), False),
    ):
        limit = getattr(limits, name)
        if limit is not None and value is None:
            raise _not_told(f"targets.{target}.{name}", target)
        if limit is not None and value is not None:
            yield compare(f"targets.{target}.{name}", value, limit, "", target=target, is_least=is_least, note=note)


def _part_count(measured: Measurement) -> int | None:
    if measured.placement:
        return sum(placed.partition_count for placed in measured.placement)
    return len(measured.prediction.partition_sizes) if measured.prediction else None


def _not_told(name: str, target: str) -> ConfigError:
    """What cannot be had is no pass."""
    return ConfigError(f"{name}: {target} does not tell this of the model: take it out of the policy, or gate on another target")


def macs_share(measured: Measurement, provider: str) -> float | None:
    """Return the provider's share of the multiply-accumulates; None where they cannot be counted."""
    if not measured.placement:
        return measured.prediction.macs_share if measured.prediction else None
    if any(placed.macs is None for placed in measured.placement):
        return None
    total = sum(placed.macs or 0 for placed in measured.placement)
    own = sum(placed.macs or 0 for placed in measured.placement if placed.provider == provider)
    return own / total if total else None
