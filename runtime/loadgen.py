"""MLPerf's LoadGen drives a session: for people who must quote its figures.

LoadGen decides when queries come, measures and judges; this module only answers them (the rules: MLPerf Inference,
https://github.com/mlcommons/inference_policies, section 3). What it measured is an official result only after a
submission by those rules: 600 s and more, the data set and accuracy that they name, and a review.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import ConfigError, MissingPackageError, WorkerError

Array = npt.NDArray[Any]
Batch = Mapping[str, Array]
SCENARIOS: dict[str, str] = {
    "single-stream": "SingleStream",
    "multi-stream": "MultiStream",
    "server": "Server",
    "offline": "Offline",
}
_SUMMARY = "mlperf_log_summary.txt"
_MOST_SAMPLES = 1024
_EARLY_STOPPING_QUERIES = 662
"""With fewer LoadGen's own rule cannot bound a 99th percentile."""
_SURPLUS = 2.0
_SAMPLES_PER_QUERY = 8
"""Of MultiStream."""
_NS_PER_S, _MS_PER_S = 1_000_000_000, 1_000


@dataclass(frozen=True)
class LoadgenSpec:
    """Which scenario, and what the scenarios Server and Offline need to be told."""

    scenario: str
    rate_per_s: float | None = None
    """Queries a second of Server; samples a second that the others may expect, by default what timing found."""
    latency_bound_s: float = 0.1
    """What 99% of Server's queries must keep."""
    concurrency: int = 1
    """Threads that answer Server's queries."""

    def check(self) -> None:
        """Raise ConfigError where something is missing or out of range."""
        if self.scenario not in SCENARIOS:
            raise ConfigError(f"unknown scenario {self.scenario!r}: choose from {', '.join(SCENARIOS)}")
        if self.scenario == "server" and not self.rate_per_s:
            raise ConfigError("--scenario server needs the rate at which queries come: add --rate QUERIES_PER_SECOND")
        if self.latency_bound_s <= 0:
            raise ConfigError(f"latency bound of {self.latency_bound_s:g} s: give one above 0")


@dataclass(frozen=True)
class Limits:
    """How long LoadGen asks; it may go on until its own rule for enough queries is met."""

    min_runs: int
    min_s: float
    max_s: float


def check_loadgen() -> None:
    """Raise MissingPackageError where LoadGen is not installed."""
    _loadgen()


def _loadgen() -> Any:
    try:
        return importlib.import_module("mlperf_loadgen")
    except ImportError as error:
        raise MissingPackageError("--scenario needs MLPerf's LoadGen: pip install mlcommons-loadgen") from error


def drive(
    run: Callable[[Batch], object],
    samples: Batch,
    spec: LoadgenSpec,
    limits: Limits,
    folder: Path,
    *,
    batch_size: int = 1,
    one_by_one: bool = False,
) -> dict[str, Any]:
    """Let LoadGen ask ``run`` for samples, one row of ``samples`` each, and return its summary.

    Args:
        run: answers a batch; called by several threads in Server.
        samples: arrays by input name, ``[n, …]`` each.
        spec: the scenario.
        limits: how long.
        folder: where LoadGen writes its logs.
        batch_size: of the calls that Offline's one large query is divided into.
        one_by_one: give ``run`` one sample a call, whatever a query holds.

    Raises:
        WorkerError: ``run`` failed, or LoadGen left no summary.
    """
    loadgen = _loadgen()
    sample_count = len(next(iter(samples.values())))
    failures: list[Exception] = []
    answer = _answerer(loadgen, run, samples, failures)
    pool = ThreadPoolExecutor(spec.concurrency) if spec.scenario == "server" else None

    def issue(queries: Sequence[Any]) -> None:
        if pool is not None:
            for query in queries:
                pool.submit(answer, [query])
            return
        # MultiStream's query is one batch; SingleStream's is one sample.
        size = 1 if one_by_one else batch_size if spec.scenario == "offline" else len(queries)
        for start in range(0, len(queries), size):
            answer(queries[start : start + size])

    service = loadgen.ConstructSUT(issue, lambda: None)
    library = loadgen.ConstructQSL(sample_count, min(sample_count, _MOST_SAMPLES), lambda _: None, lambda _: None)
    try:
        settings = _test_settings(loadgen, spec, limits)
        loadgen.StartTestWithLogSettings(service, library, settings, _log_settings(loadgen, folder), str(folder / "audit.config"))
    finally:
        if pool is not None:
            pool.shutdown()
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(service)
    if failures:
        raise WorkerError(f"the model failed while LoadGen drove it: {failures[0]}") from failures[0]
    return {"scenario": spec.scenario} | _read_summary(folder / _SUMMARY)


def _answerer(
    loadgen: Any, run: Callable[[Batch], object], samples: Batch, failures: list[Exception]
) -> Callable[[Sequence[Any]], None]:
    lock = threading.Lock()

    def answer(queries: Sequence[Any]) -> None:
        indices = np.array([query.index for query in queries])
        try:
            if not failures:
                run({name: array[indices] for name, array in samples.items()})
        except Exception as error:  # noqa: BLE001  (raised by drive: LoadGen would wait for the answer for ever)
            with lock:
                failures.append(error)
        loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(query.id, 0, 0) for query in queries])

    return answer


def _test_settings(loadgen: Any, spec: LoadgenSpec, limits: Limits) -> Any:
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, SCENARIOS[spec.scenario])
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_query_count = 1 if spec.scenario == "offline" else max(limits.min_runs, _EARLY_STOPPING_QUERIES)
    settings.min_duration_ms = int(limits.min_s * _MS_PER_S)
    settings.max_duration_ms = int(limits.max_s * _MS_PER_S)
    if spec.scenario == "server":
        settings.server_target_qps = float(spec.rate_per_s or 0)
        settings.server_target_latency_ns = int(spec.latency_bound_s * _NS_PER_S)
    # From these LoadGen makes as many queries beforehand as the least duration should take; too few would end it early.
    samples_per_s = spec.rate_per_s or limits.min_runs / max(limits.min_s, 1e-3)
    settings.offline_expected_qps = float(_SURPLUS * samples_per_s)
    settings.single_stream_expected_latency_ns = int(_NS_PER_S / (_SURPLUS * samples_per_s)) + 1
    settings.multi_stream_expected_latency_ns = int(_NS_PER_S * _SAMPLES_PER_QUERY / (_SURPLUS * samples_per_s)) + 1
    return settings


def _log_settings(loadgen: Any, folder: Path) -> Any:
    settings = loadgen.LogSettings()
    settings.log_output.outdir = str(folder)
    settings.log_output.copy_summary_to_stdout = False
    settings.enable_trace = False
    return settings


def _read_summary(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise WorkerError("LoadGen ended without a summary: run again with --json and look at the warnings")
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line.partition(":") for line in text.splitlines() if ":" in line]
    summary = {key.strip(): value.strip() for key, _, value in lines if value.strip()}
    return {"is_valid": summary.get("Result is") == "VALID", "summary": summary}
