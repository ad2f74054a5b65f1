"""How differently two classifiers err on the same rows, which is what a fusion of them can live on.

Shape letters: ``n`` rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import DataError
from monograph.runtime.metrics.blocks import no_score, score_of
from monograph.runtime.metrics.features import check_same_rows
from monograph.runtime.results import Interval, Score
from monograph.runtime.statistics import multinomial_interval, proportion_interval

Array = npt.NDArray[Any]
FEWEST_ROWS = 30


@dataclass(frozen=True)
class PairCounts:
    """On how many rows two classifiers are right and wrong together.

    Raises:
        DataError: a count is negative, or there is no row.
    """

    both_right: int
    only_first: int
    only_second: int
    both_wrong: int

    def __post_init__(self) -> None:
        cells = (self.both_right, self.only_first, self.only_second, self.both_wrong)
        if min(cells) < 0 or sum(cells) == 0:
            raise DataError(f"pair counts {list(cells)} are of no rows, expected counts from 0 on and one row or more")

    @property
    def row_count(self) -> int:
        """All rows, n."""
        return self.both_right + self.only_first + self.only_second + self.both_wrong


Statistic = Callable[[PairCounts], float | None]
"""Of pair counts, within −1 and 1; None where they do not define it."""


def pair_counts(right_a: Array, right_b: Array) -> PairCounts:
    """Count the rows by which of two classifiers is right: bool ``[n]`` each.

    Raises:
        DataError: they are not bool ``[n]`` of the same rows, or there is no row.
    """
    for right in (right_a, right_b):
        if right.ndim != 1 or right.dtype != np.bool_:
            raise DataError(
                f"right answers are {right.dtype} {list(right.shape)}, expected bool [n]: compare predictions to labels"
            )
    check_same_rows(right_a, right_b, "the right answers of the two models")
    return PairCounts(
        both_right=int((right_a & right_b).sum()),
        only_first=int((right_a & ~right_b).sum()),
        only_second=int((~right_a & right_b).sum()),
        both_wrong=int((~right_a & ~right_b).sum()),
    )


def churn(predicted_a: Array, predicted_b: Array) -> float:
    """Return the share of rows that get another class, right or wrong (Milani Fard et al. 2016, "Launch and Iterate").

    Args:
        predicted_a: classes ``[n]``.
        predicted_b: likewise, in the same numbering.

    Raises:
        DataError: they are not ``[n]`` of the same rows, or there is no row.
    """
    for predicted in (predicted_a, predicted_b):
        if predicted.ndim != 1 or len(predicted) == 0:
            raise DataError(
                f"predictions have the shape {list(predicted.shape)}, expected [n] of one row or more: one class a row"
            )
    check_same_rows(predicted_a, predicted_b, "the predictions of the two models")
    return float(np.mean(predicted_a != predicted_b))


def disagreement(counts: PairCounts) -> float:
    """Return the share of rows on which exactly one is right (Skalak 1996; Kuncheva and Whitaker 2003)."""
    return (counts.only_first + counts.only_second) / counts.row_count


def double_fault(counts: PairCounts) -> float:
    """Return the share of rows on which both are wrong, which no choice between the two mends.

    Giacinto and Roli 2001; Kuncheva and Whitaker 2003, doi 10.1023/A:1022859003006.
    """
    return counts.both_wrong / counts.row_count


def oracle_accuracy(counts: PairCounts) -> float:
    """Return the share of rows that either gets right: what an oracle would reach that always trusts the right one."""
    return (counts.row_count - counts.both_wrong) / counts.row_count


def yules_q(counts: PairCounts) -> float | None:
    """Return Yule's Q: 1 where the two err on the same rows, about 0 where independently, −1 where on different ones.

    Yule 1900, Phil. Trans. R. Soc. A 194:257; Kuncheva and Whitaker 2003, doi 10.1023/A:1022859003006. None where
    it is undefined: an empty row or column of the table, for example of a model that is right everywhere.
    """
    alike, apart = counts.both_right * counts.both_wrong, counts.only_first * counts.only_second
    return (alike - apart) / (alike + apart) if alike + apart else None


def error_consistency(counts: PairCounts) -> float | None:
    """Return κ: how much more often both are right or both wrong than models of their accuracies that err independently.

    Geirhos et al. 2020, arXiv 2006.16736 (Cohen's κ of what is right). None where that is expected on every row,
    because both models are right everywhere, or both wrong.
    """
    n, first, second = counts.row_count, counts.both_right + counts.only_first, counts.both_right + counts.only_second
    # Whole numbers, n² times the shares, so that an expected agreement of 1 is exactly that.
    observed, expected = n * (counts.both_right + counts.both_wrong), first * second + (n - first) * (n - second)
    return (observed - expected) / (n * n - expected) if expected != n * n else None


_SHARES: tuple[Statistic, ...] = (disagreement, double_fault, oracle_accuracy)


def with_interval(counts: PairCounts, statistic: Statistic, seed: int = 0) -> Score:
    """Return a statistic of two classifiers with its interval at 95%, or the reason why these rows have none.

    A share of rows gets Wilson's interval; any other statistic the percentiles of tables drawn anew.

    Args:
        counts: of 30 rows or more, else there is no figure.
        statistic: a function of this file, or any other within −1 and 1.
        seed: of the draws.
    """
    if counts.row_count < FEWEST_ROWS:
        return no_score(f"not enough evidence: {counts.row_count} rows, needed are {FEWEST_ROWS} or more")
    estimate = statistic(counts)
    if estimate is None:
        return no_score("undefined on these rows: a model is right, or wrong, on too many of them")
    if statistic in _SHARES:
        return score_of(proportion_interval(round(estimate * counts.row_count), counts.row_count))
    return score_of(_drawn_interval(counts, statistic, estimate, seed))


def _drawn_interval(counts: PairCounts, statistic: Statistic, estimate: float, seed: int) -> Interval:
    """Draw tables from these counts with half a row more in each cell (Anscombe 1956, Biometrika 43:461).

    A cell in which there happens to be no row would stay empty in every draw, as if it were known that none can be.
    A draw that does not define the statistic may be anything: it counts as −1 for the lower end and as 1 for the upper.
    """
    cells = np.array([counts.both_right, counts.only_first, counts.only_second, counts.both_wrong]) + 0.5

    def drawn(undefined: float) -> Interval:
        def of_draw(draw: Array) -> float:
            # The interval also asks for the statistic of the raised counts themselves, which is not used.
            value = statistic(PairCounts(*(int(count) for count in draw)))
            return undefined if value is None else value

        return multinomial_interval(of_draw, cells, seed)

    low, high = drawn(-1.0), drawn(1.0)
    return Interval(estimate, min(low.low, estimate), max(high.high, estimate), low.confidence)
