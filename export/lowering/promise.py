"""What a quantised model may lose, and whether paired rows prove that it loses no more.

Three measures: top-1 of rows with labels (Tango's score bound), top-1 agreement of rows without (exact binomial bound), and,
for a model without classes, the growth of its root mean squared error (BCa bootstrap). All are in points, and a bound is
one-sided at 95%.

Shape letters: ``n`` rows, ``c`` classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from monograph.errors import DataError, ParityError
from monograph.models.contract import Contract
from monograph.models.data.rows import Rows
from monograph.runtime.statistics import (
    CONFIDENCE,
    exact_interval,
    noninferiority_z,
    paired_bootstrap_interval,
    paired_loss_bound,
    rows_for_loss_bound,
    units_to_decide,
)

Array = npt.NDArray[Any]
_FEWEST_ROWS = 20
_LIKELY = 0.9
_TINY = float(np.finfo(np.float64).tiny)


class Measure(StrEnum):
    """What a loss is a loss of."""

    TOP1 = "top-1"
    AGREEMENT = "top-1 agreement"
    ERROR = "error in hundredths of the labels' spread"


@dataclass(frozen=True)
class Limit:
    """What may be lost."""

    option: str
    """How it was asked for, such as ``--max-drop 0.5``."""
    measure: Measure
    points: float
    """For an agreement the share, in points, of rows that may choose another class."""

    @property
    def fewest_rows(self) -> int:
        """How many rows it takes to prove it where the two models never differ."""
        share = self.points / 100
        if self.measure is Measure.TOP1:
            return rows_for_loss_bound(share) or _FEWEST_ROWS
        if self.measure is Measure.AGREEMENT:
            return math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - share))
        return _FEWEST_ROWS


@dataclass(frozen=True)
class Loss:
    """A quantised model beside its source on the same rows."""

    row_count: int
    points: float
    """Lost; negative where it gained."""
    bound_points: float
    """Upper bound at 95%, one-sided."""
    lost: int | None = None
    """Rows that only the source has right or, without labels, that choose another class; None without classes."""
    gained: int | None = None

    def describe(self) -> str:
        """Return a clause for people."""
        flips = "" if self.lost is None else f", {self.lost} rows lost and {self.gained} gained"
        return f"{self.points:.2f} points (at most {self.bound_points:.2f}){flips} of {self.row_count:,}"


@dataclass(frozen=True)
class Promise:
    """A loss on rows that no choice was made by, tested once."""

    option: str
    measure: str
    limit_points: float
    loss: Loss
    confidence: float = CONFIDENCE

    def describe(self) -> str:
        """Return a sentence for people."""
        return (
            f"{self.option} holds at {self.confidence:.0%}: on {self.loss.row_count:,} rows that nothing was chosen by it loses "
            f"{self.loss.points:.2f} points of {self.measure}, at most {self.loss.bound_points:.2f}"
        )


def limit_of(max_drop: float | None, min_agreement: float | None, contract: Contract) -> Limit:
    """Return the limit of a model with ``contract``; exactly one of the first two is given."""
    if max_drop is not None:
        measure = Measure.TOP1 if contract.kind.has_classes else Measure.ERROR
        return Limit(f"--max-drop {max_drop:g}", measure, max_drop)
    assert min_agreement is not None
    return Limit(f"--min-agreement {min_agreement:g}", Measure.AGREEMENT, 100 * (1 - min_agreement))


def check_rows(limit: Limit, rows: Rows) -> Rows:
    """Return the rows that ``limit`` can be tested on: those with a label, where it takes labels.

    Raises:
        DataError: they have no labels, or labels of another kind than one class a row.
    """
    if limit.measure is Measure.AGREEMENT:
        return rows
    labels = rows.required_labels()
    if limit.measure is Measure.ERROR:
        return rows
    if labels.ndim != 1:
        raise DataError(
            f"{rows.origin}: labels of shape {list(labels.shape)}, and {limit.option} takes one class a row: give such, or "
            "--min-agreement"
        )
    return rows.take(np.flatnonzero(labels >= 0))


def loss_of(limit: Limit, expected: Array, got: Array, labels: Array | None) -> Loss:
    """Return what ``got`` ``[n, …]`` loses beside ``expected``.

    Raises:
        ParityError: the outputs have no class a row, which ``limit`` takes.
    """
    if limit.measure is Measure.ERROR:
        assert labels is not None
        return _error_loss(expected, got, labels)
    if expected.ndim < 2 or (limit.measure is Measure.TOP1 and expected.ndim != 2):
        raise ParityError(f"the output has the shape {list(expected.shape)}, and {limit.option} takes a best class of each row")
    before, after = expected.argmax(-1), got.argmax(-1)
    if limit.measure is Measure.AGREEMENT:
        changed = (before != after).reshape(len(before), -1).any(axis=1)
        return counted_loss(limit, int(changed.sum()), 0, len(changed))
    return counted_loss(
        limit,
        int(((before == labels) & (after != labels)).sum()),
        int(((before != labels) & (after == labels)).sum()),
        len(before),
    )


def counted_loss(limit: Limit, lost: int, gained: int, row_count: int) -> Loss:
    """Return the loss of so many rows that differ."""
    return Loss(row_count, 100 * (lost - gained) / row_count, 100 * _counted_bound(limit, lost, gained, row_count), lost, gained)


def _counted_bound(limit: Limit, lost: int, gained: int, row_count: int) -> float:
    if limit.measure is Measure.AGREEMENT:
        return exact_interval(lost, row_count).high
    return paired_loss_bound(lost, gained, row_count)


def _error_loss(expected: Array, got: Array, labels: Array) -> Loss:
    """Bootstrap the growth of the root mean squared error over the standard deviation of the labels."""
    spread = max(float(labels.std()), _TINY)
    flat = labels.reshape(len(labels), -1)
    squares = [((outputs.reshape(flat.shape) - flat) ** 2).mean(axis=1) / spread**2 for outputs in (expected, got)]
    parts = np.stack([np.ones(len(flat)), *squares], axis=1)
    found = paired_bootstrap_interval(parts, _growth_points)
    return Loss(len(flat), found.estimate, found.high)


def _growth_points(sums: Array) -> Array:
    mean = sums[..., 1:] / sums[..., :1]
    return np.asarray(100 * (np.sqrt(mean[..., 1]) - np.sqrt(mean[..., 0])))


def expected_bound(limit: Limit, loss: Loss, proof_count: int, candidate_count: int = 1) -> float:
    """Return the bound, in points, that ``proof_count`` other rows will keep with the probability 0.9.

    A search that takes the first candidate whose bound just holds would fail on other rows every second time, and more often
    the more candidates it tried, for the best of many was lucky. So the bound is that of other rows which behave as these do,
    and on it what chance may add between the two sets of rows, for the luckiest of ``candidate_count`` (Bonferroni).
    """
    power, n = float(norm.ppf(1 - (1 - _LIKELY) / candidate_count)), loss.row_count
    if loss.lost is None or loss.gained is None:
        error = (loss.bound_points - loss.points) / float(norm.ppf(CONFIDENCE))
        share = n / proof_count
        return loss.points + error * (float(norm.ppf(CONFIDENCE)) * math.sqrt(share) + power * math.sqrt(1 + share))
    scale = proof_count / n
    bound = _counted_bound(limit, round(loss.lost * scale), round(loss.gained * scale), proof_count)
    differing = loss.lost + loss.gained
    churn = (differing + 1) / n if differing else 0.0  # a small count is an underestimate as often as not
    return 100 * (bound + power * math.sqrt(churn * (1 / proof_count + 1 / n)))


def keep_promise(limit: Limit, loss: Loss, name: str) -> Promise:
    """Return the promise that ``loss`` keeps.

    Raises:
        DataError: the rows are too few to tell, and the message says how many it takes.
        ParityError: it loses more.
    """
    if loss.bound_points <= limit.points:
        return Promise(limit.option, limit.measure.value, limit.points, loss)
    told = f"{name} loses {loss.describe()} rows that nothing was chosen by"
    if loss.points < limit.points:
        needed = _rows_needed(limit, loss)
        raise DataError(
            f"{told}, which leaves open whether it keeps {limit.option}: it would take about {needed:,} such rows; nothing was "
            "written"
        )
    raise ParityError(f"{told}, more than {limit.option} allows; nothing was written")


def _rows_needed(limit: Limit, loss: Loss) -> int:
    """Return how many rows of the same behaviour would decide, at a power of 0.8."""
    if loss.lost is not None and loss.gained is not None and limit.measure is Measure.TOP1:
        z = float(noninferiority_z(loss.lost, loss.gained, loss.row_count, limit.points / 100))
    else:
        error = max((loss.bound_points - loss.points) / float(norm.ppf(CONFIDENCE)), _TINY)
        z = (loss.points - limit.points) / error
    return units_to_decide(z, loss.row_count) or loss.row_count
