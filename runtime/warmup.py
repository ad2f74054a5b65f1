"""Where warm-up ends: by a search for the places at which the level of a series of call times changes.

Neither a count nor a time fits all: a cache is warm after two calls, a graphics processor compiles for a second, a laptop
runs faster for half a minute and then never again. So the whole series is kept, cut into segments of one level each, and
warm-up is what comes before the first segment that is on the level of the last one (Barrett and others 2017, "Virtual
Machine Warmup Blows Hot and Cold", doi 10.1145/3133876; there, though, a burst in the middle makes all before it warm-up,
which would hide the burst from p99).

Segments are found by optimal partitioning (Jackson and others 2005, doi 10.1109/LSP.2001.838216) of the logarithms of block
medians, told as distances from the level of the end and clipped there, so that a spike counts for no more than its place.
Call times follow each other, so that the penalty is in units of the long-run variance of an autoregressive process, whose
parameters come from differences, which a change of level leaves alone (Chakar and others 2017, doi 10.3150/15-BEJ782).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

BLOCK_LENGTH = 5
"""Fewest runs a block; its median passes over two spikes."""
MOST_BLOCKS = 240
"""Longer series get longer blocks, so that the search takes some milliseconds whatever their length."""
FEWEST_BLOCKS = 8
_FEWEST_BLOCKS_A_SEGMENT = 3
_PENALTY = 4.0
"""Times the long-run variance and the logarithm of the number of blocks; 2 would be the Bayesian information criterion,
twice that because the autoregressive process is itself a guess."""
_MOST_CORRELATED = 0.8
_MOST_SPREADS = 8.0
"""A segment is three blocks or more, so that one block with a spike is never worth two cuts."""
_MEDIAN_TO_SPREAD, _MEAN_TO_SPREAD = 1.4826, 1.2533
"""Of absolute differences, where these are normal."""
_COARSE = 0.3
_SAME_LEVEL = 0.01
"""Levels closer than this, relatively, are one."""


@dataclass(frozen=True)
class Steadiness:
    """What a series of call times says of itself."""

    warmup_runs: int
    """Runs before the level of the end was reached."""
    changes: tuple[int, ...] = ()
    """Runs, counted from the beginning, at which a segment of another level begins."""
    last_segment_runs: int = 0
    other_level_runs: int = 0
    """Runs after warm-up that were on another level than the end."""


def find_steady_state(samples_ns: Sequence[int]) -> Steadiness:
    """Cut a series of call times into levels and say where warm-up ends; fewer than 40 runs tell nothing."""
    series = np.asarray(samples_ns, np.float64)
    block_length = max(BLOCK_LENGTH, -(-len(series) // MOST_BLOCKS))
    block_count = len(series) // block_length
    if block_count < FEWEST_BLOCKS:
        return Steadiness(0, (), len(series))
    cut = series[len(series) - block_count * block_length :]  # what does not fill a block is left out at the beginning
    medians = np.median(cut.reshape(block_count, block_length), axis=1)
    starts = [0, *(len(series) - len(cut) + start * block_length for start in level_changes(medians))]
    segments = [series[start:end] for start, end in zip(starts, [*starts[1:], len(series)], strict=True)]
    same = [_is_same_level(segment, segments[-1]) for segment in segments]
    first = same.index(True)
    others = sum(len(segment) for segment, is_same in zip(segments[first:], same[first:], strict=True) if not is_same)
    return Steadiness(starts[first], tuple(starts[1:]), len(segments[-1]), others)


def level_changes(values: Array) -> list[int]:
    """Return where segments of another level begin in ``values`` [n], positive, the first of all left out."""
    logs = np.log(values)
    spread, inflation = _noise(logs)
    if spread == 0:
        return []
    end_level = np.median(logs[-(len(logs) // 4) :])
    distances = np.clip((logs - end_level) / spread, -_MOST_SPREADS, _MOST_SPREADS)
    return _partition(distances, _PENALTY * inflation * float(np.log(len(logs))))


def _noise(values: Array) -> tuple[float, float]:
    """Return σ of an autoregressive process of order 1, and by how much its long-run variance exceeds σ²: (1+ρ)/(1−ρ).

    A difference over one step has the variance 2σ²(1−ρ), over two 2σ²(1−ρ²), so that their ratio is 1+ρ.
    """
    one, two = _spread_of_differences(values, 1), _spread_of_differences(values, 2)
    if one == 0:
        return 0.0, 1.0
    correlation = float(np.clip((two / one) ** 2 - 1, 0.0, _MOST_CORRELATED))
    return one / np.sqrt(2 * (1 - correlation)), (1 + correlation) / (1 - correlation)


def _spread_of_differences(values: Array, steps: int) -> float:
    """Standard deviation of differences, from their median; from their mean where a coarse clock makes most of them 0."""
    differences = np.abs(values[steps:] - values[:-steps])
    from_median, from_mean = np.median(differences) * _MEDIAN_TO_SPREAD, differences.mean() * _MEAN_TO_SPREAD
    return float(from_median if from_median > _COARSE * from_mean else from_mean)


def _partition(values: Array, penalty: float) -> list[int]:
    """Cut ``values`` so that squared errors about segment means plus ``penalty`` a cut are least; O(n²), one row a step."""
    n, least = len(values), _FEWEST_BLOCKS_A_SEGMENT
    sums, squares = (np.concatenate([[0.0], np.cumsum(powers)]) for powers in (values, values**2))
    best = np.full(n + 1, np.inf)
    best[0] = -penalty
    previous = np.zeros(n + 1, np.int64)
    for end in range(least, n + 1):
        starts = np.arange(end - least + 1)
        errors = squares[end] - squares[starts] - (sums[end] - sums[starts]) ** 2 / (end - starts)
        costs = best[starts] + errors + penalty
        previous[end] = int(costs.argmin())
        best[end] = costs[previous[end]]
    cuts, end = [], n
    while previous[end] > 0:
        end = int(previous[end])
        cuts.append(end)
    return cuts[::-1]


def _is_same_level(segment: Array, last: Array) -> bool:
    """Whether the medians are within 1%, or that of ``segment`` is among the middle half of ``last``."""
    low, median, high = np.quantile(last, [0.25, 0.5, 0.75])
    middle = float(np.median(segment))
    return bool(low <= middle <= high or abs(middle / median - 1) <= _SAME_LEVEL)
