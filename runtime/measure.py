"""Measure contenders: latency and accuracy, each in a fresh process of its own.

What happens inside that process is :mod:`monograph.runtime.runner`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.models.contract import Contract
from monograph.models.data.rows import Rows
from monograph.runtime.environment import describe_environment, environment_warnings
from monograph.runtime.latency import summarise_latency, summarise_throughput
from monograph.runtime.process import call_in_fresh_process
from monograph.runtime.results import Accuracy, Measurement
from monograph.runtime.runner import OUTPUTS_FILE, ROWS_FILE
from monograph.runtime.session import usable_cores
from monograph.runtime.targets import Target
from monograph.runtime.timing import RawTiming, TimingRule

Array = npt.NDArray[Any]
BATCH_SIZES = (1, 8, 32)


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
    return Contender(name, "monograph.runtime.runner:load_onnx", arguments, contract, sha256, size_bytes)


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
    foreign = {provider: len(nodes) for provider, nodes in raw["placement"].items() if provider != target.provider}
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
        placement={provider: tuple(nodes) for provider, nodes in raw["placement"].items()},
        peak_memory_bytes=raw["peak_memory_bytes"],
        assumed=(*contender.contract.assumed, *(rows.assumed if rows is not None else ())),
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
            rows.save(folder / ROWS_FILE)
        raw = call_in_fresh_process(
            "monograph.runtime.runner:time_and_run",
            {
                "loader": contender.loader,
                "loader_arguments": dict(contender.loader_arguments),
                "contract_json": contender.contract.to_json(),
                "folder": str(folder),
                "settings": asdict(settings) | {"threads": settings.threads or usable_cores()},
            },
        )
        outputs_file = folder / OUTPUTS_FILE
        outputs = np.load(outputs_file, allow_pickle=False) if outputs_file.exists() else None
    return raw, outputs
