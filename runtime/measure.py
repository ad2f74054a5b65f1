"""Measure contenders: latency and accuracy, each in a fresh process of its own.

Parent side: :func:`measure`. Child side: :func:`time_and_run`, which imports what the contender's loader needs and
nothing else: for an ONNX file that is ONNX Runtime and numpy.
"""

from __future__ import annotations

import importlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from monograph.models.contract import Contract, random_inputs
from monograph.models.data.rows import Rows
from monograph.runtime.environment import describe_environment, environment_warnings
from monograph.runtime.latency import RawTiming, TimingRule, summarise_latency, summarise_throughput, time_calls
from monograph.runtime.process import call_in_fresh_process
from monograph.runtime.results import Accuracy, Measurement
from monograph.runtime.session import Session, open_session, usable_cores
from monograph.runtime.targets import Target

Array = npt.NDArray[Any]
BATCH_SIZES = (1, 8, 32)
_SCORING_BATCH_SIZE = 32
_TIMING_SEQUENCE_LENGTH = 64
_ROWS_FILE, _OUTPUTS_FILE = "rows.npz", "outputs.npy"


class Runner(Protocol):
    """Something loaded that computes outputs from inputs."""

    def __call__(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Compute one batch."""

    def bind(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """Return the bare call on these inputs, with nothing around it that timing would count."""

    def nodes_per_provider(self) -> dict[str, int]:
        """Return what ran where; empty where ONNX Runtime did not run it."""


@dataclass(frozen=True)
class Contender:
    """What is measured: how a fresh process loads it, and what is known of it."""

    name: str
    loader: str
    """``monograph.module:function``; called in the child with ``loader_arguments``, ``threads`` and ``spinning``."""
    loader_arguments: Mapping[str, Any]
    contract: Contract
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Settings:
    """How to measure; ``threads`` None means all usable cores."""

    batch_sizes: tuple[int, ...] = BATCH_SIZES
    threads: int | None = None
    spinning: bool = True
    rule: TimingRule = field(default_factory=TimingRule)


def onnx_contender(name: str, path: Path, contract: Contract, sha256: str, size_bytes: int, target: Target) -> Contender:
    """Return the contender that runs one ONNX file by ``target``'s provider."""
    arguments = {"path": str(path.absolute()), "provider": target.provider}
    return Contender(name, "monograph.runtime.measure:load_onnx", arguments, contract, sha256, size_bytes)


def load_onnx(path: str, provider: str, threads: int, spinning: bool) -> Session:
    """Child side: load an ONNX file, recording which provider takes each node."""
    return open_session(Path(path), providers=[provider], threads=threads, spinning=spinning, record_placement=True)


def measure(contender: Contender, target: Target, rows: Rows | None, settings: Settings) -> Measurement:
    """Measure in a fresh process; accuracy needs labelled ``rows`` and a classifier.

    Raises:
        MonographError: the contender cannot be loaded or run.
    """
    warnings = environment_warnings()
    raw, outputs = _run_child(contender, rows, settings)
    timings = [RawTiming.from_record(record) for record in raw["timings"]]
    threads = settings.threads or usable_cores()
    if threads > usable_cores():
        warnings.append(f"{threads} threads on {usable_cores()} usable cores: they wait for one another")
    foreign = {provider: count for provider, count in raw["nodes_per_provider"].items() if provider != target.provider}
    if foreign:
        warnings.append(f"nodes that did not run on {target.provider}: {foreign}")
    return Measurement(
        model=contender.name,
        sha256=contender.sha256,
        size_bytes=contender.size_bytes,
        target=target.name,
        evidence=target.evidence,
        environment=describe_environment(threads, settings.spinning),
        accuracy=_score(outputs, rows, contender.contract),
        latency=summarise_latency(timings[0]),
        throughput=tuple(summarise_throughput(timing) for timing in timings),
        nodes_per_provider=raw["nodes_per_provider"],
        peak_memory_bytes=raw["peak_memory_bytes"],
        warnings=tuple(warnings),
    )


def _score(outputs: Array | None, rows: Rows | None, contract: Contract) -> Accuracy | None:
    if outputs is None or rows is None or rows.labels is None or not contract.kind.has_classes:
        return None
    # scikit-learn is slow to import, and a measurement without labels does not need it.
    from monograph.runtime.metrics import as_probabilities, score_classifier

    return score_classifier(as_probabilities(outputs, contract.kind), rows.labels)


def raw_timings(contender: Contender, rows: Rows | None, settings: Settings) -> list[RawTiming]:
    """Time in a fresh process and return the raw nanoseconds per batch size; nothing is scored."""
    few_rows = None if rows is None else rows.take(slice(0, max(settings.batch_sizes)))
    raw, _ = _run_child(contender, few_rows, settings)
    return [RawTiming.from_record(record) for record in raw["timings"]]


def _run_child(contender: Contender, rows: Rows | None, settings: Settings) -> tuple[dict[str, Any], Array | None]:
    with tempfile.TemporaryDirectory(prefix="monograph-rows-") as name:
        folder = Path(name)
        if rows is not None:
            rows.save(folder / _ROWS_FILE)
        raw = call_in_fresh_process(
            "monograph.runtime.measure:time_and_run",
            {
                "loader": contender.loader,
                "loader_arguments": dict(contender.loader_arguments),
                "contract_json": contender.contract.to_json(),
                "folder": str(folder),
                "settings": asdict(settings) | {"threads": settings.threads or usable_cores()},
            },
        )
        outputs_file = folder / _OUTPUTS_FILE
        outputs = np.load(outputs_file, allow_pickle=False) if outputs_file.exists() else None
    return raw, outputs


def time_and_run(
    loader: str, loader_arguments: Mapping[str, Any], contract_json: str, folder: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Child side: load, time at each batch size, then run all rows once; returns raw nanoseconds."""
    contract = Contract.from_json(contract_json)
    rows_file = Path(folder) / _ROWS_FILE
    rows = Rows.load(rows_file) if rows_file.exists() else None
    module_name, _, function_name = loader.partition(":")
    load: Callable[..., Runner] = getattr(importlib.import_module(module_name), function_name)
    rule = TimingRule(**settings["rule"])

    start = time.perf_counter_ns()
    runner = load(**loader_arguments, threads=settings["threads"], spinning=settings["spinning"])
    create_ns = time.perf_counter_ns() - start
    timings = []
    for batch_size in _possible_batch_sizes(contract, settings["batch_sizes"]):
        call = runner.bind(_timing_inputs(contract, rows, batch_size))
        timings.append(asdict(time_calls(call, batch_size, create_ns, rule)))
    peak = _peak_memory_bytes()
    if rows is not None:
        outputs = run_all_rows(runner, contract, rows)
        np.save(Path(folder) / _OUTPUTS_FILE, outputs, allow_pickle=False)
    return {"timings": timings, "nodes_per_provider": runner.nodes_per_provider(), "peak_memory_bytes": peak}


def run_all_rows(runner: Callable[[Mapping[str, Array]], Mapping[str, Array]], contract: Contract, rows: Rows) -> Array:
    """Return the primary output for every row ``[n, …]``; a fixed batch size is filled up by repeating rows."""
    fixed = _fixed_batch_size(contract)
    batch_size = fixed or _SCORING_BATCH_SIZE
    outputs = []
    for start in range(0, len(rows), batch_size):
        indices = np.arange(start, start + batch_size)
        real_count = int((indices < len(rows)).sum())
        batch = rows.take(indices % len(rows) if fixed else indices[:real_count])
        outputs.append(runner(batch.inputs)[contract.output.name][:real_count])
    return np.concatenate(outputs)


def _fixed_batch_size(contract: Contract) -> int | None:
    first = contract.inputs[0].shape[0] if contract.inputs[0].shape else 1
    return first if isinstance(first, int) else None


def _possible_batch_sizes(contract: Contract, wanted: Sequence[int]) -> list[int]:
    fixed = _fixed_batch_size(contract)
    return list(wanted) if fixed is None else [fixed]


def _timing_inputs(contract: Contract, rows: Rows | None, batch_size: int) -> dict[str, Array]:
    """The first rows there are, repeated where they are too few, or random ones."""
    if rows is None:
        return random_inputs(contract, batch_size, np.random.default_rng(0), _TIMING_SEQUENCE_LENGTH)
    return dict(rows.take(np.arange(batch_size) % len(rows)).inputs)


def _peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
