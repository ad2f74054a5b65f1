"""Probabilities weighted by member and class: a member that knows some classes better than others counts more for those.

Shape letters: ``b`` batch, ``c`` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.tape import Tape

from monograph.errors import FusionError
from monograph.export.fusion.forms.form import Form, Mixing
from monograph.export.fusion.forms.geometric import SMALLEST_PROBABILITY
from monograph.export.fusion.forms.probabilities import as_probabilities, emit_probabilities
from monograph.models.contract import Kind

Array = npt.NDArray[Any]


def _given(mixing: Mixing) -> tuple[tuple[float, ...], ...]:
    if mixing.class_weights is None:
        raise FusionError("--combine class-weights takes a weight a member and class: give --class-weights FILE or --fit DATA")
    return mixing.class_weights


def _emit(tape: Tape, values: Sequence[ir.Value], mixing: Mixing) -> ir.Value:
    weighted = []
    for value, weights, name in zip(values, _given(mixing), mixing.names, strict=True):  # value: float32 [b, c]
        if all(weight == 1.0 for weight in weights):
            weighted.append(value)
            continue
        vector = tape.initializer(ir.tensor(np.array(weights, np.float32), name=f"fusion/class_weights/{name}"))
        weighted.append(tape.op("Mul", [value, vector]))
    total = weighted[0] if len(weighted) == 1 else tape.op("Sum", weighted)
    # A row all of whose probability lies where its members have no say becomes uniform, and not 0 / 0.
    smallest = tape.op("Constant", [], {"value": ir.tensor(np.array(SMALLEST_PROBABILITY, np.float32))})
    bounded = tape.op("Max", [total, smallest])
    last = tape.initializer(ir.tensor(np.array([-1], np.int64), name="fusion/last_axis"))
    return tape.op("Div", [bounded, tape.op("ReduceSum", [bounded, last], {"keepdims": 1})])


def _combine(arrays: Sequence[Array], mixing: Mixing) -> Array:
    total = np.einsum("ic,i...c->...c", np.asarray(_given(mixing), np.float64), np.stack(arrays))
    bounded = np.maximum(total, SMALLEST_PROBABILITY)
    return np.asarray(bounded / bounded.sum(axis=-1, keepdims=True))


CLASS_WEIGHTS = Form(
    name="class-weights",
    formula="O = Σ αᵢ·softmax(Oᵢ) over its sum, αᵢ one weight a class",
    source="https://arxiv.org/abs/1106.1684",  # Sen and Erdogan 2011, the class-dependent weighted sum
    kinds=(Kind.LOGITS, Kind.PROBABILITIES),
    output_kind=lambda kind: Kind.PROBABILITIES,
    emit_conversion=emit_probabilities,
    convert=as_probabilities,
    emit_combination=_emit,
    combine=_combine,
    takes_subsets=True,
)
