"""Majority vote, weighted; a tie goes to the tied class with the larger mean probability, then to the first in order.

Shape letters: ``b`` batch, ``c`` classes, ``m`` members.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.tape import Tape

from monograph.errors import FusionError
from monograph.export.fusion.forms.form import Form, Mixing, emit_mean, emit_weighted_sum, mean, weighted_sum
from monograph.export.fusion.forms.probabilities import as_probabilities, emit_probabilities
from monograph.models.contract import Kind

Array = npt.NDArray[Any]
_MOST_VOTERS = 12
"""The tie rule looks at every coalition of members: 2 to the power of m."""
_SAME_COUNT = 1e-6
"""Counts that lie closer are taken for a tie."""


def tie_share(weights: Sequence[float]) -> float:
    """Return how much the mean probability may count so that it decides ties and nothing else.

    Two different counts of votes differ by at least the smallest gap between two coalitions' weights; mean
    probabilities differ by 1 at most, so half that gap never turns a majority round.

    Raises:
        FusionError: there are too many members to look at every coalition.
    """
    if len(weights) > _MOST_VOTERS:
        raise FusionError(f"{len(weights)} members vote: the tie rule is made for {_MOST_VOTERS} at most; use --combine probs")
    sums = np.sort([sum(part) for size in range(len(weights) + 1) for part in itertools.combinations(weights, size)])
    gaps = np.diff(sums)
    return float(gaps[gaps > _SAME_COUNT].min()) / 2


def _emit(tape: Tape, values: Sequence[ir.Value], mixing: Mixing) -> ir.Value:
    share = tie_share(mixing.weights)
    last = tape.initializer(ir.tensor(np.array([-1], np.int64), name="fusion/last_axis"))
    bounds = tape.initializer(ir.tensor(np.array([0, 1], np.float32), name="fusion/vote"))
    votes = []
    for value in values:  # float32 [b, c]
        class_count = tape.op("Gather", [tape.op("Shape", [value]), last])
        best = tape.op("ArgMax", [value], {"axis": -1, "keepdims": 0})
        votes.append(tape.op("OneHot", [best, class_count, bounds], {"axis": -1}))
    counted = emit_mean(tape, votes, mixing)
    believed = emit_weighted_sum(tape, values, mixing.weights, [f"{name}/tie" for name in mixing.names])
    return emit_weighted_sum(tape, [counted, believed], [1 / (1 + share), share / (1 + share)], ["votes", "ties"])


def _combine(arrays: Sequence[Array], mixing: Mixing) -> Array:
    share = tie_share(mixing.weights)
    votes = [np.eye(array.shape[-1])[array.argmax(axis=-1)] for array in arrays]
    return weighted_sum([mean(votes, mixing), mean(arrays, mixing)], [1 / (1 + share), share / (1 + share)])


MAJORITY_VOTE = Form(
    name="vote",
    formula="O = (Σ αᵢ·onehot(argmax Oᵢ) + ε·Σ αᵢ·softmax(Oᵢ)) / (1 + ε), ε so small that it decides ties only",
    source="https://doi.org/10.1109/3468.618255",  # Lam and Suen 1997, majority voting
    kinds=(Kind.LOGITS, Kind.PROBABILITIES),
    output_kind=lambda kind: Kind.PROBABILITIES,
    emit_conversion=emit_probabilities,
    convert=as_probabilities,
    emit_combination=_emit,
    combine=_combine,
    takes_subsets=True,
)
