"""Embeddings side by side: what each member knows is kept apart, and the reader of the vector may weigh it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.tape import Tape

from monograph.export.fusion.forms.form import Form, Mixing, keep, keep_array
from monograph.models.contract import Kind

Array = npt.NDArray[Any]


def _emit(tape: Tape, values: Sequence[ir.Value], mixing: Mixing) -> ir.Value:
    del mixing
    return tape.op("Concat", list(values), {"axis": -1})


def _combine(arrays: Sequence[Array], mixing: Mixing) -> Array:
    del mixing
    return np.concatenate(list(arrays), axis=-1)


CONCATENATION = Form(
    name="concat",
    formula="O = [O₁ … Oₘ]",
    source="https://arxiv.org/abs/1804.07983",  # Kiela et al. 2018, concatenation as the baseline of meta-embeddings
    kinds=(Kind.EMBEDDING,),
    output_kind=lambda kind: kind,
    emit_conversion=keep,
    convert=keep_array,
    emit_combination=_emit,
    combine=_combine,
    joins_features=True,
)
