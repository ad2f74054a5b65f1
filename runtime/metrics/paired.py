"""Two models on the same rows: what each row is to both, and how far a metric changes from the one to the other.

Shape letters: ``n`` rows, ``c`` classes, ``m`` bins of confidence, ``g`` groups of rows, or rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from monograph.runtime.results import Interval
from monograph.runtime.statistics import CONFIDENCE, paired_bootstrap_interval

Array = npt.NDArray[Any]
_BINS = 15


@dataclass(frozen=True)
class Answers:
    """What a classifier gave for rows: one value a row."""

    predicted: Array
    """int64 ``[n]``, by the numbering that both models' classes were brought to."""
    is_right: Array
    """bool ``[n]``."""
    nll: Array
    """float64 ``[n]``, in nats."""
    confidence: Array
    """float64 ``[n]``: the probability of the predicted class."""

    def __len__(self) -> int:
        return len(self.predicted)

    def take(self, rows: Array) -> Self:
        """Return those of some rows."""
        return type(self)(self.predicted[rows], self.is_right[rows], self.nll[rows], self.confidence[rows])


@dataclass(frozen=True)
class Flips:
    """On how many of ``row_count`` rows a candidate answers otherwise than its reference."""

    row_count: int
    changed: int
    """Another class, right or wrong: the churn (Milani Fard et al. 2016, "Launch and Iterate: Reducing Prediction Churn")."""
    lost: int
    """Right before, wrong now: negative flips (Yan et al. 2021, arXiv 2011.09161)."""
    gained: int
    """Wrong before, right now."""


def count_flips(candidate: Answers, reference: Answers) -> Flips:
    """Count the rows on which the two differ."""
    return Flips(
        row_count=len(candidate),
        changed=int((candidate.predicted != reference.predicted).sum()),
        lost=int((reference.is_right & ~candidate.is_right).sum()),
        gained=int((candidate.is_right & ~reference.is_right).sum()),
    )


def answers_of(probabilities: Array, labels: Array, numbering: Array | None = None) -> Answers:
    """Return what probabilities ``[n, c]`` are to labels ``int64 [n]``; ``numbering`` ``[c]`` gives classes other numbers."""
    rows, predicted = np.arange(len(labels)), probabilities.argmax(axis=1)
    floor = np.finfo(np.float64).eps
    total = np.clip(probabilities, floor, 1.0).sum(axis=1)
    return Answers(
        predicted=predicted if numbering is None else numbering[predicted],
        is_right=predicted == labels,
        nll=np.log(total) - np.log(np.clip(probabilities[rows, labels], floor, 1.0)),
        confidence=probabilities[rows, predicted],
    )


def mean_change(candidate: Array, reference: Array, groups: Array | None = None, seed: int = 0) -> Interval:
    """Return by how much a mean over rows rises, such as that of the NLL, with its BCa interval over paired rows.

    Args:
        candidate: float64 ``[n]``.
        reference: likewise, of the same rows.
        groups: int ``[n]``; rows of one number are not independent.
        seed: of the draws.
    """
    parts = np.stack([np.ones(len(candidate)), candidate - reference], axis=1)
    return paired_bootstrap_interval(parts, lambda sums: sums[..., 1] / sums[..., 0], groups, seed)


def ece_change(candidate: Answers, reference: Answers, groups: Array | None = None, seed: int = 0) -> Interval:
    """Return by how much the expected calibration error rises, with its BCa interval over paired rows, widened for chance.

    The error of a sample is larger than the true one by chance (|gap| of each bin is), and more so that of the better
    calibrated model, which no resampling sees: each end is moved out by what chance may add to one and not to the other.

    Args:
        candidate: of the model in question.
        reference: of the other model, for the same rows.
        groups: int ``[n]``; rows of one number are not independent.
        seed: of the draws.
    """
    own, other = _gaps(candidate), _gaps(reference)
    parts = np.concatenate([np.ones((len(own), 1)), own, other], axis=1)
    found = paired_bootstrap_interval(parts, _ece_difference, groups, seed)
    if groups is not None:
        numbers = np.unique(groups, return_inverse=True)[1]
        own, other = (np.stack([np.bincount(numbers, column) for column in gaps.T], axis=1) for gaps in (own, other))
    n = len(candidate)
    low, high = found.low - _chance_excess(own, other) / n, found.high + _chance_excess(other, own) / n
    return Interval(found.estimate, low, high, found.confidence)


def _gaps(answers: Answers) -> Array:
    """Return what each row adds to the gap of its bin, right less confidence: float64 ``[n, m]``."""
    bins = np.minimum((answers.confidence * _BINS).astype(int), _BINS - 1)
    gaps = np.zeros((len(bins), _BINS))
    gaps[np.arange(len(bins)), bins] = answers.is_right - answers.confidence
    return gaps


def _ece_difference(sums: Array) -> Array:
    own, other = sums[..., 1 : 1 + _BINS], sums[..., 1 + _BINS :]
    return np.asarray((np.abs(own).sum(axis=-1) - np.abs(other).sum(axis=-1)) / sums[..., 0])


def _chance_excess(own: Array, other: Array) -> float:
    """Bound how much more chance adds to Σ|gap| of ``own`` ``[g, m]`` than to that of ``other``.

    Around a true gap a, |â| with standard error s has the mean a + e(a, s), of the folded normal (Leone et al. 1961,
    Technometrics 3:543), where e(a, s) = s √(2/π) exp(-a²/2s²) - 2a Φ(-a/s) falls in a, by no more than a rises, and rises in s.
    So a bin's excess is at most e at the least plausible gap, and at most what the two models' gaps and errors differ by.
    """
    z = float(norm.ppf(CONFIDENCE))
    gap, error = np.abs(own.sum(axis=0)), _standard_error(own)
    least = np.maximum(gap - z * error, 0.0)
    ratio = np.divide(least, error, out=np.full_like(least, np.inf), where=error > 0)
    alone = error * np.sqrt(2 / np.pi) * np.exp(-(ratio**2) / 2) - 2 * least * norm.cdf(-ratio)
    apart = np.abs((own - other).sum(axis=0)) + z * _standard_error(own - other)
    beside = apart + np.sqrt(2 / np.pi) * np.abs(error - _standard_error(other))
    return float(np.minimum(alone, beside).sum())


def _standard_error(values: Array) -> Array:
    """Of the sum of each column of independent ``[g, m]``."""
    count = len(values)
    return np.asarray(np.sqrt(values.var(axis=0, ddof=1) * count)) if count > 1 else np.zeros(values.shape[1])
