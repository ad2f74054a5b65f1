"""Weighted mean of probabilities: a mixture of experts with fixed weights; members may give logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.tape import Tape
from scipy.special import softmax

from monograph.export.fusion.forms.form import Form, emit_mean, mean
from monograph.models.contract import Kind

Array = npt.NDArray[Any]


def emit_probabilities(tape: Tape, value: ir.Value, kind: Kind) -> ir.Value:
    """Emit softmax over classes where the member gives logits."""
    return tape.op("Softmax", [value], {"axis": -1}) if kind is Kind.LOGITS else value


def as_probabilities(array: Array, kind: Kind) -> Array:
    """Return the member's probabilities, float64."""
    wide = array.astype(np.float64)
    return np.asarray(softmax(wide, axis=-1)) if kind is Kind.LOGITS else wide


WEIGHTED_PROBABILITIES = Form(
    name="probs",
    formula="O = Σ αᵢ·softmax(Oᵢ)",
    source="https://doi.org/10.1109/34.667881",  # Kittler et al. 1998, the sum rule
    kinds=(Kind.LOGITS, Kind.PROBABILITIES),
    output_kind=lambda kind: Kind.PROBABILITIES,
    emit_conversion=emit_probabilities,
    convert=as_probabilities,
    emit_combination=emit_mean,
    combine=mean,
    takes_subsets=True,
)
