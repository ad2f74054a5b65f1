"""Weights by member and class: read from a file, checked, or fitted on validation rows.

Shape letters: ``n`` rows, ``c`` classes, ``m`` members.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import softmax

from monograph.errors import FusionError
from monograph.export.fusion.align import MISSING

Array = npt.NDArray[Any]
Matrix = tuple[tuple[float, ...], ...]
"""``[m, c]``, classes in the fused order."""
_SUM_TOLERANCE = 0.01
_NEGLIGIBLE_WEIGHT = 1e-3
_PRIOR_ROWS = 20.0
"""Tried with 30 to 1,000 rows of ten classes: it costs members that are alike 0.0005 nats at most, and keeps most of what
members that know different classes can gain (0.03 of 0.16 nats with 100 rows, 0.14 of 0.18 with 1,000)."""
_TINY = float(np.finfo(np.float64).tiny)


def check_class_weights(
    class_weights: Sequence[Sequence[float]],
    names: Sequence[str],
    class_names: Sequence[str] | None,
    class_count: int | None,
    positions: Sequence[Sequence[int] | None],
    *,
    normalize: bool = False,
) -> Matrix:
    """Return weights ``[m, c]`` of which each class's sum to one.

    Those of a class that sum to 1 within 0.01 are rescaled to sum to exactly 1, others only on request.

    Args:
        class_weights: one row a member, one column a class in the fused order.
        names: the members'.
        class_names: in the fused order, where they are known.
        class_count: how many classes there are, where that is known.
        positions: for each member where its classes are found, from ``align_classes``: it has no say on those it lacks.
        normalize: scale each class's weights to sum to one, whatever their sum.

    Raises:
        FusionError: they are not one row a member and one column a class, not finite, negative, of another sum, or give a
            member weight for a class that it lacks.
    """
    rows = [list(row) for row in class_weights]
    if len(rows) != len(names):
        raise FusionError(f"class weights have {len(rows)} rows for {len(names)} members: give one row a member")
    for row, name in zip(rows, names, strict=True):
        if len(row) != (len(rows[0]) if class_count is None else class_count):
            expected = len(rows[0]) if class_count is None else class_count
            raise FusionError(f"class weights of {name} are {len(row)} for {expected} classes: give one a class")
    matrix = np.array(rows, np.float64)  # [m, c]
    of_class = [repr(name) for name in class_names or map(str, range(matrix.shape[1]))]
    for member, (row, name) in enumerate(zip(matrix, names, strict=True)):
        if (bad := ~(np.isfinite(row) & (row >= 0))).any():
            first = int(bad.argmax())
            raise FusionError(f"the weight of {name} for class {of_class[first]} is {row[first]:g}: give a number from 0 to 1")
        lacking = [position == MISSING for position in positions[member] or ()]
        if lacking and row[lacking].any():
            first = int(np.flatnonzero(np.array(lacking) & (row > 0))[0])
            raise FusionError(f"{name} lacks class {of_class[first]}, so its weight there must be 0, not {row[first]:g}")
    sums = matrix.sum(axis=0)
    if (sums == 0).any():
        raise FusionError(f"the weights for class {of_class[int(sums.argmin())]} are all zero: at least one member must count")
    if (off := np.abs(sums - 1) > _SUM_TOLERANCE + 1e-9).any() and not normalize:
        first = int(off.argmax())
        raise FusionError(f"the weights for class {of_class[first]} sum to {sums[first]:g}, expected 1: pass --normalize")
    return _as_tuples(matrix / sums)


def read_class_weights(
    path: Path, names: Sequence[str], class_names: Sequence[str] | None, class_count: int | None = None
) -> Matrix:
    """Read a CSV table of weights: class names in its header, then a row a member, its name first.

    Members and classes may stand in any order. Where the members name no classes, the header numbers them from 0.

    Raises:
        FusionError: the file cannot be read, or does not name each member and each class once.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise FusionError(f"{path}: cannot be read as a CSV table ({reason}): check the path and the file") from error
    if len(table) < 2:
        raise FusionError(f"{path}: {len(table)} lines, expected a header of class names and a line a member")
    header, *lines = [[cell.strip() for cell in row] for row in table]
    expected = tuple(class_names or map(str, range(len(header) - 1 if class_count is None else class_count)))
    _require_each_once(header[1:], expected, path, "classes in the header")
    _require_each_once([line[0] for line in lines], names, path, "members")
    weights: dict[str, dict[str, float]] = {}
    for line in lines:
        if len(line) != len(header):
            raise FusionError(f"{path}: the line of {line[0]} has {len(line) - 1} weights for {len(expected)} classes")
        weights[line[0]] = {name: _number(cell, path, line[0], name) for name, cell in zip(header[1:], line[1:], strict=True)}
    return tuple(tuple(weights[member][name] for name in expected) for member in names)


def fit_class_weights(probabilities: Sequence[Array], labels: Array, weights: Sequence[float]) -> Matrix:
    """Choose weights ``[m, c]`` that minimise the NLL of Σ αᵢ,c·pᵢ,c over its sum, drawn towards plain ``weights``.

    The weights of each class have a Dirichlet prior whose mode is the plain ones and which counts as much as 20 rows of
    the class: to the NLL summed over the rows it adds 20·max(1, P_c / n_c)·KL(weights ‖ α_c) for a class of n_c rows, P_c
    being the probability that the plain mixture gives the class over all rows, so that rows of other classes, which speak on
    it too, do not outweigh the prior of a class that has hardly any row of its own. A class with few rows so stays near the
    plain weights, one with many goes where its rows pull, and one with none keeps the plain weights. Members that never give
    a class any probability have no say on it. Weights below 0.001 become 0. The problem is not convex: the search starts
    from the plain weights, and what it finds is taken only where it is better than they are.

    Args:
        probabilities: one array ``float64 [n, c]`` a member.
        labels: ``int64 [n]``.
        weights: one a member, summing to one, fitted on the same rows.
    """
    stacked = np.stack(probabilities)  # [m, n, c]
    has_say: Array = np.asarray((stacked > 0).any(axis=1))  # [m, c]
    plain = _shared_out(np.asarray(weights, np.float64), has_say)
    fitted = np.isin(np.arange(stacked.shape[2]), labels) & has_say.any(axis=0)  # [c]
    start = np.where(has_say, np.log(np.maximum(plain, _NEGLIGIBLE_WEIGHT)), -np.inf)[:, fitted]
    free = has_say[:, fitted]
    prior = _prior_rows(plain, stacked, labels) / len(labels)  # [c]

    def weights_of(free_scores: Array) -> Array:
        scores, alpha = start.copy(), plain.copy()
        scores[free] = free_scores
        alpha[:, fitted] = softmax(scores, axis=0)
        return alpha

    def objective(free_scores: Array) -> tuple[float, Array]:
        alpha = weights_of(free_scores)
        loss, by_weight = _nll_and_gradient(alpha, stacked, labels)
        loss -= float((prior * plain * np.log(np.maximum(alpha, _TINY)))[:, fitted].sum())
        by_score = alpha * (by_weight - (alpha * by_weight).sum(axis=0)) - prior * (plain - alpha)
        return loss, by_score[:, fitted][free]

    if not free.any():
        return _as_tuples(plain)
    alpha = weights_of(minimize(objective, start[free], jac=True, method="L-BFGS-B", options={"maxiter": 200}).x)
    alpha = np.where(alpha < _NEGLIGIBLE_WEIGHT, 0.0, alpha)
    alpha /= alpha.sum(axis=0)
    better = _nll_and_gradient(alpha, stacked, labels)[0] < _nll_and_gradient(plain, stacked, labels)[0]
    return _as_tuples(alpha if better else plain)


def _shared_out(weights: Array, has_say: Array) -> Array:
    """Return plain weights ``[m, c]``, those of each class shared out among the members that have a say on it."""
    plain = weights[:, None] * has_say
    sums = plain.sum(axis=0)
    return np.where(sums > 0, plain / np.where(sums > 0, sums, 1.0), weights[:, None])


def _prior_rows(plain: Array, stacked: Array, labels: Array) -> Array:
    """Return how much the prior of each class counts, in rows ``[c]``."""
    mixture = np.einsum("mc,mnc->nc", plain, stacked)
    given = (mixture / np.maximum(mixture.sum(axis=1, keepdims=True), _TINY)).sum(axis=0)
    own = np.bincount(labels, minlength=len(given))
    return np.asarray(_PRIOR_ROWS * np.maximum(1.0, given / np.maximum(own, 1)))


def _nll_and_gradient(alpha: Array, stacked: Array, labels: Array) -> tuple[float, Array]:
    """Return the mean NLL of the normalised mixture and its gradient by ``alpha`` ``[m, c]``."""
    rows = np.arange(len(labels))
    mixture = np.einsum("mc,mnc->nc", alpha, stacked)
    sums = np.maximum(mixture.sum(axis=1), _TINY)
    true = np.maximum(mixture[rows, labels], _TINY)
    by_mixture = np.repeat(1 / sums[:, None], mixture.shape[1], axis=1)
    by_mixture[rows, labels] -= 1 / true
    gradient = np.einsum("nc,mnc->mc", by_mixture, stacked) / len(labels)
    return float(np.mean(np.log(sums) - np.log(true))), gradient


def _require_each_once(found: Sequence[str], expected: Sequence[str], path: Path, what: str) -> None:
    if sorted(found) == sorted(expected):
        return
    listed = ", ".join(expected[:10]) + (f" and {len(expected) - 10} more" if len(expected) > 10 else "")
    for problem, names in (
        ("unknown", [name for name in found if name not in set(expected)]),
        ("missing", [name for name in expected if name not in set(found)]),
        ("given twice", [name for name in found if list(found).count(name) > 1]),
    ):
        if names:
            raise FusionError(f"{path}: {what}: {names[0]!r} is {problem}; expected {listed}, each once")


def _number(cell: str, path: Path, member: str, class_name: str) -> float:
    try:
        return float(cell)
    except ValueError as error:
        raise FusionError(f"{path}: the weight of {member} for class {class_name!r} is {cell!r}, expected a number") from error


def _as_tuples(matrix: Array) -> Matrix:
    return tuple(tuple(map(float, row)) for row in matrix)
