"""What a student minimises: a loss with its options, and how several teachers speak with one voice.

Shape letters: ``c`` classes, ``n`` rows, ``t`` teachers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from monograph.errors import ConfigError
from monograph.models.contract import Contract
from monograph.pipelines.distill.answers import AUTO, Answers
from monograph.pipelines.distill.hints import Hints
from monograph.pipelines.losses import (
    LOSSES,
    DistillationLoss,
    LossOptions,
    combine_teachers,
    confidence_weights,
    fixed_weights,
    mixed,
    options_for,
)
from monograph.pipelines.training import Augmentation, Batch, Objective

Array = npt.NDArray[Any]
EQUAL, CONFIDENCE = "equal", "confidence"


@dataclass(frozen=True)
class Recipe:
    """How a student learns, beside the training's own settings."""

    loss: str = "kd"
    options: Mapping[str, float] = field(default_factory=dict)
    """Of the loss: ``temperature``, ``hard_weight`` …"""
    teacher_weights: str | tuple[float, ...] = EQUAL
    """Of several teachers: ``equal``, numbers, or ``confidence``: more for those that are right about a row.

    Members of a teaching graph are equal in that they count as they do in the fusion.
    """
    augmentation: Augmentation | None = None
    """Of training pictures; teacher and student see the same view."""
    hints: Hints | None = None
    """Layers of a teacher that teach layers of the student."""
    teacher_outputs: str = AUTO
    """``kept`` on disk, asked ``live``, or ``auto``: whichever asks less often."""


def find_loss(recipe: Recipe, *, has_unlabelled: bool) -> tuple[DistillationLoss, LossOptions]:
    """Return the loss that ``recipe`` names, mixed with that of hard labels as it says, and its options.

    Raises:
        ConfigError: there is no such loss or option, or the loss needs what this verb does not have.
    """
    if recipe.loss not in LOSSES:
        raise ConfigError(f"unknown loss {recipe.loss!r}: choose from {', '.join(LOSSES)}")
    loss = LOSSES[recipe.loss]
    if loss.takes == "feature maps":
        raise ConfigError(
            f"{loss.name} compares layers inside the networks, beside a loss of what they give: choose that by --loss, and add "
            f"--hint STUDENT_LAYER=TEACHER_LAYER --hint-loss {loss.name}"
        )
    if loss.needs_labels and has_unlabelled:
        raise ConfigError(f"{loss.name} needs a label for every row: leave out --unlabelled, or choose another loss")
    options = options_for(loss, recipe.options)
    return mixed(loss, options.hard_weight), options


def teaching_objective(
    loss: DistillationLoss, options: LossOptions, answers: Answers, count: int, weights: str | tuple[float, ...] = EQUAL
) -> Objective:
    """Return what a student minimises: the loss of each row against what the teachers give for that row and view.

    Args:
        loss: between the student's outputs and the teachers' combined ones.
        options: of the loss.
        answers: what the teachers give for a batch, float32 ``[t x b x c]``.
        count: of teachers, ``t``.
        weights: of the teachers: ``equal``, ``confidence``, or numbers.

    Raises:
        ConfigError: there are no such weights, or not one a teacher, or the loss takes no classes and ``weights`` tells which
            teacher is right about them.
    """
    if weights == CONFIDENCE and loss.takes != "logits":
        raise ConfigError(f"{loss.name} takes {loss.takes}, and {CONFIDENCE} weights are for classes: give equal, or numbers")
    fixed = None if weights == CONFIDENCE else fixed_weights([1.0] * count if weights == EQUAL else _numbers(weights, count))
    temperature = options.temperature if "temperature" in loss.reads else 1.0

    def objective(student: list[Tensor], batch: Batch) -> Tensor:
        given = answers(batch)
        labels = batch.labels if batch.labels.dtype == torch.int64 else None
        if count == 1:
            combined = given[0]
        elif fixed is not None and loss.takes != "logits":
            combined = torch.einsum("t,t...->...", fixed.to(given.device), given)
        else:
            own = confidence_weights(given, labels) if fixed is None else fixed.to(given.device)
            combined = combine_teachers(given, own, temperature)
        return loss.compute(student[0], combined, labels, options)

    return objective


def _numbers(weights: str | tuple[float, ...], count: int) -> list[float]:
    if isinstance(weights, str):
        raise ConfigError(f"teacher weights {weights!r}: give equal, {CONFIDENCE}, or a number for each teacher")
    if len(weights) != count:
        raise ConfigError(f"{len(weights)} weights for {count} teachers: give one for each")
    return list(weights)


def combined_outputs(outputs: Array, contract: Contract, recipe: Recipe) -> Array:
    """Return what the teachers give together, without looking at labels: float32 ``[n x c]``."""
    weights = recipe.teacher_weights if isinstance(recipe.teacher_weights, tuple) else (1.0,) * len(outputs)
    if len(outputs) == 1 or not contract.kind.has_classes:
        return np.asarray(np.average(outputs, axis=0, weights=weights))
    return combine_teachers(torch.from_numpy(np.array(outputs)), fixed_weights(weights), 1.0).numpy()
