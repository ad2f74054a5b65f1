"""Weighted mean of probabilities: a mixture of experts with fixed weights; members may give logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.tape import Tape
from scipy.special import softmax

from monograph.export.fusion.forms.form import Form
from monograph.models.contract import Kind

Array = npt.NDArray[Any]


def _emit_softmax(tape: Tape, value: ir.Value, kind: Kind) -> ir.Value:
    return tape.op("Softmax", [value], {"axis": -1}) if kind is Kind.LOGITS else value


def _softmax(array: Array, kind: Kind) -> Array:
    wide = array.astype(np.float64)
    return np.asarray(softmax(wide, axis=-1)) if kind is Kind.LOGITS else wide


WEIGHTED_PROBABILITIES = Form(
    name="probs",
    formula="O = Σ αᵢ·softmax(Oᵢ)",
    source="https://doi.org/10.1109/34.667881",  # Kittler et al. 1998, the sum rule
    kinds=(Kind.LOGITS, Kind.PROBABILITIES),
    output_kind=lambda kind: Kind.PROBABILITIES,
    emit_conversion=_emit_softmax,
    convert=_softmax,
)
