"""Weighted mean of logits: a product of experts once softmax is taken."""

from __future__ import annotations

from monograph.export.fusion.forms.form import Form, emit_mean, keep, keep_array, mean
from monograph.models.contract import Kind

WEIGHTED_LOGITS = Form(
    name="logits",
    formula="O = Σ αᵢOᵢ over logits",
    source="https://doi.org/10.1162/089976602760128018",  # Hinton 2002, products of experts
    kinds=(Kind.LOGITS,),
    output_kind=lambda kind: Kind.LOGITS,
    emit_conversion=keep,
    convert=keep_array,
    emit_combination=emit_mean,
    combine=mean,
)
