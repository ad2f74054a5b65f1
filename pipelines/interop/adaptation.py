"""What the frozen trunk of a model is worth for the task: simple models on its features, and two estimates without any.

Shape letters: ``n`` rows, ``d`` numbers a row.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from monograph.models.data.rows import Array
from monograph.pipelines.interop.members import Model, halves
from monograph.pipelines.interop.result import R2, Transfer
from monograph.pipelines.interop.yardstick import Yardstick
from monograph.runtime.metrics.blocks import score_of
from monograph.runtime.metrics.transferability import leep, logme, logme_regression
from monograph.runtime.results import Score
from monograph.runtime.statistics import bootstrap_interval, proportion_interval

FEW_SHOTS = (8, 32, 128)
_DRAWS = 3
_NEIGHBOURS = 15
_MOST_ROWS = 20_000
"""Logistic regression and the singular values of LogME take seconds for each ten thousand: of more rows these are drawn."""


def probe(model: Model, yardstick: Yardstick) -> Transfer:
    """Return what simple models on the last features of ``model`` reach, fitted on one half of the rows, told on the other."""
    assert model.answers is not None
    features, seed = model.answers.features, yardstick.seed
    if features is None:
        return Transfer(model.name, reason="it has no inner tensor with a row of floats a row: name one by --layer")
    kept = _drawn(len(features), seed)
    x, y = np.asarray(features[kept], np.float64), model.labels[kept]
    if not np.isfinite(x).all():
        return Transfer(model.name, reason="its features are not finite")
    parts = halves(y, seed)
    if len(np.unique(y[parts[0]])) < 2:
        return Transfer(model.name, reason="not enough evidence: half of the rows have one class only")
    layer, width = list(model.answers.parts)[-1], x.shape[1]
    if not yardstick.has_classes:
        return _probe_numbers(model.name, layer, x, y, parts)
    probable = yardstick.probabilities(np.asarray(model.output[kept]), model.kind)
    neighbours = make_pipeline(StandardScaler(), KNeighborsClassifier(min(_NEIGHBOURS, len(parts[0]))))
    return Transfer(
        model=model.name,
        layer=layer,
        width=width,
        probe=_top1(_logistic(), x, y, *parts),
        neighbours=_top1(neighbours, x, y, *parts),
        few_shot=_few_shot(x, y, *parts, seed),
        leep=None if probable is None else leep(probable, y),
        logme=logme(x, y) if x.any() else None,
    )


def _probe_numbers(name: str, layer: str, x: Array, y: Array, parts: tuple[Array, Array]) -> Transfer:
    neighbours = make_pipeline(StandardScaler(), KNeighborsRegressor(min(_NEIGHBOURS, len(parts[0]))))
    return Transfer(
        model=name,
        layer=layer,
        width=x.shape[1],
        metric=R2,
        probe=_r2(make_pipeline(StandardScaler(), Ridge()), x, y, *parts),
        neighbours=_r2(neighbours, x, y, *parts),
        logme=logme_regression(x, y) if x.any() else None,
    )


def _logistic() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))


def _top1(estimator: Any, x: Array, y: Array, fitted: Array, told: Array) -> Score:
    right = int((_fit(estimator, x[fitted], y[fitted]).predict(x[told]) == y[told]).sum())
    return score_of(proportion_interval(right, len(told)))


def _r2(estimator: Any, x: Array, y: Array, fitted: Array, told: Array) -> Score:
    """Return which share of the variance is explained, the mean over targets as scikit-learn's ``r2_score`` weighs it."""
    wanted = y[told].reshape(len(told), -1)
    given = _fit(estimator, x[fitted], y[fitted]).predict(x[told]).reshape(wanted.shape)
    scale = ((wanted - wanted.mean(axis=0)) ** 2).sum(axis=0)
    shares = 1 - (given - wanted) ** 2 * len(told) / np.where(scale > 0, scale, 1.0)
    return score_of(bootstrap_interval(shares.mean(axis=1), np.mean))


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
