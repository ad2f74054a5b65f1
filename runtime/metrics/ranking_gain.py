"""What a fusion gains over its best member where rows are ranked within groups, such as films for each user.

Shape letters: ``n`` rows, ``g`` groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import DataError
from monograph.runtime.metrics.blocks import one_column
from monograph.runtime.metrics.ranking import mean_over_groups, values_by_group
from monograph.runtime.results import Interval, Score
from monograph.runtime.statistics import CONFIDENCE, paired_bootstrap_interval

Array = npt.NDArray[Any]
_LABELS = {"auc": "AUC", "ndcg@10": "NDCG@10"}


@dataclass(frozen=True)
class MetricGain:
    """One metric of a fusion and of its members, each the mean over groups."""

    metric: str
    """``auc`` or ``ndcg@10``."""
    group_count: int
    """Groups that have the metric."""
    fused: Score
    members: Mapping[str, Score]
    best_member: str
    """By this metric on these very rows: its lead over the other members is in part luck, so that the gain over it is told
    rather too small than too large."""
    gains: Mapping[str, Interval]
    """By how much the fusion's mean is higher than each member's; the interval is of paired groups."""

    @property
    def label(self) -> str:
        """The metric's name, for people."""
        return _LABELS[self.metric]

    @property
    def gain(self) -> Interval:
        """Over the best member."""
        return self.gains[self.best_member]

    def describe(self) -> str:
        """Return one clause for people."""
        bounds = f"[{self.gain.low:+.4f}, {self.gain.high:+.4f}]"
        gained = f"{self.gain.estimate:+.4f} {bounds} over {self.best_member}"
        return f"{self.label} {self.fused.estimate:.4f}, {gained} (mean over {self.group_count:,} groups)"


@dataclass(frozen=True)
class RankingGain:
    """What a fusion gains by each metric."""

    row_count: int
    metrics: tuple[MetricGain, ...]
    """Those that at least one group has: the area under the ROC curve, and NDCG@10."""

    def describe(self) -> str:
        """Return one line for people."""
        return "; ".join(metric.describe() for metric in self.metrics)


def ranking_gain(fused: Array, members: Mapping[str, Array], relevance: Array, groups: Array, seed: int = 0) -> RankingGain:
    """Score a fusion beside its members by AUC and NDCG@10, each the mean over groups, and bootstrap its gain over each of them.

    A group is drawn with all that fusion and members gave for it (BCa, Efron 1987), for its rows are not independent; what the
    groups share, such as films, is taken as given. The rows must be those that neither models nor weights were fitted on.

    Args:
        fused: ``[n]`` or ``[n, 1]``, by which rows are ordered, the highest first.
        members: likewise, by name.
        relevance: ``[n]``, 0 or more; above 0 is relevant.
        groups: ``[n]``; rows of one value are ranked against each other.
        seed: of the draws.

    Raises:
        DataError: arrays of different lengths, scores that are not finite, relevance below 0, no members, or no group that can
            be ranked.
    """
    if not members:
        raise DataError("a gain is told over members, and there are none: give each member's scores by its name")
    by_name = {name: one_column(np.asarray(scores), "a ranking has one score a row") for name, scores in members.items()}
    fused = one_column(np.asarray(fused), "a ranking has one score a row")
    relevance = one_column(np.asarray(relevance), "one relevance a row")
    _check({"the fusion": fused, **by_name}, relevance, groups)
    numbers = np.unique(groups, return_inverse=True)[1]
    of_fused = values_by_group(fused, relevance, numbers)
    of_members = {name: values_by_group(scores, relevance, numbers) for name, scores in by_name.items()}
    metrics = tuple(
        _gain(metric, values, {name: own[metric] for name, own in of_members.items()}, seed)
        for metric, values in of_fused.items()
        if np.isfinite(values).any()
    )
    if not metrics:
        raise DataError(f"none of {numbers.max() + 1:,} groups has two rows and a relevant one: there is nothing to rank")
    return RankingGain(len(relevance), metrics)


def _check(scores: Mapping[str, Array], relevance: Array, groups: Array) -> None:
    lengths = {name: len(array) for name, array in scores.items()} | {"relevance": len(relevance), "groups": len(groups)}
    if len(set(lengths.values())) > 1 or not len(relevance):
        raise DataError(
            f"rows differ: {', '.join(f'{name} has {length}' for name, length in lengths.items())}: give all of one set"
        )
    for name, array in scores.items():
        if not np.isfinite(array).all():
            raise DataError(f"{name}'s score of row {int(np.argmin(np.isfinite(array)))} is not finite: such a row has no rank")
    if not (fine := np.isfinite(relevance) & (relevance >= 0)).all():
        raise DataError(f"row {int(np.argmin(fine))} has relevance {relevance[np.argmin(fine)]}, expected 0 or more")


def _gain(metric: str, fused: Array, members: Mapping[str, Array], seed: int) -> MetricGain:
    """Compare values of groups ``[g]``; a group lacks the metric for all or for none, as that is a matter of its labels."""
    known = np.isfinite(fused)
    return MetricGain(
        metric=metric,
        group_count=int(known.sum()),
        fused=mean_over_groups(metric, fused, seed),
        members={name: mean_over_groups(metric, values, seed) for name, values in members.items()},
        best_member=max(members, key=lambda name: float(members[name][known].mean())),
        gains={name: _mean_difference(fused[known] - values[known], seed) for name, values in members.items()},
    )


def _mean_difference(differences: Array, seed: int) -> Interval:
    parts = np.stack([np.ones(len(differences)), differences], axis=1)
    return paired_bootstrap_interval(parts, lambda sums: sums[..., 1] / sums[..., 0], None, seed, CONFIDENCE)
