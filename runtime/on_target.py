"""A model as a target runs it, to be called with batches: what a proof that is run again asks of a target.

In this process where the target opens sessions here; else by the target's own way to run a job, all batches of one form at a
time, so that a browser or an emulator starts once for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import ConfigError, MonographError, SourceError, WorkerError
from monograph.models.contract import Contract
from monograph.models.data.rows import Rows
from monograph.runtime.golden import inputs_sha256
from monograph.runtime.job import Job, Settings, run_in_process
from monograph.runtime.measure import onnx_contender
from monograph.runtime.placement import check_placement
from monograph.runtime.results import Evidence
from monograph.runtime.session import Session, open_session
from monograph.runtime.targets import Target
from monograph.runtime.timing import ONE_RUN

Array = npt.NDArray[Any]
Inputs = Mapping[str, Array]


class SentSession:
    """A model that a target runs in a process, a page or a machine of its own; it gives the contract's primary output.

    Call :meth:`prepare` with the batches to come: they are then run together.
    """

    def __init__(self, path: Path, contract: Contract, target: Target) -> None:
        self.path, self.target, self.contract = path, target, contract
        self.input_names = [spec.name for spec in contract.inputs]
        self.output_names = [contract.output.name]
        self.evidence: Evidence | None = None
        """Where a run told better than the target what it is worth."""
        self.warnings: tuple[str, ...] = ()
        self._answers: dict[str, Array | SourceError | WorkerError] = {}

    def __call__(self, inputs: Inputs) -> dict[str, Array]:
        """Return the output for one batch.

        Raises:
            SourceError: the target cannot load the model.
            WorkerError: it failed while running.
            PlacementError: something else ran the model.
        """
        key = inputs_sha256(inputs)
        if key not in self._answers:
            self.prepare([inputs])
        answer = self._answers[key]
        if isinstance(answer, MonographError):
            raise answer
        return {self.contract.output.name: answer}

    def prepare(self, batches: Sequence[Inputs]) -> None:
        """Run batches, those whose rows are of one form together; what cannot be run is told when it is asked for.

        Raises:
            PlacementError: something else than the target ran the model.
        """
        groups: dict[tuple[object, ...], dict[str, Inputs]] = {}
        for inputs in batches:
            form = tuple((name, array.shape[1:], array.dtype.str) for name, array in inputs.items())
            groups.setdefault(form, {})[inputs_sha256(inputs)] = inputs
        for group in groups.values():
            try:
                self._answers |= dict(zip(group, self._run(list(group.values())), strict=True))
            except (SourceError, WorkerError) as error:
                self._answers |= dict.fromkeys(group, error)

    def _run(self, batches: Sequence[Inputs]) -> list[Array]:
        sizes = tuple(len(next(iter(inputs.values()))) for inputs in batches)
        rows = Rows({name: np.concatenate([inputs[name] for inputs in batches]) for name in batches[0]}, origin="golden batches")
        contender = onnx_contender(self.path.stem, self.path, self.contract, "", 0, self.target)
        settings = Settings(batch_sizes=sizes[:1], rule=ONE_RUN, row_batches=sizes)
        run = self.target.run(Job(contender, rows, settings))
        self.warnings += tuple(
            warning for warning in (*run.warnings, *_checked(run.placement, self.target)) if warning not in self.warnings
        )
        self.evidence = run.evidence or self.evidence
        if run.outputs is None:
            raise ConfigError(f"nothing runs on {self.target.name} here: {self.target.describe()}")
        return np.split(run.outputs, np.cumsum(sizes)[:-1])


def open_on_target(path: Path, contract: Contract, target: Target) -> Session | SentSession:
    """Return the model as ``target`` runs it.

    Raises:
        ConfigError: the target is not here, or nothing runs on it here.
        SourceError: it cannot load the model.
        PlacementError: something else would run the model.
    """
    check_runs_here(target)
    if target.run is not run_in_process or target.session.plugin is not None:  # a plugin's library may print, or die
        return SentSession(path, contract, target)
    session = open_session(path, spec=target.session, record_placement=True)
    _checked(session.placement(), target)
    return session


def check_runs_here(target: Target) -> None:
    """Refuse a target that is missing, or that is only predicted.

    Raises:
        ConfigError: nothing runs on it here.
    """
    here = target.require_here()
    if target.evidence is Evidence.PREDICTED:
        raise ConfigError(f"nothing runs on {target.name} here: {here.describe()}")


def _checked(placement: Any, target: Target) -> list[str]:
    return check_placement(placement, target.provider, target.name, allow_fallback=False, is_strict=target.is_strict)
