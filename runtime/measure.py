"""Measure contenders: latency and accuracy, each in a fresh process of its own, and what may be claimed of them.

How a process is started and what it gives back is :mod:`monograph.runtime.job`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from monograph.models.contract import Contract
from monograph.models.data.rows import Rows
from monograph.runtime import staged
from monograph.runtime.environment import describe_environment, environment_doubts, environment_warnings, look_before
from monograph.runtime.extras import Extras, check_extras, measure_extras
from monograph.runtime.job import BATCH_SIZES, Contender, Job, RawRun, Settings, run_in_process
from monograph.runtime.latency import summarise_latency, summarise_throughput, timing_warnings
from monograph.runtime.placement import check_placement
from monograph.runtime.results import Accuracy, Measurement, Scorecard
from monograph.runtime.session import usable_cores
from monograph.runtime.targets import Target
from monograph.runtime.timing import RawTiming

if TYPE_CHECKING:
    from monograph.models.data.stream import RowStream

Array = npt.NDArray[Any]
_ONE_FILE = "monograph.runtime.runner:load_onnx"
__all__ = ["BATCH_SIZES", "Contender", "Settings", "measure", "onnx_contender", "raw_timings"]


def onnx_contender(name: str, path: Path, contract: Contract, sha256: str, size_bytes: int, target: Target) -> Contender:
    """Return the contender that runs one ONNX file, or a cascade in stages, by ``target``'s provider."""
    arguments = {"path": str(path.absolute()), "spec": asdict(target.session)}
    loader = staged.LOADER if path.is_dir() else _ONE_FILE
    return Contender(name, loader, arguments, contract, sha256, size_bytes, path.absolute())


def measure(
    contender: Contender,
    target: Target,
    rows: Rows | RowStream | None,
    settings: Settings,
    on_run: Callable[[RawRun], None] = lambda run: None,
) -> Measurement:
    """Measure on ``target``; accuracy needs labelled ``rows``. ``on_run`` is told what the run gave, outputs included.

    Raises:
        ConfigError: the target is not here.
        PlacementError: something else ran the model, or a part of it that counts.
        MonographError: the contender cannot be loaded or run.
    """
    here = target.require_here()
    check_extras([target], settings)
    warnings, before = environment_warnings(), look_before()
    threads = settings.threads or usable_cores()
    if threads > usable_cores():
        warnings.append(f"{threads} threads on {usable_cores()} usable cores: they wait for one another")
    job = _job(contender, target, rows, settings if target.gives_latency else settings.without_latency())
    run = target.run(job)
    if run.environment is not None:
        warnings = []  # what is wrong with this machine means nothing to another
    if run.placement:
        warnings += check_placement(
            run.placement,
            target.provider,
            target.name,
            allow_fallback=settings.allow_fallback,
            is_strict=target.is_strict,
        )
    on_run(run)
    evidence = run.evidence or here.evidence or target.evidence
    scorecard, accuracy = _score(run.outputs, rows, contender.contract)
    is_timed = bool(run.timings) and evidence.gives_latency
    if is_timed:
        warnings += [warning for raw in run.timings for warning in timing_warnings(raw)]
    if is_timed and len({placed.provider for placed in run.placement}) > 1 and contender.loader == _ONE_FILE:
        job = replace(job, settings=replace(job.settings, profile=True))  # a mixture: whose time is it?
    extras = measure_extras(job, target, run.timings) if is_timed else Extras()
    environment = run.environment or replace(
        describe_environment(threads, settings.spinning, before), instruction_set=target.instruction_set()
    )
    if run.environment is None:
        warnings += environment_doubts(environment)
    return Measurement(
        model=contender.name,
        sha256=contender.sha256,
        size_bytes=contender.size_bytes,
        target=target.name,
        evidence=evidence,
        environment=environment,
        accuracy=accuracy,
        scorecard=scorecard,
        latency=summarise_latency(run.timings[0]) if is_timed else None,
        throughput=tuple(map(summarise_throughput, run.timings)) if is_timed else (),
        placement=run.placement,
        device=run.device or here.detail,
        provider_options=dict(target.session.options),
        emulation_s=_median_s(run.timings) if not is_timed else None,
        peak_memory_bytes=run.peak_memory_bytes,
        assumed=(*contender.contract.assumed, *(rows.assumed if rows is not None else ())),
        load=extras.load,
        loadgen=extras.loadgen,
        profile=extras.profile,
        warnings=(*warnings, *run.warnings, *extras.warnings),
    )


def _job(contender: Contender, target: Target, rows: Rows | RowStream | None, settings: Settings) -> Job:
    """Return what the target is to run: rows as they are read, where it can take them so."""
    if rows is None or isinstance(rows, Rows):
        return Job(contender, rows, settings)
    if not target.streams_rows:
        return Job(contender, rows.read(0, rows.row_count), settings)
    return Job(contender, rows.read(0, max(settings.batch_sizes)), settings, rows)


def _median_s(timings: Sequence[RawTiming]) -> float | None:
    return float(np.median(timings[0].samples_ns)) / 1e9 if timings else None


def _score(outputs: Array | None, rows: Rows | RowStream | None, contract: Contract) -> tuple[Scorecard | None, Accuracy | None]:
    if outputs is None or rows is None or rows.labels is None:
        return None, None
    # scikit-learn is slow to import, and a measurement without labels does not need it.
    from monograph.runtime.metrics import score

    groups, slices = (None, {}) if isinstance(rows, Rows) else (rows.groups, rows.slices)
    return score(outputs, rows.labels, contract, groups=groups, slices=slices, class_names=rows.class_names)


def raw_timings(
    contender: Contender, rows: Rows | None, settings: Settings, run: Callable[[Job], RawRun] = run_in_process
) -> list[RawTiming]:
    """Time in a fresh process and return the raw nanoseconds per batch size; nothing is scored."""
    few_rows = None if rows is None else rows.take(slice(0, max(settings.batch_sizes)))
    return list(run(Job(contender, few_rows, settings)).timings)
