"""How right the outputs are: top-1, macro F1, negative log-likelihood and calibration.

Shape letters: ``n`` rows, ``c`` classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax
from sklearn.metrics import f1_score, log_loss

from monograph.errors import DataError
from monograph.models.contract import Kind
from monograph.runtime.results import Accuracy
from monograph.runtime.statistics import proportion_interval

Array = npt.NDArray[Any]
_ECE_BINS = 15


def as_probabilities(outputs: Array, kind: Kind) -> Array:
    """Turn outputs ``[n, c]`` of a classifier into probabilities, float64 ``[n, c]``.

    Raises:
        DataError: outputs of this kind are no probabilities of classes.
    """
    if kind is Kind.LOGITS:
        return np.asarray(softmax(outputs.astype(np.float64), axis=-1))
    if kind is Kind.PROBABILITIES:
        return outputs.astype(np.float64)
    raise DataError(f"outputs of kind {kind.value!r} have no classes to be right about; expected logits or probabilities")


def score_classifier(probabilities: Array, labels: Array) -> Accuracy:
    """Score probabilities ``[n, c]`` against labels ``int64 [n]``.

    Raises:
        DataError: a label lies outside ``[0, c)``, or a probability is not finite.
    """
    if probabilities.ndim != 2 or probabilities.shape[1] < 2:
        raise DataError(f"outputs have the shape {list(probabilities.shape)}, expected [n, c]: one row of classes a row of input")
    if not (finite := np.isfinite(probabilities).all(axis=1)).all():
        raise DataError(f"the model's output for row {int(np.argmin(finite))} is not finite: it has no accuracy on these rows")
    row_count, class_count = probabilities.shape
    if labels.min() < 0 or labels.max() >= class_count:
        row = int(np.argmax((labels < 0) | (labels >= class_count)))
        raise DataError(f"label {labels[row]} in row {row} is out of range: the model has classes 0 to {class_count - 1}")
    predictions = probabilities.argmax(axis=1)
    classes = np.arange(class_count)
    clipped = np.clip(probabilities, np.finfo(np.float64).eps, 1.0)
    return Accuracy(
        row_count=row_count,
        top1=proportion_interval(int((predictions == labels).sum()), row_count),
        macro_f1=float(f1_score(labels, predictions, average="macro", zero_division=0.0)),
        nll=float(log_loss(labels, clipped / clipped.sum(axis=1, keepdims=True), labels=classes)),
        ece=expected_calibration_error(probabilities, labels),
    )


def expected_calibration_error(probabilities: Array, labels: Array, bins: int = _ECE_BINS) -> float:
    """ECE = Σₖ |Bₖ|/n · |accuracy(Bₖ) - confidence(Bₖ)| over bins of equal width (Guo et al. 2017, arXiv 1706.04599)."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bin_of_row = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_of_row, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))
