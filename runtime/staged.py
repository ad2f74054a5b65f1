"""A cascade as sessions of its own, one a stage: for targets that know no If, and for a member on a processor of its own.

A folder holds ``stage-1.onnx``, ``stage-2.onnx`` … and ``cascade.json``, which any language can follow:

- ``stages`` in order, each with its ``file``, the names of its ``inputs``, and of its outputs ``answer`` ``[b x c]``, ``hard``
  ``bool [b]`` (null in the last) and ``carried``, which later stages take as inputs.
- Run the first stage on all rows. Run the next one on those rows alone whose ``hard`` is true, if there are any, on their part of
  the inputs and of what was carried; write its answers over theirs. Go on with the rows that are hard there.

Shape letters: ``b`` rows, ``c`` classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from monograph.errors import SourceError
from monograph.models.bounded import read_json
from monograph.models.contract import Contract
from monograph.models.files import is_plain_name
from monograph.runtime.results import Placed
from monograph.runtime.session import Session, open_session
from monograph.runtime.session_spec import SessionSpec

if TYPE_CHECKING:
    from monograph.models.onnx_file import OnnxFile

Array = npt.NDArray[Any]
PLAN_FILE, PLAN_VERSION = "cascade.json", 1
LOADER = "monograph.runtime.staged:load_staged"


@dataclass(frozen=True)
class Stage:
    """One file of the cascade."""

    file: str
    inputs: tuple[str, ...]
    answer: str
    hard: str | None
    """None in the last."""
    carried: tuple[str, ...] = ()
    """Outputs that later stages take."""


@dataclass(frozen=True)
class StagedPlan:
    """What ``cascade.json`` says."""

    contract: Contract
    stages: tuple[Stage, ...]

    def to_json(self) -> str:
        """Return the text of the file."""
        stages = [vars(stage) | {"inputs": list(stage.inputs), "carried": list(stage.carried)} for stage in self.stages]
        return json.dumps({"version": PLAN_VERSION, "contract": json.loads(self.contract.to_json()), "stages": stages}, indent=2)


def is_staged(path: Path) -> bool:
    """Say whether ``path`` is the folder of a cascade in stages."""
    return (path / PLAN_FILE).is_file()


def read_plan(folder: Path) -> StagedPlan:
    """Read ``cascade.json``.

    Raises:
        SourceError: it is damaged, of another version, or names a file that is missing or lies elsewhere.
    """
    path = folder / PLAN_FILE
    try:
        record = read_json(path)
        if record["version"] != PLAN_VERSION:
            raise SourceError(f"{path} is of version {record['version']}, this monograph reads {PLAN_VERSION}: update monograph")
        contract = Contract.from_json(json.dumps(record["contract"]))
        stages = tuple(
            Stage(
                _plain_name(stage["file"]),
                tuple(map(str, stage["inputs"])),
                str(stage["answer"]),
                None if stage["hard"] is None else str(stage["hard"]),
                tuple(map(str, stage["carried"])),
            )
            for stage in record["stages"]
        )
        if not stages or any(stage.hard is None for stage in stages[:-1]) or stages[-1].hard is not None:
            raise ValueError("every stage but the last has to tell which rows are hard")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path} is damaged ({error}): lower the cascade again with --to sessions") from error
    for stage in stages:
        if not (folder / stage.file).is_file():
            raise SourceError(f"{folder / stage.file} is missing: copy it there, or lower the cascade again with --to sessions")
    return StagedPlan(contract, stages)


def _plain_name(name: Any) -> str:
    if not is_plain_name(name):
        raise ValueError(f"{name!r} is no plain name of a file")
    return str(name)


class StagedSessions:
    """A cascade in stages: call it with ``{input name: array}`` to get ``{output name: array}``, as any session."""

    def __init__(self, path: Path, plan: StagedPlan, sessions: Sequence[Session]) -> None:
        self.path, self.plan, self.sessions = path, plan, sessions
        self.input_names = [spec.name for spec in plan.contract.inputs]
        self.output_names = [plan.contract.output.name]

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch.

        Raises:
            WorkerError: an input is missing, or ONNX Runtime failed while running.
        """
        answer: Array | None = None
        known: dict[str, Array] = dict(inputs)
        rows = np.arange(len(next(iter(inputs.values()))))
        for stage, session in zip(self.plan.stages, self.sessions, strict=True):
            outputs = _run(session, {name: known[name] for name in stage.inputs}, len(rows))
            if answer is None:
                answer = outputs[stage.answer]
                # Outputs of ONNX Runtime may be read-only views of its own memory.
                answer = answer if answer.flags.writeable else answer.copy()
            else:
                answer[rows] = outputs[stage.answer]
            if stage.hard is None:
                break
            hard = np.flatnonzero(outputs[stage.hard])
            if not len(hard):
                break
            rows = rows[hard]
            known = {name: array[hard] for name, array in (known | {name: outputs[name] for name in stage.carried}).items()}
        assert answer is not None
        return {self.output_names[0]: answer}

    def bind(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """Return the call on these inputs; what drives the sessions counts, for somebody has to do it."""
        return partial(self, dict(inputs))

    def placement(self) -> list[Placed]:
        """Return what each execution provider runs of all stages, nodes named by their stage."""
        found: dict[str, Placed] = {}
        for stage, session in zip(self.plan.stages, self.sessions, strict=True):
            for placed in session.placement():
                names = tuple(f"{Path(stage.file).stem}/{node}" for node in placed.nodes)
                before = found.get(placed.provider, Placed(placed.provider, (), (), 0))
                found[placed.provider] = replace(
                    before,
                    nodes=before.nodes + names,
                    op_types=before.op_types + placed.op_types,
                    partition_count=before.partition_count + placed.partition_count,
                )
        return list(found.values())


def open_staged(
    folder: Path, *, spec: SessionSpec | None = None, threads: int | None = None, record_placement: bool = False
) -> StagedSessions:
    """Load all stages. Their threads do not spin while they wait: they would take the cores from one another.

    Raises:
        SourceError: the plan is damaged, or ONNX Runtime cannot load a stage.
    """
    plan = read_plan(folder)
    sessions = [
        open_session(folder / stage.file, spec=spec, threads=threads, record_placement=record_placement) for stage in plan.stages
    ]
    return StagedSessions(folder, plan, sessions)


def staged_files(folder: Path) -> list[Path]:
    """Return all files of the cascade, the plan first, external data after its model.

    Raises:
        SourceError: the plan or a stage is damaged.
    """
    from monograph.models.onnx_file import model_files  # slow to import, and a measuring process does without it

    stages = [folder / stage.file for stage in read_plan(folder).stages]
    return [folder / PLAN_FILE, *dict.fromkeys(file for stage in stages for file in model_files(stage))]


def read_staged(folder: Path) -> OnnxFile:
    """Check a cascade in stages and describe it as one model: the contract of the whole, the digest over all its files.

    Raises:
        SourceError: the plan or a stage is damaged.
    """
    from monograph.models.files import sha256_of_files
    from monograph.models.onnx_file import read_onnx

    plan = read_plan(folder)
    first, *_ = [read_onnx(folder / stage.file) for stage in plan.stages]
    files = staged_files(folder)
    size_bytes = sum(file.stat().st_size for file in files)
    return replace(first, path=folder, contract=plan.contract, sha256=sha256_of_files(files), size_bytes=size_bytes)


def load_staged(path: str, spec: Mapping[str, Any], threads: int, spinning: bool) -> StagedSessions:
    """Child side: load the stages, recording which provider takes each node."""
    del spinning
    return open_staged(Path(path), spec=SessionSpec.from_record(spec), threads=threads, record_placement=True)


def _run(session: Session, inputs: Mapping[str, Array], row_count: int) -> dict[str, Array]:
    """Run all rows, as many at a time as a stage of a fixed batch takes, the last time filled up by repeating rows."""
    fixed = session.batch_size
    if fixed is None or fixed == row_count:
        return session(inputs)
    parts = []
    for start in range(0, row_count, fixed):
        indices = np.arange(start, start + fixed) % row_count
        parts.append(session({name: array[indices] for name, array in inputs.items()}))
    return {name: np.concatenate([part[name] for part in parts])[:row_count] for name in parts[0]}
