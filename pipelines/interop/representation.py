"""How alike two models see the rows: CKA of their layers, and stitching of their last features by one linear layer."""

from __future__ import annotations

import math

import numpy as np

from monograph.errors import DataError
from monograph.models.data.rows import Array
from monograph.pipelines.interop.members import Model, halves
from monograph.pipelines.interop.result import Likeness, Stitch
from monograph.runtime.metrics.similarity import FEWEST_ROWS, MinibatchCka
from monograph.runtime.metrics.stitching import stitch_score

_BATCH_SIZE = 256
_MOST_STITCHED_ROWS = 4096
_WIDEST_STITCHED = 2048
_RIDGE = 1e-3
"""As a share of the sum of squares of the features: without any, as many columns as rows fit noise."""


def likeness(first: Model, second: Model) -> Likeness:
    """Return the CKA of all kept layers of two models that have run; no more than a batch is in memory."""
    assert first.answers is not None
    assert second.answers is not None
    own, others = first.answers.parts, second.answers.parts
    if not own or not others:
        return Likeness(first.name, second.name, reason="one of them has no inner tensor with a row of floats a row")
    measure, count = MinibatchCka((len(own), len(others))), len(first.labels)
    try:
        for start in range(0, count, _BATCH_SIZE):
            part = slice(start, start + _BATCH_SIZE)
            if len(range(count)[part]) >= FEWEST_ROWS:
                measure.add([np.asarray(one[part]) for one in own.values()], [np.asarray(one[part]) for one in others.values()])
    except DataError as error:
        return Likeness(first.name, second.name, reason=str(error))
    # Equal layers may come out above 1 by rounding.
    values = np.clip(measure.matrix(), -1.0, 1.0)
    cka = tuple(tuple(None if math.isnan(value) else float(value) for value in row) for row in values)
    return Likeness(first.name, second.name, tuple(own), tuple(others), cka)


def stitch(first: Model, second: Model, seed: int) -> Stitch:
    """Return how well a linear layer turns the last features of ``first`` into those of ``second``, beside noise."""
    assert first.answers is not None
    assert second.answers is not None
    source, wanted = first.answers.features, second.answers.features
    if source is None or wanted is None:
        return Stitch(first.name, second.name, reason="one of them has no inner tensor with a row of floats a row")
    if max(source.shape[1], wanted.shape[1]) > _WIDEST_STITCHED:
        return Stitch(
            first.name, second.name, reason=f"features are wider than {_WIDEST_STITCHED}: name narrower ones by --layer"
        )
    labels = first.labels
    rows = np.sort(np.random.default_rng(seed).permutation(len(labels))[:_MOST_STITCHED_ROWS])
    x, y, classes = np.asarray(source[rows], np.float64), np.asarray(wanted[rows], np.float64), labels[rows]
    is_held_out = np.zeros(len(rows), bool)
    is_held_out[halves(classes, seed)[1]] = True
    ridge = _RIDGE * float(((x - x.mean(axis=0)) ** 2).sum()) / x.shape[1]
    try:
        score = stitch_score(x, y, is_held_out, ridge, _as_classes(classes), seed)
    except DataError as error:
        return Stitch(first.name, second.name, reason=str(error))
    if score.r2 is None:
        return Stitch(first.name, second.name, reason=f"the features of {second.name} do not vary on the rows")
    return Stitch(first.name, second.name, score.r2, score.noise_r2, score.class_noise_r2)


def _as_classes(labels: Array) -> Array:
    """Return classes as they are; of numbers, which quarter each belongs to."""
    if labels.dtype.kind == "i":
        return labels
    column = labels.reshape(len(labels), -1)[:, 0]
    return np.digitize(column, np.quantile(column, (0.25, 0.5, 0.75)))
