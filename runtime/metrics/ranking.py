"""Ranking: rows of a group, such as the items of one user, ordered by their score.

Shape letters: ``n`` rows, ``g`` groups, ``m`` rows of a group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import ndcg_score

from monograph.errors import DataError
from monograph.runtime.metrics import ranks
from monograph.runtime.metrics.blocks import Scored, no_score, one_column, score_of
from monograph.runtime.results import Score, Scorecard
from monograph.runtime.statistics import bootstrap_interval, row_bootstrap_interval

Array = npt.NDArray[Any]
NDCG_DEPTH = 10


def score_ranking(scored: Scored) -> Scorecard:
    """Score outputs ``[n]`` against relevance ``[n]`` of 0 and more: AUC and NDCG@10, each the mean over groups.

    AUC takes rows of more than 0 for relevant. Without groups all rows are one. NDCG's gain is the relevance itself and its
    discount 1/log₂(rank + 1); tied scores are averaged over (scikit-learn's ``ndcg_score``).

    Raises:
        DataError: relevance below 0, or outputs of several columns.
    """
    outputs, labels = scored.values()
    scores, relevance = one_column(outputs, "a ranking has one score a row"), one_column(labels, "one relevance a row")
    if not (fine := np.isfinite(relevance) & (relevance >= 0)).all():
        raise DataError(f"row {int(np.argmin(fine))} has relevance {relevance[np.argmin(fine)]}, expected 0 or more")
    if scored.groups is None:
        positive = relevance > 0
        area = no_score("all rows are relevant, or none is")
        if 0 < positive.sum() < len(positive):
            area = score_of(row_bootstrap_interval(ranks.auc(scores, positive), len(positive)))
        return Scorecard("ranking", len(scored), {"auc": area})
    groups = np.asarray(scored.groups if scored.rows is None else scored.groups[scored.rows])
    values = values_by_group(scores, relevance, groups)
    return Scorecard("ranking", len(scored), {name: mean_over_groups(name, values[name]) for name in values})


def values_by_group(scores: Array, relevance: Array, groups: Array) -> dict[str, Array]:
    """Return each metric of each group, float64 ``[g]`` by rising group number, not a number where a group has none.

    Args:
        scores: ``[n]``, by which rows are ordered, the highest first.
        relevance: ``[n]``, 0 or more.
        groups: int ``[n]``.
    """
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    return {name: np.array([metric(scores[rows], relevance[rows]) for rows in members]) for name, (metric, _) in _METRICS.items()}


def mean_over_groups(metric: str, values: Array, seed: int = 0) -> Score:
    """Return the mean of a metric over groups, as :func:`values_by_group` gives them, with its interval over groups."""
    needs = _METRICS[metric][1]
    known = values[np.isfinite(values)]
    if not len(known):
        return no_score(f"none of {len(values):,} groups has {needs}")
    note = f"mean over {len(known):,} of {len(values):,} groups: those that have {needs}"
    return score_of(bootstrap_interval(known, np.mean, seed), note)


def _auc(scores: Array, relevance: Array) -> float:
    return ranks.auc(scores, relevance > 0)(np.ones(len(scores), np.int64))


def _ndcg(scores: Array, relevance: Array) -> float:
    if len(scores) < 2 or not relevance.any():
        return float("nan")
    return float(ndcg_score(relevance[None], scores[None], k=NDCG_DEPTH))


_METRICS: dict[str, tuple[Callable[[Array, Array], float], str]] = {
    "auc": (_auc, "relevant rows and others"),
    f"ndcg@{NDCG_DEPTH}": (_ndcg, "two rows and a relevant one"),
}
"""Each with what a group must have for it."""
