"""All statistics of the project: intervals and tests, each with its source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from monograph.runtime.results import Interval

Array = npt.NDArray[Any]
CONFIDENCE = 0.95


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


def bootstrap_interval(
    values: Array, statistic: Callable[..., Any], seed: int = 0, confidence: float = CONFIDENCE, resamples: int = 2000
) -> Interval:
    """Percentile bootstrap (Efron 1979) over the first axis of ``values``; rows or blocks are resampled whole."""
    estimate = float(statistic(values, axis=0))
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(estimate, estimate, estimate, confidence)
    result = stats.bootstrap(
        (values,), statistic, confidence_level=confidence, n_resamples=resamples, method="percentile", rng=seed
    )
    return Interval(estimate, float(result.confidence_interval.low), float(result.confidence_interval.high), confidence)
