"""Run and time one contender inside the measuring process, which imports ONNX Runtime, numpy and nothing more.

The other side, which starts that process and draws conclusions, is :mod:`monograph.runtime.measure`.
"""

from __future__ import annotations

import importlib
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from monograph.errors import WorkerError
from monograph.models.contract import Contract, random_inputs
from monograph.models.data.rows import Rows
from monograph.runtime.results import Placed
from monograph.runtime.session import ORT_ERRORS, Session, first_line, open_session
from monograph.runtime.session_spec import SessionSpec
from monograph.runtime.streaming import run_chunks
from monograph.runtime.timing import TimingRule, time_calls

Array = npt.NDArray[Any]
ROWS_FILE, OUTPUTS_FILE = "rows.npz", "outputs.npy"
_SCORING_BATCH_SIZE = 32
_TIMING_SEQUENCE_LENGTH = 64
_DEVICE_RUNS = 100


class Runner(Protocol):
    """Something loaded that computes outputs from inputs."""

    def __call__(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Compute one batch."""

    def bind(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """Return the bare call on these inputs, with nothing around it that timing would count."""

    def placement(self) -> list[Placed]:
        """Return what ran where; empty where ONNX Runtime did not run it."""


def load_onnx(path: str, spec: Mapping[str, Any], threads: int, spinning: bool) -> Session:
    """Child side: load an ONNX file, recording which provider takes each node."""
    session = SessionSpec.from_record(spec)
    return open_session(Path(path), spec=session, threads=threads, spinning=spinning, record_placement=True)


def time_and_run(
    loader: str,
    loader_arguments: Mapping[str, Any],
    contract_json: str,
    folder: str,
    settings: Mapping[str, Any],
    streamed_row_count: int | None = None,
) -> dict[str, Any]:
    """Child side: load, time at each batch size, then run all rows once; returns raw nanoseconds.

    Where rows are streamed, so many come in chunks, and the file of rows holds those that are timed.
    """
    contract, rows = Contract.from_json(contract_json), read_rows(folder)
    load = find_loader(loader)
    rule = TimingRule(**settings["rule"])

    start = time.perf_counter_ns()
    runner = load(**loader_arguments, threads=settings["threads"], spinning=settings["spinning"])
    create_ns = time.perf_counter_ns() - start
    timings = []
    for batch_size in possible_batch_sizes(contract, settings["batch_sizes"]):
        inputs = timing_inputs(contract, rows, batch_size)
        call = runner.bind(inputs)
        try:
            timing = time_calls(call, batch_size, create_ns, rule)
            if isinstance(runner, Session):
                timing = replace(timing, device_ns=runner.time_on_device(inputs, _DEVICE_RUNS))
            timings.append(asdict(timing))
        except ORT_ERRORS as error:
            raise WorkerError(f"the model failed while running at batch {batch_size}: {first_line(error)}") from error
    peak = peak_memory_bytes()
    if streamed_row_count is not None:
        run = partial(run_all_rows, runner, contract)
        run_chunks(run, Path(folder), Path(folder) / OUTPUTS_FILE, streamed_row_count)
    elif rows is not None:
        outputs = run_all_rows(runner, contract, rows, settings["row_batches"])
        np.save(Path(folder) / OUTPUTS_FILE, outputs, allow_pickle=False)
    return {"timings": timings, "placement": [asdict(placed) for placed in runner.placement()], "peak_memory_bytes": peak}


def read_rows(folder: str) -> Rows | None:
    """Return the rows that the other side wrote to ``folder``, if any."""
    rows_file = Path(folder) / ROWS_FILE
    return Rows.load(rows_file) if rows_file.exists() else None


def find_loader(loader: str) -> Callable[..., Runner]:
    """Return the function that is named ``module:function``."""
    module_name, _, function_name = loader.partition(":")
    found: Callable[..., Runner] = getattr(importlib.import_module(module_name), function_name)
    return found


def run_all_rows(
    runner: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    contract: Contract,
    rows: Rows,
    batch_sizes: Sequence[int] | None = None,
) -> Array:
    """Return the primary output for every row ``[n, …]``; a fixed batch size is filled up by repeating rows.

    ``batch_sizes`` cuts the rows into batches of these sizes in turn, where another cut would be another computation.
    """
    fixed = _fixed_batch_size(contract)
    sizes = batch_sizes or [scoring_batch_size(contract)] * math.ceil(len(rows) / scoring_batch_size(contract))
    outputs, start = [], 0
    for size in sizes:
        indices = np.arange(start, start + size)
        real_count = int((indices < len(rows)).sum())
        batch = rows.take(indices % len(rows) if fixed else indices[:real_count])
        outputs.append(runner(_taken(batch, contract))[contract.output.name][:real_count])
        start += size
    return np.concatenate(outputs)


def scoring_batch_size(contract: Contract) -> int:
    """Return how many rows are run at a time where nothing is timed."""
    return _fixed_batch_size(contract) or _SCORING_BATCH_SIZE


def _fixed_batch_size(contract: Contract) -> int | None:
    first = contract.inputs[0].shape[0] if contract.inputs[0].shape else 1
    return first if isinstance(first, int) else None


def possible_batch_sizes(contract: Contract, wanted: Sequence[int]) -> list[int]:
    """Return the batch sizes ``wanted``, or the only one that the model takes."""
    fixed = _fixed_batch_size(contract)
    return list(wanted) if fixed is None else [fixed]


def timing_inputs(contract: Contract, rows: Rows | None, batch_size: int) -> dict[str, Array]:
    """Return the first rows there are, repeated where they are too few, or random ones."""
    if rows is None:
        return random_inputs(contract, batch_size, np.random.default_rng(0), _TIMING_SEQUENCE_LENGTH)
    return _taken(rows.take(np.arange(batch_size) % len(rows)), contract)


def _taken(rows: Rows, contract: Contract) -> dict[str, Array]:
    """Return the inputs that a model takes, of rows that may be prepared for another one that takes more."""
    names = {spec.name for spec in contract.inputs}
    return {name: array for name, array in rows.inputs.items() if name in names}


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # On Linux `ru_maxrss` starts at the size of the process that forked this one; VmHWM starts at exec.
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
