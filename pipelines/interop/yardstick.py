"""By what the models of a study are judged: top-1 of classes, AUC of a yes or no, RMSE of numbers; and what a change of it is.

Shape letters: ``n`` rows, ``c`` classes, ``g`` groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from monograph.models.contract import Kind
from monograph.models.data.rows import Array
from monograph.pipelines.interop.result import AUC, RMSE, TOP1, Change
from monograph.runtime.metrics import as_probabilities, score_classifier
from monograph.runtime.metrics.blocks import score_of
from monograph.runtime.metrics.ranking import mean_over_groups, values_by_group
from monograph.runtime.metrics.ranking_gain import RankingGain, ranking_gain
from monograph.runtime.metrics.ranks import auc
from monograph.runtime.results import Accuracy, Interval, Score
from monograph.runtime.statistics import (
    CONFIDENCE,
    bootstrap_interval,
    paired_bootstrap_interval,
    paired_loss_interval,
    proportion_interval,
    row_bootstrap_interval,
)


def metric_of(kind: Kind, labels: Array) -> str:
    """Return the name of the metric that outputs of ``kind`` and labels ``[n]`` or ``[n, k]`` go by."""
    if kind.has_classes:
        return TOP1
    return AUC if kind is Kind.SCORES and is_yes_or_no(labels) else RMSE


def is_yes_or_no(labels: Array) -> bool:
    """Tell whether there is one label of 0 or 1 a row."""
    return labels.size == len(labels) and bool(np.isin(labels, (0, 1)).all())


@dataclass(frozen=True)
class Yardstick:
    """One metric on one set of rows. Outputs are ``[n, …]`` of those rows; higher is better but for RMSE."""

    metric: str
    groups: Array | None = None
    """int ``[n]``: rows of one number are ranked against each other, and AUC is the mean over groups."""
    seed: int = 0

    @property
    def has_classes(self) -> bool:
        """Whether rows are right or wrong: of classes, and of a yes or no."""
        return self.metric in (TOP1, AUC)

    def take(self, rows: Array) -> Self:
        """Return the same for the rows at ``rows``."""
        return self if self.groups is None else replace(self, groups=self.groups[rows])

    def probabilities(self, output: Array, kind: Kind) -> Array | None:
        """Return float64 ``[n, c]``, of a yes or no those of no and yes; None where the output is no share of anything."""
        if kind.has_classes:
            return as_probabilities(np.asarray(output), kind)
        column = np.asarray(output, np.float64).reshape(len(output), -1)
        if self.metric != AUC or not ((column >= 0) & (column <= 1)).all():
            return None
        return np.concatenate([1 - column, column], axis=1)

    def accuracy(self, output: Array, kind: Kind, labels: Array) -> Accuracy | None:
        """Return top-1, NLL and calibration; None where nothing is a probability."""
        probable = self.probabilities(output, kind)
        return None if probable is None else score_classifier(probable, labels)

    def score(self, output: Array, labels: Array) -> Score:
        """Return the metric of outputs of any kind that the study compares."""
        if self.metric == TOP1:
            right = output.argmax(axis=1) == labels
            return score_of(proportion_interval(int(right.sum()), len(right)))
        if self.metric == RMSE:
            errors = _squared_errors(output, labels)
            return score_of(bootstrap_interval(errors, _root_mean, self.seed))
        scores = np.asarray(output, np.float64).reshape(-1)
        if self.groups is None:
            return score_of(row_bootstrap_interval(auc(scores, labels > 0), len(scores), seed=self.seed))
        return mean_over_groups("auc", values_by_group(scores, labels, self.groups)["auc"], self.seed)

    def value(self, output: Array, labels: Array) -> float | None:
        """Return the metric alone: what :meth:`score` gives, without the work of its interval."""
        if self.metric == TOP1:
            return float((output.argmax(axis=1) == labels).mean())
        if self.metric == RMSE:
            return float(_root_mean(_squared_errors(output, labels)))
        scores = np.asarray(output, np.float64).reshape(-1)
        if self.groups is None:
            return auc(scores, labels > 0)(np.ones(len(scores), np.int64))
        by_group = values_by_group(scores, labels, self.groups)["auc"]
        known = by_group[np.isfinite(by_group)]
        return float(known.mean()) if len(known) else None

    def change(self, new: Array, old: Array, labels: Array, over: str) -> Change:
        """Return how much better ``new`` is than ``old``, which is called ``over``, on the same rows."""
        found = self._change(new, old, labels)
        return Change(found.estimate, found.low, found.high, over)

    def _change(self, new: Array, old: Array, labels: Array) -> Interval:
        if self.metric == TOP1:
            was, now = (one.argmax(axis=1) == labels for one in (old, new))
            lost = paired_loss_interval(int((was & ~now).sum()), int((now & ~was).sum()), len(labels), CONFIDENCE)
            return Interval(*(0.0 - 100 * share for share in (lost.estimate, lost.high, lost.low)))  # 0 has no sign
        if self.metric == RMSE:
            errors = np.stack([np.ones(len(labels)), _squared_errors(old, labels), _squared_errors(new, labels)], axis=1)
            return paired_bootstrap_interval(errors, _lower_rmse, None, self.seed, CONFIDENCE)
        if self.groups is not None:
            told = ranking_gain(new, {"old": old}, labels, self.groups, self.seed)
            return next(one.gain for one in told.metrics if one.metric == "auc")
        after, before = (auc(np.asarray(one, np.float64).reshape(-1), labels > 0) for one in (new, old))
        return row_bootstrap_interval(lambda drawn: after(drawn) - before(drawn), len(labels), seed=self.seed)

    def retention(self, student: Array, teacher: Array, labels: Array) -> float | None:
        """Return which share of what the teacher can the student can, counted from where nothing is known.

        That is 0 of top-1, 0.5 of AUC, and the standard deviation of the labels in RMSE; None where the teacher is no better.
        """
        own, theirs = (self.value(one, labels) for one in (student, teacher))
        if own is None or theirs is None:
            return None
        nothing = {TOP1: 0.0, AUC: 0.5}.get(self.metric, float(np.std(np.asarray(labels, np.float64))))
        known = theirs - nothing
        is_better = known < 0 if self.metric == RMSE else known > 0
        return (own - nothing) / known if is_better else None

    def ranking(self, fused: Array, members: Mapping[str, Array], labels: Array) -> RankingGain | None:
        """Return AUC and NDCG@10 of a fusion beside its members, by group; None where there are no groups."""
        if self.metric != AUC or self.groups is None:
            return None
        return ranking_gain(fused, members, labels, self.groups, self.seed)


def _root_mean(errors: Array, axis: int = -1) -> Array:
    return np.asarray(np.sqrt(np.mean(errors, axis=axis)))


def _squared_errors(output: Array, labels: Array) -> Array:
    """Return the mean over each row's numbers: float64 ``[n]``."""
    targets = np.asarray(labels, np.float64).reshape(len(labels), -1)
    return np.asarray(((np.asarray(output, np.float64).reshape(targets.shape) - targets) ** 2).mean(axis=1))


def _lower_rmse(sums: Array) -> Array:
    return np.asarray(np.sqrt(sums[..., 1] / sums[..., 0]) - np.sqrt(sums[..., 2] / sums[..., 0]))
