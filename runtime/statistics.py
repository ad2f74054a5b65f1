"""All statistics of the project: intervals and tests, each with its source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.optimize import brentq

from monograph.runtime.results import Interval

Array = npt.NDArray[Any]
CONFIDENCE = 0.95
BOTH_BOUNDS = 2 * CONFIDENCE - 1
"""Of a two-sided interval whose ends are each a one-sided bound at 95%."""
POWER = 0.8
"""How likely :func:`units_to_decide` units decide, if what was seen is the truth."""
_BOOTSTRAP_WORK = 40_000_000
"""Numbers that one bootstrap may read, about."""
_TABLE_WORK = 100_000
_BATCHES = 20
_MOST_CLUSTERS = 2000
"""BCa leaves out one unit after the other, so that its work grows with their square."""


def proportion_interval(success_count: int, row_count: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927, JASA 22:209), for example of top-1 accuracy."""
    interval = stats.binomtest(success_count, row_count).proportion_ci(confidence, method="wilson")
    return Interval(success_count / row_count, float(interval.low), float(interval.high), confidence)


def quantile_interval(samples: Sequence[float] | Array, quantile: float, confidence: float = CONFIDENCE) -> Interval | None:
    """Return the quantile with its distribution-free interval from order statistics (Conover 1999, section 3.2).

    Returns None where the samples are too few for a finite interval: p99 at 95% needs 368.
    """
    values = np.asarray(samples, np.float64)
    estimate = float(np.quantile(values, quantile))
    interval = stats.quantile_test(values, p=quantile).confidence_interval(confidence)
    if not (np.isfinite(interval.low) and np.isfinite(interval.high)):
        return None
    return Interval(estimate, float(interval.low), float(interval.high), confidence)


def batched_quantile_interval(
    samples: Sequence[float] | Array, quantile: float, seed: int = 0, confidence: float = CONFIDENCE, resamples: int = 500
) -> Interval | None:
    """Return the quantile of a series whose values depend on those before, as latencies in a queue do, with its interval.

    20 consecutive batches are drawn whole, with replacement (block bootstrap, Carlstein 1986, doi 10.1214/aos/1176350057);
    the interval from order statistics would take every value for a new witness. None where that one would be None too.
    """
    values = np.asarray(samples, np.float64)
    if quantile_interval(values, quantile, confidence) is None or len(values) < _BATCHES:
        return None
    batches = values[: len(values) // _BATCHES * _BATCHES].reshape(_BATCHES, -1)
    drawn = np.random.default_rng(seed).integers(0, _BATCHES, (resamples, _BATCHES))
    estimates = [float(np.quantile(batches[chosen], quantile)) for chosen in drawn]
    tail = _expanded_tail(_BATCHES, confidence)
    low, high = np.quantile(estimates, [tail, 1 - tail])
    estimate = float(np.quantile(values, quantile))
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate), confidence)


def _expanded_tail(count: int, confidence: float) -> float:
    """The share that the expanded percentile bootstrap leaves out on either side (see :func:`bootstrap_interval`)."""
    return float(stats.norm.cdf(-np.sqrt(count / (count - 1)) * stats.t.ppf((1 + confidence) / 2, count - 1)))


def bootstrap_interval(
    values: Array, statistic: Callable[..., Any], seed: int = 0, confidence: float = CONFIDENCE, resamples: int = 2000
) -> Interval:
    """Expanded percentile bootstrap over the first axis of ``values``; rows or blocks are resampled whole.

    The percentile bootstrap (Efron 1979) of few blocks is too narrow: that of the median of 7 misses the truth in 12 of 100
    cases. Its percentiles are therefore moved out by what Student's t for n − 1 is wider than the normal
    (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", arXiv 1411.5279, section 3.3).
    """
    estimate = float(statistic(values, axis=0))
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(estimate, estimate, estimate, confidence)
    level = 1 - 2 * _expanded_tail(len(values), confidence)
    result = stats.bootstrap((values,), statistic, confidence_level=level, n_resamples=resamples, method="percentile", rng=seed)
    return Interval(estimate, float(result.confidence_interval.low), float(result.confidence_interval.high), confidence)


def row_bootstrap_interval(
    statistic: Callable[[Array], float],
    row_count: int,
    estimate: float | None = None,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    row_work: int = 1,
) -> Interval:
    """Percentile bootstrap (Efron 1979) of a statistic of how often each row was drawn: int64 ``[n]``.

    A resample with replacement is such counts, so that whatever the statistic sorts or ranks is sorted once and not for each.
    A draw for which the statistic is not finite, such as an AUC without any positive row, says nothing and is left out.

    Args:
        statistic: of the counts.
        row_count: n.
        estimate: of all rows, where a library has computed it; else the statistic of all ones.
        seed: of the draws.
        confidence: of the two-sided interval.
        row_work: numbers that the statistic reads a row; more of them, or more rows, and fewer draws are made, 200 to 2,000.
    """
    estimate = float(statistic(np.ones(row_count, np.int64)) if estimate is None else estimate)
    resamples = int(np.clip(_BOOTSTRAP_WORK // max(row_count * row_work, 1), 200, 2000))
    rng = np.random.default_rng(seed)
    drawn = (np.bincount(rng.integers(0, row_count, row_count), minlength=row_count) for _ in range(resamples))
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.array([statistic(counts) for counts in drawn])
    finite = values[np.isfinite(values)]
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2]) if len(finite) else (estimate, estimate)
    return Interval(estimate, float(low), float(high), confidence)


def multinomial_interval(
    statistic: Callable[[Array], float], cell_counts: Array, seed: int = 0, confidence: float = CONFIDENCE
) -> Interval:
    """Percentile bootstrap (Efron 1979) of a statistic of how many rows fall into each cell of a table: int64 ``[k]``.

    Rows drawn with replacement fall into the cells as a multinomial draw does, so the rows themselves are not needed.
    """
    row_count = int(cell_counts.sum())
    resamples = int(np.clip(_TABLE_WORK // max(len(cell_counts), 1), 200, 1000))
    draws = np.random.default_rng(seed).multinomial(row_count, cell_counts / row_count, size=resamples)
    low, high = np.quantile([statistic(draw) for draw in draws], [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(statistic(cell_counts)), float(low), float(high), confidence)


def mean_interval(value_sum: float, square_sum: float, row_count: int, confidence: float = CONFIDENCE) -> Interval:
    """Student's t interval of a mean from the sums of the values and of their squares: all that a stream need keep."""
    mean = value_sum / row_count
    if row_count < 2:
        return Interval(mean, mean, mean, confidence)
    variance = max(square_sum - row_count * mean**2, 0.0) / (row_count - 1)
    half = float(stats.t.ppf((1 + confidence) / 2, row_count - 1)) * float(np.sqrt(variance / row_count))
    return Interval(mean, mean - half, mean + half, confidence)


def noninferiority_z(lost: Array | int, gained: Array | int, row_count: int, margin: float) -> Array:
    """Return Tango's score statistic of a paired loss against ``margin`` (Tango 1998, Statistics in Medicine 17:891-908).

    Both models answer the same rows. The statistic is about standard normal where the true loss is the margin, and the
    smaller, the better: the loss is below the margin at 95% confidence, one-sided, where it is at most -1.645.

    Args:
        lost: how many rows only the reference has right; one number or an array of them.
        gained: how many rows only the candidate has right.
        row_count: all rows, those on which both agree too.
        margin: a loss in accuracy as a share, from 0 to 1.
    """
    b, c, n = np.asarray(lost, np.float64), np.asarray(gained, np.float64), float(row_count)
    quadratic, linear, constant = 2 * n, -b - c + (2 * n - b + c) * margin, -c * margin * (1 - margin)
    share_gained = (np.sqrt(np.maximum(linear**2 - 4 * quadratic * constant, 0.0)) - linear) / (2 * quadratic)
    variance = n * (2 * share_gained + margin * (1 - margin))
    # Without any variance, at a margin of 0 and rows that all agree, nothing speaks for either side.
    z = np.divide(b - c - n * margin, np.sqrt(np.maximum(variance, 0.0)), out=np.zeros_like(b + c), where=variance > 0)
    return np.asarray(z)


def paired_loss_bound(lost: int, gained: int, row_count: int, confidence: float = CONFIDENCE) -> float:
    """Return the one-sided upper bound of a paired loss in accuracy, as a share: where :func:`noninferiority_z` just passes.

    With no row on which the two differ it is z² / (n + z²): 0.27 points for 1,000 rows at 95%.
    """
    critical = float(stats.norm.ppf(confidence))

    def excess(margin: float) -> float:
        return float(noninferiority_z(lost, gained, row_count, margin)) + critical

    estimate, most = (lost - gained) / row_count, 1 - 1e-12
    return 1.0 if excess(most) > 0 else float(brentq(excess, estimate, most))


def smallest_loss_bound(row_count: int, confidence: float = CONFIDENCE) -> float:
    """Return the least loss, as a share, that ``row_count`` rows can rule out: the bound where the two models never differ."""
    return paired_loss_bound(0, 0, row_count, confidence)


def rows_for_loss_bound(loss: float, confidence: float = CONFIDENCE) -> int | None:
    """Return how many rows it takes to rule out ``loss`` where the two models never differ; None where none suffice."""
    square = float(stats.norm.ppf(confidence)) ** 2
    return None if loss <= 0 else int(np.ceil(square * (1 - loss) / loss - 1e-9))


def resampled_mean_interval(values: Sequence[float], test_to_train: float, confidence: float = CONFIDENCE) -> Interval:
    """Return the mean over random splits of one data set, with its corrected t interval (Nadeau and Bengio 2003).

    Splits of one data set share rows, so that their results are not independent: the variance of the mean is taken for
    (1/k + n_test/n_train) times that of the values (doi 10.1023/A:1024068626366).

    Args:
        values: one a split, two or more.
        test_to_train: rows of the test part over rows of the training part.
        confidence: of the two-sided interval.
    """
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * spread * np.sqrt(1 / len(values) + test_to_train)
    return Interval(mean, mean - float(half), mean + float(half), confidence)


def paired_loss_interval(lost: int, gained: int, row_count: int, confidence: float = BOTH_BOUNDS) -> Interval:
    """Return a paired loss in accuracy, as a share, with Tango's score interval: both ends of :func:`paired_loss_bound`."""
    one_sided = (1 + confidence) / 2
    low, high = -paired_loss_bound(gained, lost, row_count, one_sided), paired_loss_bound(lost, gained, row_count, one_sided)
    return Interval((lost - gained) / row_count, low, high, confidence)


def mcnemar_p(lost: int, gained: int) -> float:
    """Return the exact two-sided p of McNemar's test (McNemar 1947, Psychometrika 12:153): a large one proves nothing equal."""
    return float(stats.binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def exact_interval(success_count: int, row_count: int, confidence: float = BOTH_BOUNDS) -> Interval:
    """Clopper and Pearson's exact interval of a proportion (1934, Biometrika 26:404), never narrower than it says."""
    # It brings pandas, which a process that only times a model does without.
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(success_count, row_count, alpha=1 - confidence, method="beta")
    return Interval(success_count / row_count, float(low), float(high), confidence)


def quantile_bounds(samples: Sequence[float] | Array, quantile: float, confidence: float = BOTH_BOUNDS) -> Interval:
    """Return the quantile with a one-sided distribution-free bound on either side (Conover 1999, section 3.2).

    A bound is infinite where the samples are too few for it: an upper one of p99 at 95% needs 299, of the median 5.
    """
    values = np.asarray(samples, np.float64)
    one_sided = (1 + confidence) / 2
    low, high = (
        float(getattr(stats.quantile_test(values, p=quantile, alternative=side).confidence_interval(one_sided), end))
        for side, end in (("greater", "low"), ("less", "high"))
    )
    return Interval(float(np.quantile(values, quantile)), low, high, confidence)


def paired_bootstrap_interval(
    parts: Array,
    statistic: Callable[[Array], Array],
    groups: Array | None = None,
    seed: int = 0,
    confidence: float = BOTH_BOUNDS,
    resamples: int = 2000,
) -> Interval:
    """Bias-corrected and accelerated bootstrap (BCa; Efron 1987, JASA 82:171) of a statistic of sums over paired rows.

    Rows, or whole groups of them, are drawn with all that both models gave for them. More than 2,000 rows are first put
    together at random into 2,000 clusters of equal size, whose sums are as independent as the rows were.

    Args:
        parts: float64 ``[n, k]``: what each row adds to the sums.
        statistic: of sums ``[…, k]`` to ``[…]``.
        groups: int ``[n]``; rows of one number are not independent of each other, and are drawn together.
        seed: of the draws.
        confidence: of the two-sided interval.
        resamples: how many are drawn.
    """
    sums = _cluster_sums(parts, groups, seed)
    count = len(sums)
    estimate = float(statistic(sums.sum(axis=0)))
    if count < 2 or np.ptp(statistic(sums.sum(axis=0) - sums)) == 0:
        return Interval(estimate, estimate, estimate, confidence)

    def of_drawn(indices: Array, axis: int = -1) -> Array:
        return statistic(_drawn_counts(indices, count) @ sums)

    result = stats.bootstrap(
        (np.arange(count),), of_drawn, vectorized=True, confidence_level=confidence, n_resamples=resamples, method="BCa", rng=seed
    )
    return Interval(estimate, float(result.confidence_interval.low), float(result.confidence_interval.high), confidence)


def _cluster_sums(parts: Array, groups: Array | None, seed: int) -> Array:
    """Sum the parts of each group, or of each of 2,000 random clusters where there are more units: float64 ``[g, k]``."""
    numbers = np.arange(len(parts)) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(numbers.max()) + 1
    if count > _MOST_CLUSTERS:
        numbers = (np.random.default_rng(seed).permutation(count) % _MOST_CLUSTERS)[numbers]
        count = _MOST_CLUSTERS
    return np.stack([np.bincount(numbers, column, count) for column in parts.T], axis=1)


def _drawn_counts(indices: Array, count: int) -> Array:
    """Count how often each of ``count`` units was drawn: indices int ``[…, m]`` to float64 ``[…, count]``."""
    rows = indices.reshape(-1, indices.shape[-1])
    offsets = np.arange(len(rows))[:, None] * count
    counts = np.bincount((rows + offsets).ravel(), minlength=len(rows) * count)
    return counts.reshape(*indices.shape[:-1], count).astype(np.float64)


def holm_adjusted(p_values: Sequence[float] | Array) -> Array:
    """Return p-values adjusted so that all tests together err with the level of one (Holm 1979, Scand. J. Statist. 6:65)."""
    from statsmodels.stats.multitest import multipletests  # brings pandas

    return np.asarray(multipletests(np.asarray(p_values, np.float64), method="holm")[1])


def units_to_decide(z: float, unit_count: int, confidence: float = CONFIDENCE, power: float = POWER) -> int | None:
    """Return how many rows, runs or blocks in all would decide a test whose standardised statistic now is ``z``.

    With the same truth such a statistic grows as √n, and it decides with the probability ``power`` once its mean is
    z(confidence) + z(power) (for paired rows Liu et al. 2002, Statistics in Medicine 21:231-245). None where ``z`` is 0: what
    was seen is the threshold itself, and no number decides.
    """
    if z == 0:
        return None
    needed = float(stats.norm.ppf(confidence) + stats.norm.ppf(power))
    return max(unit_count + 1, int(np.ceil(unit_count * (needed / z) ** 2)))
