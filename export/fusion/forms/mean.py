"""Weighted mean of outputs that are no classes: regression, embeddings, scores."""

from __future__ import annotations

from monograph.export.fusion.forms.form import Form, emit_mean, keep, keep_array, mean
from monograph.models.contract import Kind

WEIGHTED_MEAN = Form(
    name="mean",
    formula="O = Σ αᵢOᵢ",
    source="https://doi.org/10.1109/72.623200",  # Hashem 1997, optimal linear combinations
    kinds=(Kind.REGRESSION, Kind.EMBEDDING, Kind.SCORES),
    output_kind=lambda kind: kind,
    emit_conversion=keep,
    convert=keep_array,
    emit_combination=emit_mean,
    combine=mean,
)
