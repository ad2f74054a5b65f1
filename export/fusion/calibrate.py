"""Temperatures and combiners fitted on validation rows.

Shape letters: ``n`` rows, ``c`` classes, ``k`` outputs that are no classes, ``m`` members.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeCV
from sklearn.preprocessing import StandardScaler

from monograph.errors import FusionError
from monograph.export.fusion.forms import Stacking

Array = npt.NDArray[Any]
_LOG_TEMPERATURE_BOUNDS = (-3.0, 3.0)
_MOST_STACKED_OUTPUTS = 100
_LARGEST_CONDITION = 1e3
_CONSTANT = 1e-6
"""A standard deviation below this share of the mean is rounding."""
_RIDGE_STRENGTHS = np.logspace(-6, 3, 10)
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
    if class_count > _MOST_STACKED_OUTPUTS:
        raise FusionError(
            f"--combine stack fits {len(log_probabilities)} x {class_count} x {class_count} numbers; it is made for "
            f"{_MOST_STACKED_OUTPUTS} classes at most: use --combine probs"
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


def fit_linear_stacking(outputs: Sequence[Array], targets: Array) -> Stacking:
    """Fit linear least squares with an intercept on the members' outputs side by side (Breiman 1996, doi 10.1007/BF00117832).

    Where the outputs are nearly linear functions of each other (a condition number above 1,000 once each has mean 0 and
    variance 1) or there are fewer rows than numbers to fit, the fit is a ridge regression whose strength is chosen by leaving
    out one row at a time. An output that varies by no more than float32 rounds gets the coefficient 0.

    Args:
        outputs: one array ``float64 [n, k]`` a member.
        targets: ``float64 [n, k]``.

    Raises:
        FusionError: there are too many outputs for a combiner of that size, they are no rows of numbers, or there is one row.
    """
    if targets.ndim != 2:
        raise FusionError(
            f"members give {targets.ndim} dimensions, --combine stack takes one row of numbers a row, [batch x 1] or wider: "
            "export them so, or use --combine mean"
        )
    if len(targets) < 2:
        raise FusionError("--combine stack cannot be fitted on 1 row: give more validation rows")
    output_count = targets.shape[1]
    if output_count > _MOST_STACKED_OUTPUTS:
        raise FusionError(
            f"--combine stack fits {len(outputs)} x {output_count} x {output_count} numbers; it is made for "
            f"{_MOST_STACKED_OUTPUTS} outputs at most: use --combine mean"
        )
    features = np.concatenate(list(outputs), axis=1)  # [n, m·k]
    scaler = StandardScaler().fit(features)
    standard = scaler.transform(features)
    standard[:, np.sqrt(scaler.var_) < _CONSTANT * np.abs(scaler.mean_)] = 0.0
    is_ill_conditioned = len(features) <= features.shape[1] + 1 or np.linalg.cond(standard) > _LARGEST_CONDITION
    model = RidgeCV(alphas=_RIDGE_STRENGTHS) if is_ill_conditioned else LinearRegression()
    model.fit(standard, targets)
    by_standard = np.atleast_2d(model.coef_).T  # [m·k, k], of which the scaling is folded into what the graph holds
    coefficients = by_standard / scaler.scale_[:, None]
    intercept = np.atleast_1d(model.intercept_) - scaler.mean_ @ coefficients
    return Stacking(tuple(tuple(map(float, row)) for row in coefficients), tuple(map(float, intercept)))


def select_greedily(outputs: Sequence[Array], score: Callable[[Array], tuple[float, ...]]) -> tuple[float, ...]:
    """Return weights from greedy selection with repetition (Caruana et al. 2004, doi 10.1145/1015330.1015432).

    Starting from none, the member whose addition makes the mean of those picked score highest is added, again and again; a
    weight is how often its member was picked in the best prefix.

    Args:
        outputs: one array ``float64 [n, …]`` a member.
        score: how good a mean of outputs is, higher is better; what follows decides between equals.
    """
    stacked = np.stack(outputs)
    total = np.zeros_like(stacked[0])
    picks: list[int] = []
    scores: list[tuple[float, ...]] = []
    for count in range(1, _MOST_PICKS + 1):
        ranked = [score((total + one) / count) for one in stacked]
        best = max(range(len(ranked)), key=lambda index: ranked[index])
        picks.append(best)
        scores.append(ranked[best])
        total = total + stacked[best]
    prefix = picks[: max(range(len(scores)), key=lambda index: scores[index]) + 1]
    return tuple(prefix.count(member) / len(prefix) for member in range(len(stacked)))


def score_classes(labels: Array, *, are_logits: bool) -> Callable[[Array], tuple[float, ...]]:
    """Return a score of class outputs ``[n, c]``: how often they are right, then their mean log-likelihood."""
    rows = np.arange(len(labels))

    def score(output: Array) -> tuple[float, ...]:
        log = log_softmax(output, axis=1) if are_logits else np.log(np.maximum(output, 1e-300))
        return float(np.mean(output.argmax(1) == labels)), float(log[rows, labels].mean())

    return score


def score_values(targets: Array) -> Callable[[Array], tuple[float, ...]]:
    """Return a score of outputs of the targets' shape: their mean squared error, negative."""
    return lambda output: (-float(np.mean((output - targets) ** 2)),)
