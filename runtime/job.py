"""What is to be measured, how a fresh process runs it, and what comes back raw.

What happens inside that process is :mod:`monograph.runtime.runner`; what is concluded is :mod:`monograph.runtime.measure`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.models.contract import Contract
from monograph.models.data.rows import Rows
from monograph.runtime.process import LOCAL, Launcher, call_in_fresh_process
from monograph.runtime.results import Evidence, Placed
from monograph.runtime.runner import OUTPUTS_FILE, ROWS_FILE
from monograph.runtime.session import usable_cores
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
    path: Path | None = None
    """The ONNX file; None where it is something else that is measured beside one."""


@dataclass(frozen=True)
class Settings:
    """How to measure; ``threads`` None means all usable cores."""

    batch_sizes: tuple[int, ...] = BATCH_SIZES
    threads: int | None = None
    spinning: bool = True
    rule: TimingRule = field(default_factory=TimingRule)
    allow_fallback: bool = False
    """Whether nodes that a target cannot take may run elsewhere."""


EMULATED_RULE = TimingRule(min_runs=2, min_s=0.0, max_s=0.0, warmup_s=0.0)
"""Where a call takes seconds and its time says nothing of the hardware."""


@dataclass(frozen=True)
class Job:
    """One contender on its rows."""

    contender: Contender
    rows: Rows | None
    settings: Settings


@dataclass(frozen=True)
class RawRun:
    """What one run gave, with nothing concluded yet."""

    timings: tuple[RawTiming, ...]
    """One a batch size; none where nothing ran."""
    outputs: Array | None
    """The primary output for every row ``[n, …]``."""
    placement: tuple[Placed, ...]
    peak_memory_bytes: int | None = None
    device: str | None = None
    evidence: Evidence | None = None
    """Where the run tells better than the target what its figures are worth."""
    warnings: tuple[str, ...] = ()


def run_in_process(job: Job, launcher: Launcher = LOCAL) -> RawRun:
    """Load, time and run in a fresh process that ``launcher`` starts.

    Raises:
        MonographError: the contender cannot be loaded or run.
    """
    contender, rows, settings = job.contender, job.rows, job.settings
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
            launcher=launcher,
        )
        outputs_file = folder / OUTPUTS_FILE
        outputs = np.load(outputs_file, allow_pickle=False) if outputs_file.exists() else None
    return RawRun(
        timings=tuple(RawTiming.from_record(record) for record in raw["timings"]),
        outputs=outputs,
        placement=tuple(Placed(**record | _tuples(record)) for record in raw["placement"]),
        peak_memory_bytes=raw["peak_memory_bytes"],
    )


def run_emulated(job: Job, launcher: Launcher = LOCAL) -> RawRun:
    """Run as :func:`run_in_process` does, where the hardware is emulated: all rows, but few timed calls of one batch size.

    Raises:
        MonographError: the contender cannot be loaded or run.
    """
    settings = replace(job.settings, batch_sizes=job.settings.batch_sizes[:1], rule=EMULATED_RULE)
    return run_in_process(replace(job, settings=settings), launcher)


def _tuples(record: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(record[name]) for name in ("nodes", "op_types")}
