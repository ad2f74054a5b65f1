"""Measure contenders: latency and accuracy, each in a fresh process of its own, and what may be claimed of them.

How a process is started and what it gives back is :mod:`monograph.runtime.job`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import ConfigError
from monograph.models.contract import Contract
from monograph.models.data.rows import Rows
from monograph.runtime.environment import describe_environment, environment_warnings
from monograph.runtime.job import BATCH_SIZES, Contender, Job, RawRun, Settings, run_in_process
from monograph.runtime.latency import summarise_latency, summarise_throughput
from monograph.runtime.placement import check_placement
from monograph.runtime.results import Accuracy, Evidence, Measurement
from monograph.runtime.session import usable_cores
from monograph.runtime.targets import Target
from monograph.runtime.timing import RawTiming

Array = npt.NDArray[Any]
__all__ = ["BATCH_SIZES", "Contender", "Settings", "measure", "onnx_contender", "raw_timings"]


def onnx_contender(name: str, path: Path, contract: Contract, sha256: str, size_bytes: int, target: Target) -> Contender:
    """Return the contender that runs one ONNX file by ``target``'s provider."""
    arguments = {"path": str(path.absolute()), "spec": asdict(target.session)}
    return Contender(name, "monograph.runtime.runner:load_onnx", arguments, contract, sha256, size_bytes, path.absolute())


def measure(contender: Contender, target: Target, rows: Rows | None, settings: Settings) -> Measurement:
    """Measure on ``target``; accuracy needs labelled ``rows`` and a classifier.

    Raises:
        ConfigError: the target is not here.
        PlacementError: something else ran the model, or a part of it that counts.
        MonographError: the contender cannot be loaded or run.
    """
    here = target.probe()
    if not here.is_here:
        raise ConfigError(f"target {target.name} is not here: {here.describe()}")
    warnings = environment_warnings()
    threads = settings.threads or usable_cores()
    if threads > usable_cores():
        warnings.append(f"{threads} threads on {usable_cores()} usable cores: they wait for one another")
    run = target.run(Job(contender, rows, settings))
    if run.placement:
        warnings += check_placement(
            run.placement,
            target.provider,
            target.name,
            allow_fallback=settings.allow_fallback,
            is_strict=target.is_strict,
        )
    evidence = run.evidence or here.evidence or target.evidence
    is_timed = bool(run.timings) and evidence in (Evidence.EXECUTED, Evidence.DEVICE)
    return Measurement(
        model=contender.name,
        sha256=contender.sha256,
        size_bytes=contender.size_bytes,
        target=target.name,
        evidence=evidence,
        environment=describe_environment(threads, settings.spinning),
        accuracy=_score(run.outputs, rows, contender.contract),
        latency=summarise_latency(run.timings[0]) if is_timed else None,
        throughput=tuple(map(summarise_throughput, run.timings)) if is_timed else (),
        placement=run.placement,
        device=run.device or here.detail,
        emulation_s=_median_s(run.timings) if not is_timed else None,
        peak_memory_bytes=run.peak_memory_bytes,
        assumed=(*contender.contract.assumed, *(rows.assumed if rows is not None else ())),
        warnings=(*warnings, *run.warnings),
    )


def _median_s(timings: Sequence[RawTiming]) -> float | None:
    return float(np.median(timings[0].samples_ns)) / 1e9 if timings else None


def _score(outputs: Array | None, rows: Rows | None, contract: Contract) -> Accuracy | None:
    if outputs is None or rows is None or rows.labels is None or not contract.kind.has_classes:
        return None
    # scikit-learn is slow to import, and a measurement without labels does not need it.
    from monograph.runtime.metrics import as_probabilities, score_classifier

    return score_classifier(as_probabilities(outputs, contract.kind), rows.labels)


def raw_timings(contender: Contender, rows: Rows | None, settings: Settings) -> list[RawTiming]:
    """Time in a fresh process and return the raw nanoseconds per batch size; nothing is scored."""
    few_rows = None if rows is None else rows.take(slice(0, max(settings.batch_sizes)))
    run: RawRun = run_in_process(Job(contender, few_rows, settings))
    return list(run.timings)
