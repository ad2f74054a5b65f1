"""What stands beside every adaptation: guesses that need no network, and simple models on features of the frozen trunk.

Shape letters: ``c`` width of the output, ``d`` width of features, ``n`` rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from monograph.models.contract import Contract, Kind
from monograph.models.data.rows import Array, Rows
from monograph.pipelines.adapt.network import FEATURES
from monograph.pipelines.adapt.task import Task, TaskKind

_NEIGHBOURS = 15
_MOST_TRAINING_ROWS = 20_000
"""k-NN keeps all rows, and logistic regression takes seconds for each ten thousand: of more rows these are drawn."""
_PRIOR_ROWS = 5.0
_SEED = 0
_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Baseline:
    """One of them on the test rows."""

    name: str
    outputs: Array
    """As the adapted model gives them: logarithms of probabilities for classes, probabilities for labels, numbers."""


def constant_baseline(train: Rows, test: Rows, task: Task) -> Baseline:
    """Return what gives every row the shares of classes or labels in the training rows, or the mean of their numbers."""
    labels, blank = train.required_labels(), np.zeros((len(test), 1))
    if task.kind is TaskKind.CLASSIFICATION:
        guess = DummyClassifier(strategy="prior").fit(np.zeros((len(labels), 1)), labels)
        return Baseline("majority class", _full_width(guess, blank, task))
    mean = DummyRegressor().fit(np.zeros((len(labels), 1)), labels).predict(blank)
    name = "mean" if task.kind in (TaskKind.REGRESSION, TaskKind.RATING) else "shares of the labels"
    return Baseline(name, mean.reshape(len(test), -1))


def feature_baselines(train: Rows, test: Rows, task: Task) -> list[Baseline]:
    """Return k nearest neighbours and a linear model on features, rows as :class:`FeatureStore` gives them."""
    kept = _drawn(len(train))
    x, y = train.inputs[FEATURES][kept], train.required_labels()[kept]
    if len(np.unique(y)) < 2:
        return []  # nothing to tell apart: what is constant says it all
    asked = test.inputs[FEATURES]
    count = min(_NEIGHBOURS, len(x))
    if task.kind is TaskKind.CLASSIFICATION:
        models: dict[str, Any] = {
            f"{count}-nearest neighbours": KNeighborsClassifier(count),
            "logistic regression": LogisticRegression(max_iter=300),
        }
    elif task.kind in (TaskKind.MULTI_LABEL, TaskKind.CLICK):
        models = {
            f"{count}-nearest neighbours": KNeighborsRegressor(count),
            "logistic regression": OneVsRestClassifier(LogisticRegression(max_iter=300)),
        }
    else:
        models = {f"{count}-nearest neighbours": KNeighborsRegressor(count), "ridge regression": RidgeCV(np.logspace(-3, 5, 9))}
    made = []
    for name, model in models.items():
        with warnings.catch_warnings():
            # A fit that has not quite converged, or a label that no row has, is a baseline all the same.
            warnings.simplefilter("ignore")
            fitted = make_pipeline(StandardScaler(), model).fit(x, y)
        made.append(Baseline(f"{name} on frozen features", _outputs(fitted, asked, task)))
    return made


def item_baselines(train: Rows, test: Rows, contract: Contract, task: Task) -> list[Baseline]:
    """Return, for each input of ids, the mean of each id's labels, drawn to that of all as if 5 more rows had that.

    The mean by film is what recommenders call popularity. Numbers of classes have no mean, and so no such baseline.
    """
    if task.kind is TaskKind.CLASSIFICATION:
        return []
    made, labels = [], train.required_labels().reshape(len(train), -1)
    for spec in contract.inputs:
        ids, asked = train.inputs[spec.name], test.inputs[spec.name]
        if spec.preprocessing is not None or ids.dtype.kind not in "iu" or ids.ndim != 1 or labels.shape[1] != 1:
            continue
        known, numbers = np.unique(np.concatenate([ids, asked]), return_inverse=True)
        own, others = numbers[: len(ids)], numbers[len(ids) :]
        total, count = np.bincount(own, labels[:, 0], len(known)), np.bincount(own, minlength=len(known))
        mean = (total + _PRIOR_ROWS * labels.mean()) / (count + _PRIOR_ROWS)
        made.append(Baseline(f"mean by {spec.name}", mean[others][:, None]))
    return made


def knows_classes(contract: Contract, task: Task) -> bool:
    """Tell whether a model gives an answer for all classes of the task, by name, before it is adapted."""
    names = contract.class_names if contract.kind.has_classes else None
    return task.kind is TaskKind.CLASSIFICATION and names is not None and set(task.class_names or ("",)) <= set(names)


def zero_shot(outputs: Array, contract: Contract, task: Task) -> Baseline:
    """Return what a model that :func:`knows_classes` gives before it is adapted, for the classes of the task alone."""
    names, wanted = contract.class_names or (), task.class_names or ()
    logits = np.log(np.maximum(outputs, _SMALLEST)) if contract.kind is Kind.PROBABILITIES else outputs
    return Baseline("zero-shot", logits[:, [names.index(name) for name in wanted]])


def _drawn(row_count: int) -> Array:
    if row_count <= _MOST_TRAINING_ROWS:
        return np.arange(row_count)
    return np.sort(np.random.default_rng(_SEED).choice(row_count, _MOST_TRAINING_ROWS, replace=False))


def _outputs(fitted: Any, features: Array, task: Task) -> Array:
    if task.kind is TaskKind.CLASSIFICATION:
        return _full_width(fitted, features, task)
    probable: Callable[[Array], Array] | None = getattr(fitted, "predict_proba", None)
    if probable is None:
        return np.asarray(fitted.predict(features)).reshape(len(features), -1)
    given = np.asarray(probable(features))
    return given[:, -1:] if task.width == 1 else given


def _full_width(fitted: Any, features: Array, task: Task) -> Array:
    """Return logarithms of probabilities for all classes of the task; one without training rows gets almost none."""
    given = np.full((len(features), task.width), _SMALLEST)
    given[:, fitted.classes_] = np.maximum(fitted.predict_proba(features), given[:, fitted.classes_])
    return np.asarray(np.log(given))
