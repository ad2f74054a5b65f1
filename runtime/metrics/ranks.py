"""Metrics of order from how often each row was drawn: sorted once, then counted anew for each draw of a bootstrap.

Shape letters: ``n`` rows, ``u`` distinct values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Statistic = Callable[[Array], float]
"""Of how often each row was drawn, int64 ``[n]``; not a number where the drawn rows have none."""


def midranks(values: Array) -> Callable[[Array], Array]:
    """Return a function from counts ``[n]`` to the rank of each row among the drawn rows, ties at their middle."""
    unique, inverse = np.unique(values, return_inverse=True)

    def ranks(counts: Array) -> Array:
        drawn = np.bincount(inverse, counts, len(unique))
        return np.asarray((np.cumsum(drawn) - (drawn - 1) / 2)[inverse])

    return ranks


def auc(scores: Array, positive: Array) -> Statistic:
    """Area under the ROC curve by the rank-sum identity (Hanley and McNeil 1982): scores ``[n]``, positive bool ``[n]``."""
    ranks = midranks(scores)

    def statistic(counts: Array) -> float:
        positives = float(counts[positive].sum())
        negatives = float(counts.sum()) - positives
        if positives == 0 or negatives == 0:
            return float("nan")
        rank_sum = float((counts * ranks(counts))[positive].sum())
        return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)

    return statistic


def average_precision(scores: Array, positive: Array) -> Statistic:
    """AP = Σ (Rₖ - Rₖ₋₁)·Pₖ over the distinct scores from the highest down, as scikit-learn defines it."""
    unique, inverse = np.unique(-scores, return_inverse=True)

    def statistic(counts: Array) -> float:
        right = np.bincount(inverse, counts * positive, len(unique))
        found, seen = np.cumsum(right), np.cumsum(np.bincount(inverse, counts, len(unique)))
        if found[-1] == 0:
            return float("nan")
        precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
        return float(right @ precision / found[-1])

    return statistic


def spearman(first: Array, second: Array) -> Statistic:
    """Spearman's ρ: Pearson's correlation of the midranks."""
    of_first, of_second = midranks(first), midranks(second)

    def statistic(counts: Array) -> float:
        a, b = of_first(counts), of_second(counts)
        a, b = a - np.average(a, weights=counts), b - np.average(b, weights=counts)
        spread = float(np.sqrt((counts @ a**2) * (counts @ b**2)))
        return float(counts @ (a * b)) / spread if spread > 0 else float("nan")

    return statistic
