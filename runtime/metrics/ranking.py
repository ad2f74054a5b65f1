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
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    return Scorecard(
        "ranking",
        len(scored),
        {
            "auc": _mean_over([(scores[rows], relevance[rows]) for rows in members], _auc, "relevant rows and others"),
            f"ndcg@{NDCG_DEPTH}": _mean_over(
                [(scores[rows], relevance[rows]) for rows in members], _ndcg, "two rows and a relevant one"
            ),
        },
    )


def _mean_over(groups: list[tuple[Array, Array]], metric: Callable[[Array, Array], float | None], needs: str) -> Score:
    values = [value for scores, relevance in groups if (value := metric(scores, relevance)) is not None]
    if not values:
        return no_score(f"none of {len(groups):,} groups has {needs}")
    note = f"mean over {len(values):,} of {len(groups):,} groups: those that have {needs}"
    return score_of(bootstrap_interval(np.array(values), np.mean), note)


def _auc(scores: Array, relevance: Array) -> float | None:
    value = ranks.auc(scores, relevance > 0)(np.ones(len(scores), np.int64))
    return value if np.isfinite(value) else None


def _ndcg(scores: Array, relevance: Array) -> float | None:
    if len(scores) < 2 or not relevance.any():
        return None
    return float(ndcg_score(relevance[None], scores[None], k=NDCG_DEPTH))
