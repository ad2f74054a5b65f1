"""Which task the outputs and labels are of, its metrics, and the same metrics on slices of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import DataError
from monograph.models.contract import Contract, Kind
from monograph.models.data.rows import Codes
from monograph.runtime.metrics.blocks import Scored
from monograph.runtime.metrics.classification import accuracy_of, scorecard_of, tally_of
from monograph.runtime.metrics.embedding import score_retrieval, score_to_reference
from monograph.runtime.metrics.multilabel import score_multilabel
from monograph.runtime.metrics.ranking import score_ranking
from monograph.runtime.metrics.regression import score_regression
from monograph.runtime.results import Accuracy, Scorecard, Slice

Array = npt.NDArray[Any]
FEWEST_SLICE_ROWS = 30
MOST_SLICES = 200


def score(
    outputs: Array,
    labels: Array,
    contract: Contract,
    *,
    groups: Array | None = None,
    slices: Mapping[str, Codes] | None = None,
    class_names: tuple[str, ...] | None = None,
) -> tuple[Scorecard, Accuracy | None]:
    """Score outputs ``[n, …]`` by the metrics of what they mean; a classifier's main ones come as :class:`Accuracy` too.

    Args:
        outputs: the primary output of every row; may lie on disk, mapped.
        labels: class numbers ``[n]``, labels of 0 and 1 ``[n, c]``, targets, relevance or reference vectors; likewise.
        contract: what the outputs mean.
        groups: int ``[n]``; where given, rows of one number are ranked against each other.
        slices: columns whose values part the rows, by name.
        class_names: of classes or labels, by number.

    Raises:
        DataError: outputs and labels do not go together, or are not finite.
    """
    if len(outputs) != len(labels):
        raise DataError(f"{len(outputs)} outputs for {len(labels)} labels: expected one of each a row")
    scored = Scored(outputs, labels, None, groups, class_names or contract.class_names)
    card, accuracy = _score_task(scored, contract.kind)
    return replace(card, slices=tuple(_slices(scored, contract.kind, slices or {}))), accuracy


def _score_task(scored: Scored, kind: Kind) -> tuple[Scorecard, Accuracy | None]:
    if scored.groups is not None:
        return score_ranking(scored), None
    if kind.has_classes:
        tally = tally_of(scored, kind)
        return scorecard_of(tally, scored), accuracy_of(tally)
    if kind is Kind.REGRESSION:
        return score_regression(scored), None
    if kind is Kind.EMBEDDING:
        return (score_retrieval if scored.labels.ndim == 1 else score_to_reference)(scored), None
    return (score_multilabel if scored.labels.ndim == 2 else score_ranking)(scored), None


def _slices(scored: Scored, kind: Kind, columns: Mapping[str, Codes]) -> Iterator[Slice]:
    for name, column in columns.items():
        if len(column.values) > MOST_SLICES:
            many = len(column.values)
            raise DataError(
                f"--slice {name}: {many:,} different values, at most {MOST_SLICES} make slices: choose another column"
            )
        for number, value in enumerate(column.values):
            rows = np.flatnonzero(column.numbers == number)
            if len(rows) < FEWEST_SLICE_ROWS:
                note = f"not enough rows: {len(rows)}, and {FEWEST_SLICE_ROWS} are needed"
                yield Slice(name, value, len(rows), {}, note)
                continue
            card, _ = _score_task(replace(scored, rows=rows), kind)
            yield Slice(name, value, len(rows), card.scores)
