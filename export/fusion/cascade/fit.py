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
from scipy import stats

from monograph.errors import DataError, FusionError
from monograph.export.fusion.align import MISSING, align_classes
from monograph.export.fusion.calibrate import fit_temperature
from monograph.export.fusion.cascade.gates import GATES, Gate, calibrated
from monograph.export.fusion.naming import member_names
from monograph.models.contract import Contract, Kind
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile
from monograph.runtime.runner import run_all_rows
from monograph.runtime.session import open_session
from monograph.runtime.statistics import CONFIDENCE, noninferiority_z, paired_loss_bound, rows_for_loss_bound, smallest_loss_bound

Array = npt.NDArray[Any]
MAX_DROP_POINTS = 0.5
_TINY = 1e-30
"""In place of a probability of 0, whose logarithm is not finite."""
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
    confidence: float
    """With which the loss on new rows stays within it; 0 where the loss seen on the rows was taken at its word."""
    is_promised: bool
    """False where it was, by choice or because the rows are too few to promise the allowed loss."""
    loss_bound: float
    """Upper bound of the loss in points, one-sided, at ``confidence``, or at 0.95 where that is 0."""
    row_count: int
    rows_sha256: str
    member_accuracy: tuple[float, ...]
    """As shares, from 0 to 1, on the rows fitted on; so is the cascade's."""
    cascade_accuracy: float
    shares: tuple[float, ...]
    """Share of the rows that reach each member; the first is 1."""
    unpromised_share: float
    """Share that would reach the last member, were the loss seen on the rows taken at its word."""

    def describe(self) -> str:
        """Return one line for people."""
        thresholds = ", ".join(f"{threshold:.4g}" for threshold in self.thresholds)
        return (
            f"{self.gate} below {thresholds} fitted on {self.row_count} rows: accuracy {self.cascade_accuracy:.2%} against "
            f"{self.member_accuracy[-1]:.2%} of the last member alone, which {self.shares[-1]:.1%} of rows reach; "
            f"{self._describe_loss()}" + ("; every row goes on, so nothing is saved" if self.shares[-1] == 1 else "")
        )

    def _describe_loss(self) -> str:
        if self.is_promised:
            return (
                f"at {self.confidence:.4g} confidence new rows lose at most {self.loss_bound:.2g} points (allowed "
                f"{self.max_drop:g}; with no such promise {self.unpromised_share:.1%} of rows would go on)"
            )
        bound = f"its bound at {self.confidence or CONFIDENCE:.4g} confidence is {self.loss_bound:.2g}"
        seen = f"the allowed loss of {self.max_drop:g} points holds for the loss seen on these rows, {bound}"
        if not self.confidence:
            return seen
        # Each stage but the last is given an equal part of the allowed loss.
        least = 100 * smallest_loss_bound(self.row_count, self.confidence) * len(self.thresholds)
        needed = rows_for_loss_bound(self.max_drop / 100 / len(self.thresholds), self.confidence)
        more = "no number of rows can promise a loss of 0" if needed is None else f"give {needed} or more"
        return f"{self.row_count} rows can promise no less than {least:.2g} points, so {seen}; {more}"


def fit_cascade(
    files: Sequence[OnnxFile],
    rows: Sequence[Rows],
    *,
    gate: str = "max-probability",
    max_drop: float = MAX_DROP_POINTS,
    confidence: float = CONFIDENCE,
) -> CascadeFit:
    """Fit on validation rows; ``rows`` holds the same rows once a member, ready for its inputs.

    Each member's temperature minimises its NLL. Each stage's threshold is then the lowest, which sends the fewest rows on,
    with which the accuracy of the cascade stays within the allowed loss of the last member alone: by an upper bound of the
    loss, so that it holds for new rows too (see :func:`choose_thresholds`). Rows that are too few to promise the allowed loss
    by any threshold are taken at their word, and the fit says so. With several stages thresholds are chosen from the first
    on, as if its hard rows went to the last member, and the allowed loss is spread over them evenly.

    Args:
        files: the members, the smallest first.
        rows: as many as members.
        gate: how sure a member is of a row.
        max_drop: the allowed loss in points of accuracy.
        confidence: of the bound, one-sided, from 0.5 up to 1; 0 takes the loss seen on the rows at its word.

    Raises:
        FusionError: there is no such gate, the members are no classifiers or cannot be fused, an output is not finite, or the
            allowed loss or confidence is no such number.
        DataError: the rows have no labels, or labels of other classes.
    """
    chosen = find_gate(gate)
    _check_choices(files, max_drop, confidence)
    outputs, labels, rows_sha256 = _run_members(files, rows)
    kinds = [file.contract.kind for file in files]
    temperatures = [fit_temperature(_as_logits(output, kind), labels) for output, kind in zip(outputs, kinds, strict=True)]
    probabilities = [
        calibrated(output, kind, temperature)[1] for output, kind, temperature in zip(outputs, kinds, temperatures, strict=True)
    ]
    can_promise = confidence > 0 and smallest_loss_bound(len(labels), confidence) <= max_drop / 100 / (len(files) - 1)
    unpromised = choose_thresholds(probabilities, labels, chosen, max_drop)
    thresholds = choose_thresholds(probabilities, labels, chosen, max_drop, confidence) if can_promise else unpromised
    depths = answering_member(probabilities, thresholds, chosen)
    correct = np.stack([member.argmax(1) == labels for member in probabilities])  # [members, n]
    answers = correct[depths, np.arange(len(labels))]
    lost, gained = int((correct[-1] & ~answers).sum()), int((answers & ~correct[-1]).sum())
    return CascadeFit(
        gate=gate,
        temperatures=tuple(temperatures),
        thresholds=thresholds,
        max_drop=max_drop,
        confidence=confidence,
        is_promised=can_promise,
        loss_bound=100 * paired_loss_bound(lost, gained, len(labels), confidence or CONFIDENCE),
        row_count=len(labels),
        rows_sha256=rows_sha256,
        member_accuracy=tuple(float(member.mean()) for member in correct),
        cascade_accuracy=float(answers.mean()),
        shares=tuple(float((depths >= stage).mean()) for stage in range(len(files))),
        unpromised_share=float((answering_member(probabilities, unpromised, chosen) == len(files) - 1).mean()),
    )


def find_gate(name: str) -> Gate:
    """Return the gate called ``name``.

    Raises:
        FusionError: there is none.
    """
    if name not in GATES:
        raise FusionError(f"unknown gate {name!r}: choose --gate from {', '.join(GATES)}")
    return GATES[name]


def _check_choices(files: Sequence[OnnxFile], max_drop: float, confidence: float) -> None:
    if len(files) < 2:
        raise FusionError(f"{len(files)} member: a cascade needs two or more, the small one first")
    if not (math.isfinite(max_drop) and max_drop >= 0):
        raise FusionError(f"--max-drop {max_drop:g} is no allowed loss: give points of accuracy, 0 or more")
    if not (confidence == 0 or 0.5 <= confidence < 1):
        raise FusionError(f"--confidence {confidence:g} is no confidence: give 0.95 for example, or 0 to have none")


def _run_members(files: Sequence[OnnxFile], rows: Sequence[Rows]) -> tuple[list[Array], Array, str]:
    """Return each member's output ``[n, c]`` in the fused class order, the labels ``int64 [n]``, and the rows' digest."""
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
    return outputs, labels, rows[leader].sha256()


def _run(file: OnnxFile, name: str, positions: Sequence[int] | None, rows: Rows, labels: Array) -> Array:
    contract: Contract = file.contract
    if contract.kind not in (Kind.LOGITS, Kind.PROBABILITIES):
        raise FusionError(
            f"{name} gives {contract.kind.value}: a cascade takes classifiers, whose output tells how sure they are"
        )
    output = run_all_rows(open_session(file.path), contract, rows)
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


def _as_logits(output: Array, kind: Kind) -> Array:
    """Return logits, or the logarithms of probabilities, ``float64 [n, c]``."""
    wide = output.astype(np.float64)
    return wide if kind is Kind.LOGITS else np.log(np.maximum(wide, _TINY))


def choose_thresholds(
    probabilities: Sequence[Array], labels: Array, gate: Gate, max_drop: float, confidence: float = 0.0
) -> tuple[float, ...]:
    """Return a threshold for each stage but the last, for members' calibrated probabilities ``float64 [n, c]``.

    Without ``confidence``, the lowest with which the loss seen on the rows is within ``max_drop`` points. With it, thresholds
    are tried from the highest down, each only if all above it passed, and the last is taken whose loss is within
    ``max_drop`` by Tango's score test. In that fixed order no correction for the number of thresholds is due (fixed sequence
    testing: Angelopoulos et al. 2021, arXiv 2110.01052); the lowest of all that pass would be a lucky one.
    """
    correct = [member.argmax(1) == labels for member in probabilities]
    stage_count = len(probabilities) - 1
    lost = gained = 0
    reaching = np.arange(len(labels))
    thresholds = []
    for stage in range(stage_count):
        allowed = min(max_drop * (stage + 1) / stage_count / 100, 1 - 1e-9)
        scores = gate.score(probabilities[stage][reaching])
        cuts = _cuts(scores, correct[stage][reaching], correct[-1][reaching])
        all_lost, all_gained = cuts.lost + lost, cuts.gained + gained
        if confidence:
            passes = noninferiority_z(all_lost, all_gained, len(labels), allowed) <= -stats.norm.ppf(confidence)
            failed = np.flatnonzero(~passes)
            first = int(failed[-1]) + 1 if len(failed) else 0
        else:
            first = int(np.argmax(all_lost - all_gained <= len(labels) * allowed + 1e-6))
        first = min(first, len(cuts.thresholds) - 1)
        thresholds.append(float(cuts.thresholds[first]))
        lost, gained = int(all_lost[first]), int(all_gained[first])
        reaching = reaching[is_hard(scores, thresholds[-1])]
    return tuple(thresholds)


@dataclass(frozen=True)
class _Cuts:
    """Every threshold that tells these rows apart, from the lowest up; arrays ``[t]``."""

    thresholds: Array
    lost: Array
    """Rows above the threshold that the last member alone has right, ``int64``."""
    gained: Array
    """Those that this stage's member alone has right."""


def _cuts(scores: Array, small_right: Array, large_right: Array) -> _Cuts:
    if len(scores) == 0:
        return _Cuts(np.zeros(1), np.zeros(1, np.int64), np.zeros(1, np.int64))
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    above = [np.append(wins[order][::-1].cumsum()[::-1], 0) for wins in (large_right & ~small_right, small_right & ~large_right)]
    # With no row to send on, those that are less sure than any seen are still sent.
    thresholds = np.concatenate([ranked[:1], (ranked[:-1] + ranked[1:]) / 2, [_ALWAYS_HARD]])
    # Rows of one score cannot be told apart: a cut lies between two different ones, or at an end.
    possible = np.concatenate([[True], ranked[1:] > ranked[:-1], [True]])
    return _Cuts(thresholds[possible], above[0][possible], above[1][possible])


def is_hard(scores: Array, threshold: float) -> Array:
    """Tell which rows go on: those not sure enough, and those whose score is not a number."""
    return np.asarray(~(scores >= threshold))


def answering_member(probabilities: Sequence[Array], thresholds: Sequence[float], gate: Gate) -> Array:
    """Return for each row the position of the member that answers it, ``int64 [n]``."""
    depths = np.zeros(len(probabilities[0]), np.int64)
    for stage, threshold in enumerate(thresholds):
        depths[(depths == stage) & is_hard(gate.score(probabilities[stage]), threshold)] = stage + 1
    return depths
