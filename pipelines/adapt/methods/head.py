"""Head only: the trunk stays as it is, so that its features are computed once and the rest takes seconds.

Source: linear probing, as in Kornblith et al. 2019, arXiv 1805.08974.

Shape letters: ``c`` width of the output, ``d`` width of features, ``n`` rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from monograph.errors import ConfigError
from monograph.models.data.rows import Array
from monograph.pipelines.adapt.methods.method import Adaptation, Outcome, Stage, fit, settings_of
from monograph.pipelines.adapt.network import FEATURES, head_model
from monograph.pipelines.training import TrainingSettings

_SETTINGS: dict[str, Any] = {"epochs": 30, "batch_size": 256, "learning_rate": 5e-3, "weight_decay": 1e-2}
_SMALLEST_SHARE = 1e-2


def head_only(adaptation: Adaptation) -> Outcome:
    """Train the head on features."""
    return Outcome((fit_head(adaptation, settings_of(adaptation, _SETTINGS)),))


def fit_head(adaptation: Adaptation, settings: TrainingSettings | None = None) -> Stage:
    """Train the head on features of mean 0 and variance 1; the scaling is folded into its weights afterwards.

    Args:
        adaptation: what is adapted.
        settings: of the training; without them the head is what comes before the rest, and takes its own.

    Raises:
        ConfigError: the model has no linear head.
    """
    head = adaptation.network.head
    if not isinstance(head, nn.Linear):
        raise ConfigError(
            f"{adaptation.model.name} does the task as it is and has no linear head to train alone: adapt it by --method full"
        )
    if head.bias is None:  # what the scaling takes from features is folded into it
        head.bias = nn.Parameter(torch.zeros(head.out_features))
    chosen = settings or _own_settings(settings_of(adaptation, {}))
    parts = {name: adaptation.features.of(adaptation.rows[name]) for name in ("train", "validation")}
    mean, spread = _spread(parts["train"].inputs[FEATURES])
    scaled = {
        name: type(rows)({FEATURES: (rows.inputs[FEATURES] - mean) / spread}, rows.labels, rows.class_names, rows.origin)
        for name, rows in parts.items()
    }
    _scale(head, torch.from_numpy(spread), torch.from_numpy(mean))
    stage = fit(adaptation, "head", head_model(adaptation.model), scaled, chosen)
    _scale(head, torch.from_numpy(1 / spread), torch.from_numpy(-mean / spread))
    return stage


def _own_settings(asked: TrainingSettings) -> TrainingSettings:
    """Return how a head is trained before the rest: what was asked for is for that, but for the seed and what is minimised."""
    kept: dict[str, Any] = {"select": asked.select, "seed": asked.seed, "label_smoothing": asked.label_smoothing}
    return TrainingSettings(**_SETTINGS | kept)


def _spread(features: Array) -> tuple[Array, Array]:
    """Return mean and standard deviation of each feature, float32 ``[d]``, none below a share of what features come to.

    What hardly changes would be scaled up with its error of rounding, and the exported model would not compute the same.
    """
    mean, spread = features.mean(0, np.float64), features.std(0, dtype=np.float64)
    least = _SMALLEST_SHARE * float(np.sqrt(np.square(features, dtype=np.float64).mean()))
    return mean.astype(np.float32), np.maximum(spread, least or 1.0).astype(np.float32)


@torch.no_grad()
def _scale(head: nn.Linear, factor: torch.Tensor, shift: torch.Tensor) -> None:
    """Let the head give for ``x`` what it gave for ``factor · x + shift``, both float32 ``[d]``."""
    head.bias.add_(head.weight @ shift)
    head.weight.mul_(factor)
