"""What is to be measured, how a fresh process runs it, and what comes back raw.

What happens inside that process is :mod:`monograph.runtime.runner`; what is concluded is :mod:`monograph.runtime.measure`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from monograph.models.contract import Contract
from monograph.models.data.rows import Rows
from monograph.runtime.load import LoadSpec
from monograph.runtime.loadgen import LoadgenSpec
from monograph.runtime.process import LOCAL, TIMEOUT_S, Launcher, call_in_fresh_process
from monograph.runtime.results import Environment, Evidence, Placed
from monograph.runtime.runner import OUTPUTS_FILE, ROWS_FILE, scoring_batch_size
from monograph.runtime.session import usable_cores
from monograph.runtime.streaming import Feeder, chunk_rows
from monograph.runtime.timing import ONE_RUN, RawTiming, TimingRule

if TYPE_CHECKING:
    from monograph.models.data.stream import RowStream

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
    load: LoadSpec | None = None
    """What is measured beside the timing, each in a process of its own (see :mod:`monograph.runtime.extras`)."""
    loadgen: LoadgenSpec | None = None
    profile: bool = False
    row_batches: tuple[int, ...] | None = None
    """Sizes of the batches in which the rows are run, in turn; as large ones as the contract takes by default."""

    def without_latency(self) -> Self:
        """Return them for a target whose times are no latency: one call at the first batch size says how slow it is here."""
        return replace(self, batch_sizes=self.batch_sizes[:1], rule=ONE_RUN)


@dataclass(frozen=True)
class Job:
    """One contender on its rows."""

    contender: Contender
    rows: Rows | None
    """All rows; where they are streamed, the first of them, which are timed."""
    settings: Settings
    stream: RowStream | None = None
    """All rows, read while they are run, for a target that can."""

    @property
    def streamed_row_count(self) -> int | None:
        """How many rows come in chunks; None where all are there."""
        return None if self.stream is None else self.stream.row_count


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
    environment: Environment | None = None
    """Of another machine, where one ran it."""


def run_in_process(job: Job, launcher: Launcher = LOCAL, timeout_s: float = TIMEOUT_S) -> RawRun:
    """Load, time and run in a fresh process that ``launcher`` starts, for no more than ``timeout_s`` seconds in all.

    Raises:
        MonographError: the contender cannot be loaded or run.
    """
    with tempfile.TemporaryDirectory(prefix="monograph-rows-") as name:
        folder = Path(name)
        with feeding(job, folder):
            raw = call_with_rows(TIME_AND_RUN, job, folder, launcher, timeout_s, streamed_row_count=job.streamed_row_count)
        outputs = read_outputs(job, folder)
    return raw_run_of(raw, outputs)


TIME_AND_RUN = "monograph.runtime.runner:time_and_run"


def request_of(function: str, job: Job, folder: Path) -> dict[str, Any]:
    """Return the function and the arguments of the measuring process; its rows lie in ``folder``, its outputs go there."""
    return {"function": function, "arguments": _arguments(job, folder)}


def _arguments(job: Job, folder: Path) -> dict[str, Any]:
    contender, settings = job.contender, job.settings
    return {
        "loader": contender.loader,
        "loader_arguments": dict(contender.loader_arguments),
        "contract_json": contender.contract.to_json(),
        "folder": str(folder),
        "settings": asdict(settings) | {"threads": settings.threads or usable_cores()},
    }


def raw_run_of(raw: Mapping[str, Any], outputs: Array | None) -> RawRun:
    """Return what the measuring process told, with the outputs that it wrote."""
    return RawRun(
        timings=tuple(RawTiming.from_record(record) for record in raw["timings"]),
        outputs=outputs,
        placement=tuple(Placed(**record | _tuples(record)) for record in raw["placement"]),
        peak_memory_bytes=raw["peak_memory_bytes"],
    )


def read_outputs(job: Job, folder: Path) -> Array | None:
    """Return what the measuring process wrote of the outputs; those of streamed rows stay on disk."""
    outputs_file = folder / OUTPUTS_FILE
    # A mapped file that is removed stays readable until nothing maps it any more.
    mode: Literal["r"] | None = None if job.stream is None else "r"
    return np.load(outputs_file, mmap_mode=mode, allow_pickle=False) if outputs_file.exists() else None


def feeding(job: Job, folder: Path) -> AbstractContextManager[object]:
    """Hand streamed rows to the measuring process, in ``folder``, while the block lasts."""
    if job.stream is None or job.rows is None:
        return nullcontext()
    return Feeder(job.stream, folder, chunk_rows(job.rows, scoring_batch_size(job.contender.contract)))


def call_in_process(function: str, job: Job, launcher: Launcher = LOCAL) -> Any:
    """Call one of :mod:`monograph.runtime.extra_runs`' functions in a fresh process.

    Raises:
        MonographError: the contender cannot be loaded or run.
    """
    with tempfile.TemporaryDirectory(prefix="monograph-extras-") as folder:
        return call_with_rows(function, job, Path(folder), launcher)


def call_with_rows(
    function: str, job: Job, folder: Path, launcher: Launcher = LOCAL, timeout_s: float = TIMEOUT_S, **arguments: Any
) -> Any:
    """Call one of :mod:`monograph.runtime.runner`'s functions in a fresh process, with the rows of ``job`` in ``folder``.

    Raises:
        MonographError: the contender cannot be loaded or run.
    """
    if job.rows is not None:
        job.rows.save(folder / ROWS_FILE)
    return call_in_fresh_process(function, _arguments(job, folder) | arguments, timeout_s=timeout_s, launcher=launcher)


def _tuples(record: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(record[name]) for name in ("nodes", "op_types")}
