"""Weighted geometric mean of probabilities: the mean of log-probabilities, normalised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.tape import Tape
from scipy.special import log_softmax, softmax

from monograph.export.fusion.forms.form import Form, Mixing, emit_mean, mean
from monograph.models.contract import Kind

Array = npt.NDArray[Any]
SMALLEST_PROBABILITY = 1e-12
"""A probability of 0 would veto its class for good."""


def emit_log_probabilities(tape: Tape, value: ir.Value, kind: Kind) -> ir.Value:
    """Emit log-probabilities ``[b, c]``, from below bounded where the member gives probabilities."""
    if kind is Kind.LOGITS:
        return tape.op("LogSoftmax", [value], {"axis": -1})
    smallest = tape.op("Constant", [], {"value": ir.tensor(np.array(SMALLEST_PROBABILITY, np.float32))})
    return tape.op("Log", [tape.op("Max", [value, smallest])])


def log_probabilities(array: Array, kind: Kind) -> Array:
    """Return log-probabilities ``[b, c]``, float64."""
    wide = array.astype(np.float64)
    return np.asarray(log_softmax(wide, axis=-1) if kind is Kind.LOGITS else np.log(np.maximum(wide, SMALLEST_PROBABILITY)))


def _emit(tape: Tape, values: Sequence[ir.Value], mixing: Mixing) -> ir.Value:
    return tape.op("Softmax", [emit_mean(tape, values, mixing)], {"axis": -1})


def _combine(arrays: Sequence[Array], mixing: Mixing) -> Array:
    return np.asarray(softmax(mean(arrays, mixing), axis=-1))


GEOMETRIC_MEAN = Form(
    name="geometric",
    formula="O = softmax(Σ αᵢ·log softmax(Oᵢ))",
    source="https://doi.org/10.1214/ss/1177013825",  # Genest and Zidek 1986, logarithmic opinion pool
    kinds=(Kind.LOGITS, Kind.PROBABILITIES),
    output_kind=lambda kind: Kind.PROBABILITIES,
    emit_conversion=emit_log_probabilities,
    convert=log_probabilities,
    emit_combination=_emit,
    combine=_combine,
)
