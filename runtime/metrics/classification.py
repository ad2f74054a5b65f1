"""Classifiers: top-1, macro F1, negative log-likelihood and calibration, over all rows and for each class.

What is kept of the rows is their count in each cell of the confusion matrix and a few sums, however many rows there are.
Shape letters: ``n`` rows, ``c`` classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.special import softmax
from sklearn.metrics import precision_recall_fscore_support

from monograph.errors import DataError
from monograph.models.contract import Kind
from monograph.runtime.metrics.blocks import Scored, no_score, score_of
from monograph.runtime.results import Accuracy, ClassScore, ConfusionCell, Score, Scorecard
from monograph.runtime.statistics import mean_interval, multinomial_interval, proportion_interval

Array = npt.NDArray[Any]
_ECE_BINS = 15
_MOST_CELLS_FOR_INTERVAL = 20_000


@dataclass(frozen=True)
class Tally:
    """What a classifier's metrics need of the rows; tallies of parts add up to that of the whole."""

    row_count: int
    cells: Array
    """int64 ``[k, 3]``: label, prediction, rows; cells without rows are left out."""
    top5_count: int
    nll_sum: float
    nll_square_sum: float
    gaps: Array
    """float64 ``[bins]``: Σ (right - confidence) over the rows of each bin of confidence."""
    class_count: int

    def __add__(self, other: Self) -> Tally:
        return Tally(
            self.row_count + other.row_count,
            _merged(np.concatenate([self.cells, other.cells]), self.class_count),
            self.top5_count + other.top5_count,
            self.nll_sum + other.nll_sum,
            self.nll_square_sum + other.nll_square_sum,
            self.gaps + other.gaps,
            self.class_count,
        )

    @property
    def right_count(self) -> int:
        """Rows whose most probable class is their label."""
        return int(self.cells[self.cells[:, 0] == self.cells[:, 1], 2].sum())

    @property
    def ece(self) -> float:
        """Expected calibration error."""
        return float(np.abs(self.gaps).sum() / self.row_count)

    def macro_f1(self, counts: Array | None = None) -> float:
        """Macro F1 over the classes that a row has or was given; ``counts`` of rows a cell take the place of the tallied."""
        labels, predicted, rows = self.cells.T
        weights = rows if counts is None else counts
        right = np.bincount(labels, weights * (labels == predicted), self.class_count)
        # Twice the right ones, the missed ones and the false ones: what a class has and what it was given.
        total = np.bincount(labels, weights, self.class_count) + np.bincount(predicted, weights, self.class_count)
        return float((2 * right[total > 0] / total[total > 0]).mean())


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


def tally_classifier(probabilities: Array, labels: Array, rows: Array | None = None) -> Tally:
    """Tally probabilities ``[n, c]`` against labels ``int64 [n]``; ``rows`` are their numbers, for messages.

    Raises:
        DataError: a label lies outside ``[0, c)``, or a probability is not finite.
    """
    if probabilities.ndim != 2 or probabilities.shape[1] < 2:
        raise DataError(f"outputs have the shape {list(probabilities.shape)}, expected [n, c]: one row of classes a row of input")
    numbers = np.arange(len(probabilities)) if rows is None else rows
    if not (finite := np.isfinite(probabilities).all(axis=1)).all():
        row = int(numbers[np.argmin(finite)])
        raise DataError(f"the model's output for row {row} is not finite: it has no accuracy on these rows")
    row_count, class_count = probabilities.shape
    if labels.min() < 0 or labels.max() >= class_count:
        at = int(np.argmax((labels < 0) | (labels >= class_count)))
        raise DataError(
            f"label {labels[at]} in row {int(numbers[at])} is out of range: the model has classes 0 to {class_count - 1}"
        )
    predictions = probabilities.argmax(axis=1)
    chosen = np.clip(probabilities[np.arange(row_count), labels], np.finfo(np.float64).eps, 1.0)
    # What rounds in single precision need not sum to one.
    nll = np.log(np.clip(probabilities, np.finfo(np.float64).eps, 1.0).sum(axis=1)) - np.log(chosen)
    ahead = (probabilities > probabilities[np.arange(row_count), labels][:, None]).sum(axis=1)
    return Tally(
        row_count=row_count,
        cells=_merged(np.stack([labels, predictions, np.ones_like(labels)], axis=1).astype(np.int64), class_count),
        top5_count=int((ahead < 5).sum()),
        nll_sum=float(nll.sum()),
        nll_square_sum=float((nll**2).sum()),
        gaps=_calibration_gaps(probabilities, labels, _ECE_BINS),
        class_count=class_count,
    )


def score_classifier(probabilities: Array, labels: Array) -> Accuracy:
    """Score probabilities ``[n, c]`` against labels ``int64 [n]``.

    Raises:
        DataError: a label lies outside ``[0, c)``, or a probability is not finite.
    """
    return accuracy_of(tally_classifier(probabilities, labels))


def accuracy_of(tally: Tally) -> Accuracy:
    """Return the main metrics of a classifier."""
    return Accuracy(
        row_count=tally.row_count,
        top1=proportion_interval(tally.right_count, tally.row_count),
        macro_f1=tally.macro_f1(),
        nll=tally.nll_sum / tally.row_count,
        ece=tally.ece,
    )


def tally_of(scored: Scored, kind: Kind) -> Tally:
    """Tally all rows, a block at a time.

    Raises:
        DataError: a label lies outside the model's classes, or an output is not finite.
    """
    parts = (tally_classifier(as_probabilities(outputs, kind), labels, rows) for outputs, labels, rows in scored.blocks())
    return reduce(Tally.__add__, parts)


def scorecard_of(tally: Tally, scored: Scored) -> Scorecard:
    """Return all metrics of a classifier, those of each class and the confusion matrix."""
    n = tally.row_count
    scores = {"top1": score_of(proportion_interval(tally.right_count, n))}
    if tally.class_count > 5:
        scores["top5"] = score_of(proportion_interval(tally.top5_count, n))
    scores["macro_f1"] = _macro_f1(tally)
    scores["nll"] = score_of(mean_interval(tally.nll_sum, tally.nll_square_sum, n))
    scores["ece"] = Score(tally.ece, note="a distance, biased upwards by chance: no interval is given")
    cells = tuple(ConfusionCell(*map(int, cell)) for cell in tally.cells)
    return Scorecard("classification", n, scores, _class_scores(tally, scored), cells)


def _macro_f1(tally: Tally) -> Score:
    if len(np.unique(tally.cells[:, 0])) == 1:
        return no_score("rows of one class only")
    if len(tally.cells) > _MOST_CELLS_FOR_INTERVAL:
        return Score(tally.macro_f1(), note=f"more than {_MOST_CELLS_FOR_INTERVAL:,} cells of confusion: no interval is given")
    return score_of(multinomial_interval(tally.macro_f1, tally.cells[:, 2]))


def _class_scores(tally: Tally, scored: Scored) -> tuple[ClassScore, ...]:
    labels, predicted, rows = tally.cells.T
    classes = range(tally.class_count)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=np.arange(tally.class_count), sample_weight=rows, zero_division=0.0
    )
    support = np.bincount(labels, weights=rows, minlength=tally.class_count).astype(int)
    given = np.bincount(predicted, weights=rows, minlength=tally.class_count).astype(int)
    return tuple(
        ClassScore(
            scored.name(number),
            int(support[number]),
            {
                "precision": _proportion(precision[number], given[number], "no row was given this class"),
                "recall": _proportion(recall[number], support[number], "no row has this class"),
                "f1": Score(float(f1[number])) if support[number] + given[number] else no_score("no row has or was given it"),
            },
        )
        for number in classes
    )


def _proportion(share: float, count: int, reason: str) -> Score:
    return score_of(proportion_interval(round(share * count), int(count))) if count else no_score(reason)


def _merged(cells: Array, class_count: int) -> Array:
    """Sum the rows of equal cells: int64 ``[k, 3]``, ordered by label and prediction."""
    summed = coo_array((cells[:, 2], (cells[:, 0], cells[:, 1])), shape=(class_count, class_count)).tocsr().tocoo()
    return np.stack([summed.row, summed.col, summed.data], axis=1).astype(np.int64)


def expected_calibration_error(probabilities: Array, labels: Array, bins: int = _ECE_BINS) -> float:
    """ECE = Σₖ |Bₖ|/n · |accuracy(Bₖ) - confidence(Bₖ)| over bins of equal width (Guo et al. 2017, arXiv 1706.04599)."""
    return float(np.abs(_calibration_gaps(probabilities, labels, bins)).sum() / len(labels))


def _calibration_gaps(probabilities: Array, labels: Array, bins: int) -> Array:
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bin_of_row = np.minimum((confidence * bins).astype(int), bins - 1)
    return np.asarray(np.bincount(bin_of_row, weights=correct - confidence, minlength=bins))
