"""How well a pretrained model may suit a task, from one pass over its rows: LEEP and LogME.

Shape letters: ``n`` rows, ``z`` classes of the pretrained model, ``c`` classes of the task, ``d`` numbers a row, ``t`` targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import DataError
from monograph.runtime.metrics.features import as_features, check_same_rows

Array = npt.NDArray[Any]
_SUM_TOLERANCE = 1e-3
_MOST_STEPS = 1000
_STEP_TOLERANCE = 1e-10
_LEAST_RATIO, _LARGEST_RATIO = 1e-10, 1e10


@dataclass(frozen=True)
class Evidence:
    """The largest evidence of a Bayesian linear model y = Fw + ε, one value a target."""

    log_evidence: Array
    """float64 ``[t]``: log p(y | F, α, β) over n, in nats a row."""
    alpha: Array
    """float64 ``[t]``: the precision of the weights, w ~ N(0, 1/α)."""
    beta: Array
    """float64 ``[t]``: the precision of the noise, ε ~ N(0, 1/β)."""


def leep(probabilities: Array, labels: Array) -> float:
    """Return LEEP in nats: 0 at best, about minus the entropy of the labels where the pretrained classes tell nothing of them.

    The mean log-likelihood of the labels under the pretrained model's classes, each of which stands for the task's classes as
    often as they came with it (Nguyen et al. 2020, arXiv 2002.12462, equation 2).

    Args:
        probabilities: ``[n, z]``, the pretrained model's own.
        labels: classes of the task ``[n]``, in any numbering.

    Raises:
        DataError: the shapes do not fit, or the probabilities of a row are none.
    """
    values = as_features(probabilities, "probabilities")
    numbers, class_count = _numbered(labels, values)
    sums = values.sum(axis=1)
    if not (fine := (values >= 0).all(axis=1) & (np.abs(sums - 1) <= _SUM_TOLERANCE)).all():
        row = int(np.argmin(fine))
        raise DataError(
            f"probabilities of row {row} run from {values[row].min():.4g} and add up to {sums[row]:.4g}, expected are 0 or more "
            "and a sum of 1: apply the softmax"
        )
    joint = np.zeros((class_count, values.shape[1]))
    np.add.at(joint, numbers, values)
    marginal = joint.sum(axis=0)
    given = np.divide(joint, marginal, out=np.zeros_like(joint), where=marginal > 0)
    return float(np.log((given[numbers] * values).sum(axis=1)).mean())


def logme(features: Array, labels: Array) -> float:
    """Return LogME of class labels: the largest log evidence a row, the mean over one class against the rest.

    You et al. 2021, arXiv 2102.11005, algorithm 1. Values of one task compare; those of different tasks do not.

    Args:
        features: ``[n, d]``, of the pretrained model's last layer but one.
        labels: classes ``[n]``, two or more, in any numbering.

    Raises:
        DataError: the shapes do not fit, features are not finite or all 0, or all rows have one class.
    """
    values = as_features(features, "features", 2)
    numbers, class_count = _numbered(labels, values)
    if class_count < 2:
        raise DataError("all rows have one class, needed are two or more: choose rows of several classes")
    return float(maximum_evidence(values, np.eye(class_count)[numbers]).log_evidence.mean())


def logme_regression(features: Array, targets: Array) -> float:
    """Return LogME of numbers to be predicted: the largest log evidence a row, the mean over targets.

    You et al. 2021, arXiv 2102.11005. Targets in a unit k times as large have a LogME higher by log k.

    Args:
        features: ``[n, d]``.
        targets: ``[n]`` or ``[n, t]``.

    Raises:
        DataError: the shapes do not fit, numbers are not finite, features are all 0, or a target is the same on all rows.
    """
    columns = as_features(targets[:, None] if targets.ndim == 1 else targets, "targets", 2)
    if not (varies := np.ptp(columns, axis=0) > 0).all():
        raise DataError(f"target {int(np.argmin(varies))} is the same on all rows: there is nothing to learn, choose other rows")
    return float(maximum_evidence(features, columns).log_evidence.mean())


def maximum_evidence(features: Array, targets: Array) -> Evidence:
    """Find the α and β with the largest evidence of features ``[n, d]`` for each target of ``[n, t]``.

    MacKay's fixed point (1992, Neural Computation 4:415): α = g / mᵀm and β = (n − g) / |Fm − y|², with m the posterior mean of
    the weights and g the number of them that the rows determine. Both depend on the ratio α/β alone, which is what is iterated
    (You et al. 2021, arXiv 2110.10545). The ratio stays within 1e-10 and 1e10 of the largest squared singular
    value: targets without noise, or that have nothing to do with the features, would drive it to 0 or infinity.

    Raises:
        DataError: the shapes do not fit, numbers are not finite, features are all 0, or a target is.
    """
    values, columns = as_features(features, "features", 2), as_features(targets, "targets", 2)
    check_same_rows(values, columns, "features and targets")
    if not columns.any(axis=0).all():
        raise DataError(
            f"target {int(np.argmin(columns.any(axis=0)))} is 0 on all rows: there is nothing to learn, choose other rows"
        )
    n = len(values)
    left, singular, _ = np.linalg.svd(values, full_matrices=False)
    kept = singular > singular[0] * max(values.shape) * np.finfo(np.float64).eps
    if not kept.any():
        raise DataError("features are 0 on all rows: this layer tells nothing, choose another")
    left, squares = left[:, kept], singular[kept, None] ** 2
    projected = left.T @ columns
    outside = ((columns - left @ projected) ** 2).sum(axis=0)
    energies = projected**2

    def sums(ratio: Array) -> tuple[Array, Array, Array]:
        # The squared length of the mean weights, the squared error of what they predict, and n − g.
        shrunk = ratio / (squares + ratio)
        length = (squares * energies / (squares + ratio) ** 2).sum(axis=0)
        return length, outside + (shrunk**2 * energies).sum(axis=0), n - len(squares) + shrunk.sum(axis=0)

    least, largest = _LEAST_RATIO * squares[0, 0], _LARGEST_RATIO * squares[0, 0]
    ratio = np.full(columns.shape[1], squares[0, 0])
    for _ in range(_MOST_STEPS):
        length, error, undetermined = sums(ratio)
        determined = (squares / (squares + ratio)).sum(axis=0)
        following = np.divide(determined * error, undetermined * length, out=np.full_like(ratio, np.inf), where=length > 0)
        before, ratio = ratio, np.clip(following, least, largest)
        if (np.abs(ratio - before) <= _STEP_TOLERANCE * before).all():
            break
    length, error, _ = sums(ratio)
    # Of one ratio this β has the largest evidence; at the fixed point it is (n − g) / |Fm − y|² too.
    beta = n / (error + ratio * length)
    log_evidence = n * np.log(beta / (2 * np.pi)) - n - np.log1p(squares / ratio).sum(axis=0)
    return Evidence(log_evidence / (2 * n), ratio * beta, beta)


def _numbered(labels: Array, values: Array) -> tuple[Array, int]:
    """Return labels numbered from 0 on without gaps, and how many classes there are."""
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"labels are {labels.dtype} {list(labels.shape)}, expected class numbers int [n]: give one class a row")
    check_same_rows(values, labels, "the model's outputs and the labels")
    classes, numbers = np.unique(labels, return_inverse=True)
    return numbers, len(classes)
