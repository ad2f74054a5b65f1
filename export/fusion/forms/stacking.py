"""Stacking: a linear combiner over the members' outputs, fitted on validation rows, one Gemm in the graph.

For classes it is a logistic regression on the members' log-probabilities; for other outputs linear least squares on the
outputs themselves (Breiman 1996, stacked regressions, doi 10.1007/BF00117832).

Shape letters: ``b`` batch, ``k`` classes or other outputs, ``m`` members.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.tape import Tape

from monograph.errors import FusionError
from monograph.export.fusion.forms.form import Form, Mixing, Stacking, keep, keep_array
from monograph.export.fusion.forms.geometric import emit_log_probabilities, log_probabilities
from monograph.models.contract import Kind

Array = npt.NDArray[Any]


def _fitted(mixing: Mixing) -> Stacking:
    if mixing.stacking is None:
        raise FusionError("--combine stack is a combiner that is fitted: give labelled validation rows by --fit DATA")
    return mixing.stacking


def _emit_features(tape: Tape, value: ir.Value, kind: Kind) -> ir.Value:
    return (emit_log_probabilities if kind.has_classes else keep)(tape, value, kind)


def _features(array: Array, kind: Kind) -> Array:
    return (log_probabilities if kind.has_classes else keep_array)(array, kind)


def _emit(tape: Tape, values: Sequence[ir.Value], mixing: Mixing) -> ir.Value:
    stacking = _fitted(mixing)
    features = tape.op("Concat", list(values), {"axis": -1})  # float32 [b, m·k]
    coefficients = tape.initializer(ir.tensor(np.array(stacking.coefficients, np.float32), name="fusion/stacking/coefficients"))
    intercept = tape.initializer(ir.tensor(np.array(stacking.intercept, np.float32), name="fusion/stacking/intercept"))
    return tape.op("Gemm", [features, coefficients, intercept])


def _combine(arrays: Sequence[Array], mixing: Mixing) -> Array:
    stacking = _fitted(mixing)
    features = np.concatenate(list(arrays), axis=-1)
    return np.asarray(features @ np.array(stacking.coefficients) + np.array(stacking.intercept))


STACKING = Form(
    name="stack",
    formula="O = [f(O₁) … f(Oₘ)]·W + b, f = log softmax for classes, else the output itself",
    source="https://doi.org/10.1016/S0893-6080(05)80023-1",  # Wolpert 1992, stacked generalization
    kinds=tuple(Kind),
    output_kind=lambda kind: Kind.LOGITS if kind.has_classes else kind,
    emit_conversion=_emit_features,
    convert=_features,
    emit_combination=_emit,
    combine=_combine,
)
