"""What the frozen trunk of a model is worth for the task: simple models on its features, and two estimates without any.

Shape letters: ``n`` rows, ``d`` numbers a row.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from monograph.models.data.rows import Array
from monograph.pipelines.interop.members import Model, stratified_halves
from monograph.pipelines.interop.result import Transfer
from monograph.runtime.metrics.transferability import leep, logme
from monograph.runtime.results import Score
from monograph.runtime.statistics import proportion_interval

FEW_SHOTS = (8, 32, 128)
_DRAWS = 3
_NEIGHBOURS = 15
_MOST_ROWS = 20_000
"""Logistic regression and the singular values of LogME take seconds for each ten thousand: of more rows these are drawn."""


def probe(model: Model, seed: int) -> Transfer:
    """Return what simple models on the last features of ``model`` reach, fitted on one half of the rows, told on the other."""
    assert model.answers is not None
    features = model.answers.features
    if features is None:
        return Transfer(model.name, reason="it has no inner tensor with a row of floats a row: name one by --layer")
    kept = _drawn(len(features), seed)
    x, y = np.asarray(features[kept], np.float64), model.labels[kept]
    if not np.isfinite(x).all():
        return Transfer(model.name, reason="its features are not finite")
    fitted, told = stratified_halves(y, seed)
    if len(np.unique(y[fitted])) < 2:
        return Transfer(model.name, reason="not enough evidence: half of the rows have one class only")
    return Transfer(
        model=model.name,
        layer=list(model.answers.parts)[-1],
        width=x.shape[1],
        probe=_score(_logistic(), x, y, fitted, told),
        neighbours=_score(
            make_pipeline(StandardScaler(), KNeighborsClassifier(min(_NEIGHBOURS, len(fitted)))), x, y, fitted, told
        ),
        few_shot=_few_shot(x, y, fitted, told, seed),
        leep=leep(model.probabilities[kept], y),
        logme=logme(x, y) if x.any() else None,
    )


def _logistic() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))


def _score(estimator: Any, x: Array, y: Array, fitted: Array, told: Array) -> Score:
    right = int((_fit(estimator, x[fitted], y[fitted]).predict(x[told]) == y[told]).sum())
    interval = proportion_interval(right, len(told))
    return Score(interval.estimate, interval.low, interval.high)


def _fit(estimator: Any, x: Array, y: Array) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that has not quite converged is a probe all the same
        return estimator.fit(x, y)


def _few_shot(x: Array, y: Array, fitted: Array, told: Array, seed: int) -> dict[int, float]:
    """Return the mean top-1 of the probe by rows a class, over a few draws; counts that some class lacks are left out."""
    classes, counts = np.unique(y[fitted], return_counts=True)
    curve = {}
    for shots in FEW_SHOTS:
        if shots > counts.min():
            continue
        reached = []
        for draw in range(_DRAWS):
            rng = np.random.default_rng((seed, shots, draw))
            rows = np.concatenate([rng.choice(fitted[y[fitted] == one], shots, replace=False) for one in classes])
            reached.append(float((_fit(_logistic(), x[rows], y[rows]).predict(x[told]) == y[told]).mean()))
        curve[shots] = float(np.mean(reached))
    return curve


def _drawn(row_count: int, seed: int) -> Array:
    if row_count <= _MOST_ROWS:
        return np.arange(row_count)
    return np.sort(np.random.default_rng(seed).choice(row_count, _MOST_ROWS, replace=False))
