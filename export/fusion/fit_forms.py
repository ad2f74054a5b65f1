"""Fit one form on validation rows: its weights, its temperatures, its combiner.

Shape letters: ``n`` rows, ``c`` classes, ``k`` outputs that are no classes, ``m`` members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.export.fusion.calibrate import (
    fit_linear_stacking,
    fit_stacking,
    fit_temperature,
    score_classes,
    score_values,
    select_greedily,
)
from monograph.export.fusion.class_weights import fit_class_weights
from monograph.export.fusion.forms import FORMS, Form, Mixing
from monograph.export.fusion.weights import WeightFit, fit_mean_weights, fit_weights
from monograph.models.contract import Kind

Array = npt.NDArray[Any]
_MIXED_BEFORE_SOFTMAX = ("logits", "geometric", "stack")


@dataclass(frozen=True)
class Validation:
    """The members' outputs on the validation rows, classes in the fused order."""

    names: tuple[str, ...]
    kinds: tuple[Kind, ...]
    outputs: tuple[Array, ...]
    """``float64 [n, c]`` a member; of a regression, scores or embeddings ``[n]``, ``[n, k]`` or more dimensions."""
    labels: Array
    """``int64 [n]``; for outputs that are no classes targets ``float64`` of the outputs' shape."""
    rows_sha256: str

    @property
    def has_classes(self) -> bool:
        """True where the members are classifiers."""
        return self.kinds[0].has_classes

    def take(self, indices: Array) -> Validation:
        """Return the rows at ``indices``."""
        return replace(self, outputs=tuple(output[indices] for output in self.outputs), labels=self.labels[indices])


def fit_form(form: Form, validation: Validation, *, temperature: bool, search: str) -> WeightFit:
    """Fit one form on all rows given.

    Raises:
        FusionError: the rows do not suffice for this form.
    """
    if validation.has_classes:
        return _fit_on_classes(form, validation, temperature, search)
    return _fit_on_values(form, validation, search)


def mix(form: Form, validation: Validation, fit: WeightFit) -> Array:
    """Return the fused output ``float64 [n, …]``, as the graph would compute it."""
    converted = _converted(form, validation, fit.temperatures or (1.0,) * len(validation.names))
    running = [index for index, weight in enumerate(fit.weights) if weight > 0]
    mixing = Mixing(
        names=tuple(validation.names[index] for index in running),
        weights=tuple(fit.weights[index] for index in running),
        stacking=fit.stacking,
        class_weights=tuple(fit.class_weights[index] for index in running) if fit.class_weights else None,
    )
    return form.combine([converted[index] for index in running], mixing)


def _fit_on_classes(form: Form, validation: Validation, temperature: bool, search: str) -> WeightFit:
    """Fit by the NLL; ``greedy`` by how often the mean is right."""
    temperatures = _temperatures(validation, temperature)
    converted = _converted(form, validation, temperatures)
    labels = validation.labels
    are_logits = form.name in _MIXED_BEFORE_SOFTMAX
    fit = fit_weights(converted, labels, are_logits=are_logits, rows_sha256=validation.rows_sha256)
    equal = (1 / len(converted),) * len(converted)
    if form.name == "stack":
        fit = replace(fit, weights=equal, stacking=fit_stacking(converted, labels))
    elif search == "greedy":
        fit = replace(fit, weights=select_greedily(converted, score_classes(labels, are_logits=are_logits)))
    elif form.name == "vote":
        fit = replace(fit, weights=equal)  # a count of votes has no gradient to follow; greedy search weighs it
    if form.name == "class-weights":
        by_class = fit_class_weights(converted, labels, fit.weights)
        fit = replace(fit, weights=tuple(float(np.mean(row)) for row in by_class), class_weights=by_class)
    fit = replace(fit, temperatures=temperatures if temperature else None)
    return replace(fit, loss=_nll(form, mix(form, validation, fit), labels))


def _fit_on_values(form: Form, validation: Validation, search: str) -> WeightFit:
    """Fit by the mean squared error."""
    outputs, targets = validation.outputs, validation.labels
    fit = fit_mean_weights(outputs, targets, rows_sha256=validation.rows_sha256)
    if form.name == "stack":
        equal = (1 / len(outputs),) * len(outputs)
        fit = replace(fit, weights=equal, stacking=fit_linear_stacking(outputs, targets))
    elif search == "greedy":
        fit = replace(fit, weights=select_greedily(outputs, score_values(targets)))
    return replace(fit, loss=float(np.sqrt(np.mean((mix(form, validation, fit) - targets) ** 2))))


def _temperatures(validation: Validation, wanted: bool) -> tuple[float, ...]:
    return tuple(
        fit_temperature(output, validation.labels) if wanted and kind is Kind.LOGITS else 1.0
        for output, kind in zip(validation.outputs, validation.kinds, strict=True)
    )


def _converted(form: Form, validation: Validation, temperatures: Sequence[float]) -> list[Array]:
    parts = zip(validation.outputs, validation.kinds, temperatures, strict=True)
    return [form.convert(output / temperature, kind) for output, kind, temperature in parts]


def _nll(form: Form, mixed: Array, labels: Array) -> float:
    kind = form.output_kind(Kind.LOGITS)
    log_probabilities = FORMS["geometric"].convert(mixed, kind)
    return float(-log_probabilities[np.arange(len(labels)), labels].mean())
