"""Fit a cascade on labelled validation rows: a temperature a member, then a threshold a stage for a stated allowed loss.

Shape letters: ``n`` rows, ``c`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from monograph.errors import DataError, FusionError
from monograph.export.fusion.align import MISSING, align_classes
from monograph.export.fusion.cascade.gates import GATES, Gate, calibrated
from monograph.export.fusion.plan import member_names
from monograph.models.contract import Contract, Kind
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile
from monograph.runtime.runner import run_all_rows
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
MAX_DROP_POINTS = 0.5
_LOG_TEMPERATURES = (math.log(0.05), math.log(20.0))
_ALWAYS_HARD = 1.01
"""Above every score."""


@dataclass(frozen=True)
class CascadeFit:
    """Temperatures and thresholds chosen on validation rows, and what they gave there."""

    gate: str
    temperatures: tuple[float, ...]
    thresholds: tuple[float, ...]
    max_drop: float
    """Allowed loss, in points of accuracy, against the last member alone."""
    row_count: int
    rows_sha256: str
    member_accuracy: tuple[float, ...]
    """As shares, from 0 to 1, on the rows fitted on; so is the cascade's."""
    cascade_accuracy: float
    shares: tuple[float, ...]
    """Share of the rows that reach each member; the first is 1."""

    def describe(self) -> str:
        """Return one line for people."""
        thresholds = ", ".join(f"{threshold:.4g}" for threshold in self.thresholds)
        return (
            f"{self.gate} below {thresholds} fitted on {self.row_count} rows: accuracy {self.cascade_accuracy:.2%} against "
            f"{self.member_accuracy[-1]:.2%} of the last member alone (allowed loss {self.max_drop:g} points), "
            f"which {self.shares[-1]:.1%} of rows reach"
        )


def fit_cascade(
    files: Sequence[OnnxFile], rows: Sequence[Rows], *, gate: str = "max-probability", max_drop: float = MAX_DROP_POINTS
) -> CascadeFit:
    """Fit on validation rows; ``rows`` holds the same rows once a member, ready for its inputs.

    Each member's temperature minimises its NLL. Each stage's threshold then sends the fewest rows on with which the
    accuracy of the cascade stays within the allowed loss of the last member alone. With several stages they are chosen from
    the first on, as if its hard rows went to the last member, and the allowed loss is spread over them evenly.

    Raises:
        FusionError: there is no such gate, the members are no classifiers or cannot be fused, or an output is not finite.
        DataError: the rows have no labels, or labels of other classes.
    """
    chosen = find_gate(gate)
    if len(files) < 2:
        raise FusionError(f"{len(files)} member: a cascade needs two or more, the small one first")
    if not (math.isfinite(max_drop) and max_drop >= 0):
        raise FusionError(f"--max-drop {max_drop:g} is no allowed loss: give points of accuracy, 0 or more")
    contracts = [file.contract for file in files]
    names = member_names([file.path for file in files])
    _, positions = align_classes(contracts, names)
    for name, own in zip(names, positions, strict=True):
        if own is not None and MISSING in own:
            raise FusionError(f"{name} does not know all classes: in a cascade every member must, for it may answer alone")
    # Each member's rows number the labels in its own order; the fused one is that of the first that names its classes.
    leader = next((index for index, contract in enumerate(contracts) if contract.class_names), 0)
    labels = rows[leader].required_labels().astype(np.int64)
    outputs = [
        _run(file, name, own, member_rows, labels)
        for file, name, own, member_rows in zip(files, names, positions, rows, strict=True)
    ]
    temperatures = [fit_temperature(output, contract.kind, labels) for output, contract in zip(outputs, contracts, strict=True)]
    probabilities = [
        calibrated(output, contract.kind, temperature)[1]
        for output, contract, temperature in zip(outputs, contracts, temperatures, strict=True)
    ]
    thresholds = choose_thresholds(probabilities, labels, chosen, max_drop)
    depths = answering_member(probabilities, thresholds, chosen)
    correct = np.stack([member.argmax(1) == labels for member in probabilities])  # [members, n]
    return CascadeFit(
        gate=gate,
        temperatures=tuple(temperatures),
        thresholds=thresholds,
        max_drop=max_drop,
        row_count=len(labels),
        rows_sha256=rows[leader].sha256(),
        member_accuracy=tuple(float(member.mean()) for member in correct),
        cascade_accuracy=float(correct[depths, np.arange(len(labels))].mean()),
        shares=tuple(float((depths >= stage).mean()) for stage in range(len(files))),
    )


def find_gate(name: str) -> Gate:
    """Return the gate called ``name``.

    Raises:
        FusionError: there is none.
    """
    if name not in GATES:
        raise FusionError(f"unknown gate {name!r}: choose --gate from {', '.join(GATES)}")
    return GATES[name]


def _run(file: OnnxFile, name: str, positions: Sequence[int] | None, rows: Rows, labels: Array) -> Array:
    contract: Contract = file.contract
    if contract.kind not in (Kind.LOGITS, Kind.PROBABILITIES):
        raise FusionError(
            f"{name} gives {contract.kind.value}: a cascade takes classifiers, whose output tells how sure they are"
        )
    output = run_all_rows(open_session(file.path, spinning=False), contract, rows)
    if positions is not None:
        output = output[..., list(positions)]
    if output.ndim != 2 or len(output) != len(labels):
        raise FusionError(f"{name} gives an array of shape {output.shape} for {len(labels)} labels: expected one row a label")
    if not np.isfinite(output).all():
        raise FusionError(f"the output of {name} is not finite on the rows to fit on: a cascade cannot be fitted")
    if labels.min() < 0 or labels.max() >= output.shape[1]:
        raise DataError(
            f"{rows.origin}: labels run from {labels.min()} to {labels.max()}, "
            f"but {name} has {output.shape[1]} classes, counted from 0"
        )
    return output


def fit_temperature(output: Array, kind: Kind, labels: Array) -> float:
    """Return T in [0.05, 20] that minimises the NLL of softmax(z / T) (Guo et al. 2017, arXiv 1706.04599).

    Args:
        output: logits z, or probabilities, whose logarithm is z, ``[n, c]``.
        kind: which of the two.
        labels: ``int64 [n]``.
    """
    logits = output.astype(np.float64) if kind is Kind.LOGITS else np.log(np.maximum(output.astype(np.float64), 1e-30))

    def nll(log_temperature: float) -> float:
        scores = log_softmax(logits / math.exp(log_temperature), axis=1)
        return float(-scores[np.arange(len(labels)), labels].mean())

    return math.exp(float(minimize_scalar(nll, bounds=_LOG_TEMPERATURES, method="bounded").x))


def choose_thresholds(probabilities: Sequence[Array], labels: Array, gate: Gate, max_drop: float) -> tuple[float, ...]:
    """Return a threshold for each stage but the last, for members' calibrated probabilities ``float64 [n, c]``."""
    correct = [member.argmax(1) == labels for member in probabilities]
    stage_count = len(probabilities) - 1
    answered_right = 0
    reaching = np.arange(len(labels))
    thresholds = []
    for stage in range(stage_count):
        allowed_points = max_drop * (stage + 1) / stage_count
        needed = math.ceil(len(labels) * (correct[-1].mean() - allowed_points / 100) - 1e-6) - answered_right
        scores = gate.score(probabilities[stage][reaching])
        threshold = _lowest_threshold(scores, correct[stage][reaching], correct[-1][reaching], needed)
        thresholds.append(threshold)
        hard = is_hard(scores, threshold)
        answered_right += int(correct[stage][reaching[~hard]].sum())
        reaching = reaching[hard]
    return tuple(thresholds)


def _lowest_threshold(scores: Array, small_right: Array, large_right: Array, needed: int) -> float:
    """Return the threshold that sends the fewest of these rows on so that at least ``needed`` come out right."""
    if len(scores) == 0:
        return 0.0
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    large = np.concatenate([[0], np.cumsum(large_right[order])])  # right among the h lowest, were they sent on
    small = small_right.sum() - np.concatenate([[0], np.cumsum(small_right[order])])
    # Rows of one score cannot be told apart: a cut lies between two different ones, or at an end.
    possible = np.concatenate([[True], ranked[1:] > ranked[:-1], [True]])
    enough = np.flatnonzero(possible & (large + small >= needed))
    count = int(enough[0]) if len(enough) else len(ranked)
    if count == len(ranked):
        return _ALWAYS_HARD
    # With no row to send on, those that are less sure than any seen are still sent.
    return float(ranked[0] if count == 0 else (ranked[count - 1] + ranked[count]) / 2)


def is_hard(scores: Array, threshold: float) -> Array:
    """Tell which rows go on: those not sure enough, and those whose score is not a number."""
    return np.asarray(~(scores >= threshold))


def answering_member(probabilities: Sequence[Array], thresholds: Sequence[float], gate: Gate) -> Array:
    """Return for each row the position of the member that answers it, ``int64 [n]``."""
    depths = np.zeros(len(probabilities[0]), np.int64)
    for stage, threshold in enumerate(thresholds):
        depths[(depths == stage) & is_hard(gate.score(probabilities[stage]), threshold)] = stage + 1
    return depths
