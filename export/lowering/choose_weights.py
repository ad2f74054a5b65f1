"""Which form of 8-bit weights a model gets: the more accurate one, unless it is much slower here for little accuracy.

Each form is exact on every processor that the file is for, so that the choice is between accuracy and speed alone. Both are
measured: the error on rows, the time interleaved on this processor.

Shape letters: ``n`` rows, ``c`` classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from monograph.export.lowering.lowering import Lowering, LoweringJob
from monograph.export.lowering.weight_forms import WEIGHT_FORMS, UnsignedWeightsPass, WeightForm
from monograph.models.contract import Contract
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import load_graph
from monograph.runtime.runner import run_all_rows
from monograph.runtime.session import Session, open_session

Array = npt.NDArray[Any]
_ROWS = 128
_CLEARLY_LESS = 0.9
"""Share of the other form's error: about 1 dB."""
_MUCH_SLOWER = 1.5
_LITTLE_AGREEMENT = 0.005
_LITTLE_ERROR = 0.02
_TIMING_S = 0.5
_MOST_ROUNDS = 30
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class TriedForm:
    """One form of the weights, measured on rows."""

    form: str
    error: float
    """Root mean square error of the primary output, as a share of the source's root mean square."""
    top1_agreement: float | None
    """Share of rows with the source's best class; None where the output has no classes."""
    time_ratio: float
    """Median time of a call on this processor, as a share of that of the first form tried."""

    def describe(self) -> str:
        """Return a clause for people."""
        top1 = "" if self.top1_agreement is None else f", top-1 agreement {self.top1_agreement:.1%}"
        return f"{WEIGHT_FORMS[self.form].title} (error {self.error:.2%}{top1}, {self.time_ratio:.2f} × the time)"


@dataclass(frozen=True)
class WeightChoice:
    """The chosen form and why."""

    form: WeightForm
    reason: str
    tried: tuple[TriedForm, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return it for the record in the file."""
        return {"weights": self.form.name, "reason": self.reason, "tried": [asdict(each) for each in self.tried]}


def convert_with(lowering: Lowering, job: LoweringJob, weights: WeightForm) -> Path:
    """Write the lowered graph with weights of one form, in a folder of its own; return the file."""
    folder = job.folder / weights.name
    folder.mkdir()
    path = lowering.convert(replace(job, folder=folder, weights=weights))
    if weights.is_unsigned:
        graph = load_graph(path)
        UnsignedWeightsPass()(graph)
        path = folder / "unsigned.onnx"
        ir.save(graph, path)
    return path


def choose_weights(
    convert: Callable[[WeightForm], Path],
    forms: Sequence[WeightForm],
    source: tuple[Path, Contract],
    contract: Contract,
    rows: Rows,
    processors: str,
) -> tuple[Path, WeightChoice]:
    """Write the model in each of ``forms`` and return the file to keep, with the choice.

    Args:
        convert: writes the model with weights of one form.
        forms: those that are exact on ``processors``, the most accurate one first.
        source: the float model with its contract.
        contract: of the lowered model.
        rows: as ``contract`` takes them; at most 128 of them are used.
        processors: those that the file is for.
    """
    paths = {form: convert(form) for form in forms}
    if len(forms) == 1:
        return paths[forms[0]], WeightChoice(forms[0], f"exact on {processors} processors")
    few = rows.take(slice(0, _ROWS))
    expected = run_all_rows(open_session(source[0]), source[1], few)
    sessions = {form: open_session(path) for form, path in paths.items()}
    times = _times(list(sessions.values()), _one_call(few, contract))
    tried = tuple(
        _tried(form, expected, run_all_rows(session, contract, few), time_s / times[0], contract)
        for (form, session), time_s in zip(sessions.items(), times, strict=True)
    )
    form, reason = _decide(*tried)
    return paths[form], WeightChoice(form, reason, tried)


def _decide(full: TriedForm, reduced: TriedForm) -> tuple[WeightForm, str]:
    """Choose between the form with all bits and the one that leaves one out."""
    slower = full.time_ratio / reduced.time_ratio
    both = f"{full.describe()} beside {reduced.describe()}"
    if full.error > _CLEARLY_LESS * reduced.error:
        return WEIGHT_FORMS[reduced.form], f"no less accurate, and fast wherever 8-bit products are: {both}"
    if slower > _MUCH_SLOWER and _costs_little(full, reduced):
        return WEIGHT_FORMS[reduced.form], f"little less accurate, and much faster here: {both}"
    return WEIGHT_FORMS[full.form], f"more accurate: {both}"


def _costs_little(full: TriedForm, reduced: TriedForm) -> bool:
    if full.top1_agreement is None or reduced.top1_agreement is None:
        return reduced.error <= _LITTLE_ERROR
    return reduced.top1_agreement >= full.top1_agreement - _LITTLE_AGREEMENT


def _tried(form: WeightForm, expected: Array, got: Array, time_ratio: float, contract: Contract) -> TriedForm:
    error = float(np.sqrt(np.mean((got - expected) ** 2) / max(float(np.mean(expected**2)), _TINY)))
    has_classes = contract.kind.has_classes and expected.ndim == 2
    top1 = float(np.mean(got.argmax(-1) == expected.argmax(-1))) if has_classes else None
    return TriedForm(form.name, error, top1, time_ratio)


def _one_call(rows: Rows, contract: Contract) -> Mapping[str, Array]:
    """Return the inputs of one call at the smallest batch that the contract takes."""
    first = contract.inputs[0].shape[0] if contract.inputs[0].shape else 1
    return rows.take(np.arange(first if isinstance(first, int) else 1) % len(rows)).inputs


def _times(sessions: Sequence[Session], inputs: Mapping[str, Array]) -> list[float]:
    """Return the median seconds of a call, for sessions that are called in turn for half a second at most."""
    calls = [session.bind(inputs) for session in sessions]
    samples: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + _TIMING_S
    for round_number in range(_MOST_ROUNDS + 1):
        for call, times in zip(calls, samples, strict=True):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        if round_number and time.perf_counter() > end:
            break
    return [float(np.median(times[1:])) for times in samples]
