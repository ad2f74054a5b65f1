"""Regression: mean and root mean square error in the target's own unit, R² and Spearman's ρ.

What is kept of the rows is 16 bytes a target. Shape letters: ``n`` rows, ``k`` targets a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from monograph.errors import DataError
from monograph.runtime.metrics import ranks
from monograph.runtime.metrics.blocks import Scored, no_score, score_of
from monograph.runtime.results import Score, Scorecard
from monograph.runtime.statistics import row_bootstrap_interval

Array = npt.NDArray[Any]


def score_regression(scored: Scored) -> Scorecard:
    """Score outputs ``[n]`` or ``[n, k]`` against targets as many; several targets a row are averaged over, each as heavy.

    Raises:
        DataError: targets are of another shape, or a number is not finite.
    """
    outputs, targets = scored.values()
    n = len(scored)
    outputs, targets = outputs.reshape(n, -1), targets.astype(np.float64).reshape(n, -1)
    if outputs.shape != targets.shape:
        raise DataError(f"targets have the shape {list(scored.labels.shape)}, outputs {list(scored.outputs.shape)}: give as many")
    if not (finite := np.isfinite(targets).all(axis=1)).all():
        raise DataError(f"the target of row {int(np.argmin(finite))} is not finite: fill or drop such rows")
    errors, width = np.abs(outputs - targets), targets.shape[1]

    def interval(statistic: Callable[[Array], float], estimate: float, work: int = 2) -> Score:
        return score_of(row_bootstrap_interval(statistic, n, estimate, row_work=work * width))

    scores = {
        "mae": interval(lambda counts: float((counts @ errors / n).mean()), mean_absolute_error(targets, outputs)),
        "rmse": interval(lambda counts: float(np.sqrt(counts @ errors**2 / n).mean()), root_mean_squared_error(targets, outputs)),
    }
    if n < 2 or (np.ptp(targets, axis=0) == 0).any():
        reason = "a single row" if n < 2 else "a target is the same in all rows"
        return Scorecard("regression", n, scores | {"r2": no_score(reason), "spearman": no_score(reason)})
    scores["r2"] = interval(lambda counts: _r2(outputs, targets, counts), r2_score(targets, outputs), 4)
    if (np.ptp(outputs, axis=0) == 0).any():
        return Scorecard("regression", n, scores | {"spearman": no_score("an output is the same in all rows")})
    columns = range(width)
    correlations = [ranks.spearman(outputs[:, column], targets[:, column]) for column in columns]
    estimate = float(np.mean([spearmanr(outputs[:, column], targets[:, column]).statistic for column in columns]))
    scores["spearman"] = interval(lambda counts: float(np.mean([one(counts) for one in correlations])), estimate, 8)
    return Scorecard("regression", n, scores)


def _r2(outputs: Array, targets: Array, counts: Array) -> float:
    """R² = 1 - Σ(y - ŷ)² / Σ(y - ȳ)², the mean over targets."""
    mean = counts @ targets / counts.sum()
    total = counts @ (targets - mean) ** 2
    if (total == 0).any():
        return float("nan")
    return float((1 - counts @ (targets - outputs) ** 2 / total).mean())
