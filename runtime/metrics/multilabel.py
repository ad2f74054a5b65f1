"""Several labels a row: F1 over all of them and their mean, mean average precision, and each label's AUC.

The estimates are scikit-learn's; the draws of their intervals sort once. Shape letters: ``n`` rows, ``c`` labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from monograph.errors import DataError
from monograph.runtime.metrics import ranks
from monograph.runtime.metrics.blocks import Scored, no_score, score_of
from monograph.runtime.results import ClassScore, Score, Scorecard
from monograph.runtime.statistics import row_bootstrap_interval

Array = npt.NDArray[Any]
THRESHOLD = 0.5
"""From which score on a label counts as given."""


def score_multilabel(scored: Scored) -> Scorecard:
    """Score outputs ``[n, c]`` against labels of 0 and 1 ``[n, c]``.

    Raises:
        DataError: labels are something else, or of another shape; an output is not finite.
    """
    outputs, labels = scored.outputs, scored.labels
    if outputs.ndim != 2 or outputs.shape != labels.shape:
        raise DataError(f"labels have the shape {list(labels.shape)}, outputs {list(outputs.shape)}: expected [n, c] of both")
    has_threshold = True
    given, true = [], []
    for block, targets, rows in scored.blocks():
        if not (binary := np.isin(targets, (0, 1)).all(axis=1)).all():
            raise DataError(
                f"row {int(rows[np.argmin(binary)])} has labels other than 0 and 1: several labels a row are so given"
            )
        has_threshold &= bool((block >= 0).all() and (block <= 1).all())
        given.append(block > THRESHOLD)
        true.append(targets > 0)
    f1 = _f1(np.concatenate(given), np.concatenate(true), has_threshold)
    classes = tuple(_label_score(scored, number) for number in range(outputs.shape[1]))
    precisions = [one.scores["average_precision"].estimate for one in classes]
    known = [value for value in precisions if value is not None]
    left_out = len(precisions) - len(known)
    note = f"over the {len(known)} labels that some row has; {left_out} have none" if left_out else None
    mean_precision = _mean_precision(scored, known, note) if known else no_score("no row has any label")
    return Scorecard("multi-label", len(scored), {**f1, "map": mean_precision}, classes)


def _f1(given: Array, true: Array, has_threshold: bool) -> dict[str, Score]:
    """Return micro and macro F1 of bool ``[n, c]``; a label that no row has and none was given counts as 0 in the mean."""
    if not has_threshold:
        reason = f"outputs lie outside 0 to 1, where a threshold of {THRESHOLD} means nothing"
        return {"micro_f1": no_score(reason), "macro_f1": no_score(reason)}
    if not (given.any() or true.any()):
        return {name: no_score("no row has or was given any label") for name in ("micro_f1", "macro_f1")}
    right, total = (given & true), given.astype(np.int8) + true

    def macro(counts: Array) -> float:
        hits, all_of = counts @ right, counts @ total
        return float(np.divide(2 * hits, all_of, out=np.zeros(len(hits)), where=all_of > 0).mean())

    row_hits, row_total = right.sum(axis=1), total.sum(axis=1)

    def micro(counts: Array) -> float:
        return float(2 * (counts @ row_hits) / (counts @ row_total))

    n, width = given.shape
    of_all = {average: float(f1_score(true, given, average=average, zero_division=0.0)) for average in ("micro", "macro")}
    return {
        "micro_f1": score_of(row_bootstrap_interval(micro, n, of_all["micro"])),
        "macro_f1": score_of(row_bootstrap_interval(macro, n, of_all["macro"], row_work=width)),
    }


def _column(scored: Scored, number: int) -> tuple[Array, Array]:
    rows: Any = slice(None) if scored.rows is None else scored.rows
    return np.asarray(scored.outputs[rows, number], np.float64), np.asarray(scored.labels[rows, number] > 0)


def _label_score(scored: Scored, number: int) -> ClassScore:
    outputs, positive = _column(scored, number)
    support, n = int(positive.sum()), len(positive)
    if support == 0:
        missing = no_score("no row has this label")
        return ClassScore(scored.name(number), 0, {"auc": missing, "average_precision": missing})
    area = no_score("every row has this label")
    if support < n:
        area = score_of(row_bootstrap_interval(ranks.auc(outputs, positive), n, roc_auc_score(positive, outputs)))
    statistic = ranks.average_precision(outputs, positive)
    precision = score_of(row_bootstrap_interval(statistic, n, average_precision_score(positive, outputs)))
    return ClassScore(scored.name(number), support, {"auc": area, "average_precision": precision})


def _mean_precision(scored: Scored, known: list[float], note: str | None) -> Score:
    """Return the mean of the labels' average precision; all labels share the draws of rows."""
    statistics = [
        ranks.average_precision(outputs, positive)
        for outputs, positive in (_column(scored, number) for number in range(scored.outputs.shape[1]))
        if positive.any()
    ]

    def mean(counts: Array) -> float:
        values = np.array([statistic(counts) for statistic in statistics])
        return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")

    interval = row_bootstrap_interval(mean, len(scored), float(np.mean(known)), row_work=3 * len(statistics))
    return score_of(interval, note)
