"""Temperatures and combiners fitted on validation rows.

Shape letters: ``n`` rows, ``c`` classes, ``m`` members.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from monograph.errors import FusionError
from monograph.export.fusion.forms import Stacking

Array = npt.NDArray[Any]
_LOG_TEMPERATURE_BOUNDS = (-3.0, 3.0)
_MOST_STACKED_CLASSES = 100
_MOST_PICKS = 50


def fit_temperature(logits: Array, labels: Array) -> float:
    """Return the temperature T that minimises the NLL of softmax(z / T) (Guo et al. 2017, arXiv 1706.04599).

    Args:
        logits: ``float64 [n, c]``.
        labels: ``int64 [n]``.
    """
    rows = np.arange(len(labels))

    def nll(log_temperature: float) -> float:
        return float(-log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean())

    return float(np.exp(minimize_scalar(nll, bounds=_LOG_TEMPERATURE_BOUNDS, method="bounded").x))


def fit_stacking(log_probabilities: Sequence[Array], labels: Array) -> Stacking:
    """Fit a multinomial logistic regression on the members' log-probabilities ``[n, c]``, side by side.

    Raises:
        FusionError: there are too many classes for a combiner of that size, or a class has no row.
    """
    class_count = log_probabilities[0].shape[1]
    if class_count > _MOST_STACKED_CLASSES:
        raise FusionError(
            f"--combine stack fits {len(log_probabilities)} x {class_count} x {class_count} numbers; it is made for "
            f"{_MOST_STACKED_CLASSES} classes at most: use --combine probs"
        )
    absent = sorted(set(range(class_count)) - set(np.unique(labels).tolist()))
    if absent:
        raise FusionError(f"no validation row is of class {absent[0]}: --combine stack needs rows of every class; give more")
    features = np.maximum(np.concatenate(list(log_probabilities), axis=1), np.log(1e-12))
    model = LogisticRegression(C=1.0, max_iter=1000).fit(features, labels)
    coefficients, intercept = model.coef_, model.intercept_
    if class_count == 2:  # sklearn keeps one row for two classes
        coefficients, intercept = np.stack([-coefficients[0], coefficients[0]]) / 2, np.array([-intercept[0], intercept[0]]) / 2
    return Stacking(tuple(tuple(map(float, row)) for row in coefficients.T), tuple(map(float, intercept)))


def select_greedily(outputs: Sequence[Array], labels: Array) -> tuple[float, ...]:
    """Return weights from greedy selection with repetition (Caruana et al. 2004, doi 10.1145/1015330.1015432).

    Starting from none, the member whose addition to the mean is right most often (then: has the lowest NLL) is added,
    again and again; a weight is how often its member was picked in the best prefix.

    Args:
        outputs: one array of probabilities ``float64 [n, c]`` a member.
        labels: ``int64 [n]``.
    """
    stacked, rows = np.stack(outputs), np.arange(len(labels))
    total = np.zeros_like(stacked[0])
    picks: list[int] = []
    scores: list[tuple[float, float]] = []
    for count in range(1, _MOST_PICKS + 1):
        candidates = [(total + one) / count for one in stacked]
        ranked = [
            (float(np.mean(mean.argmax(1) == labels)), float(np.log(np.maximum(mean[rows, labels], 1e-300)).mean()))
            for mean in candidates
        ]
        best = max(range(len(ranked)), key=lambda index: ranked[index])
        picks.append(best)
        scores.append(ranked[best])
        total = total + stacked[best]
    prefix = picks[: max(range(len(scores)), key=lambda index: scores[index]) + 1]
    return tuple(prefix.count(member) / len(prefix) for member in range(len(stacked)))
