"""What a method of adaptation is given, what it gives back, and the one way in which all of them train.

Shape letters: ``b`` batch, ``d`` width of features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from monograph.errors import ConfigError
from monograph.models.data.rows import Rows
from monograph.models.torch_model import TorchModel
from monograph.pipelines.adapt.features import FeatureStore
from monograph.pipelines.adapt.network import Network, network_of
from monograph.pipelines.training import Augmentation, Epoch, Objective, Training, TrainingSettings, train


@dataclass(frozen=True)
class Stage:
    """One training of a method."""

    name: str
    training: Training


@dataclass(frozen=True)
class Mix:
    """A mean of old and new weights, and how good it is."""

    share: float
    """Of the new weights."""
    validation: float
    """Quality on validation rows."""
    shifted: float | None
    """Quality on shifted rows, where there are some."""


@dataclass(frozen=True)
class Outcome:
    """What a method did; the model that it was given holds the adapted weights."""

    stages: tuple[Stage, ...] = ()
    notes: tuple[str, ...] = ()
    mixes: tuple[Mix, ...] = ()


@dataclass(frozen=True)
class Adaptation:
    """A model to adapt, in place, and all that is known about how."""

    model: TorchModel
    """Its module is a :class:`~monograph.pipelines.adapt.network.Network`."""
    rows: Mapping[str, Rows]
    """``train`` and ``validation``; ``shifted`` where there are such."""
    features: FeatureStore
    """Of the trunk as it was pretrained."""
    folder: Path
    """For checkpoints, one folder a stage."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the training, where they shall differ from the method's own."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the method."""
    objective: Objective | None = None
    augmentation: Augmentation | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    quality: Callable[[TorchModel, Rows], float] = lambda model, rows: 0.0
    """Of a model on rows; more is better."""
    on_step: Callable[[str, int, int, float], None] = lambda stage, step, steps, loss: None
    on_epoch: Callable[[str, int, Epoch], None] = lambda stage, number, epoch: None

    @property
    def network(self) -> Network:
        """The module."""
        return network_of(self.model)

    def option(self, name: str, default: float) -> float:
        """Return an option of the method as a number.

        Raises:
            ConfigError: it is none.
        """
        value = self.options.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"option {name}={value!r}: give a number, such as {name}={default:g}")
        return value

    def whole_option(self, name: str, default: int) -> int:
        """Return an option of the method as a whole number of 1 or more.

        Raises:
            ConfigError: it is none.
        """
        value = self.option(name, default)
        if value < 1 or value != int(value):
            raise ConfigError(f"option {name}={value:g}: give a whole number of 1 or more, such as {name}={default}")
        return int(value)


@dataclass(frozen=True)
class Method:
    """A way to adapt."""

    name: str
    title: str
    source: str
    """Where it is described."""
    adapt: Callable[[Adaptation], Outcome]
    options: Mapping[str, str] = field(default_factory=dict)
    """By name: what it does."""


FINE_TUNING = {"epochs": 3, "batch_size": 32, "max_gradient_norm": 1.0}
_TRANSFORMER_RATE, _CONVOLUTION_RATE = 1e-4, 1e-3


def fine_tuning_settings(adaptation: Adaptation, rate_factor: float = 1.0) -> TrainingSettings:
    """Return how pretrained weights are trained: few epochs, and slowly, a network with layer norms more so."""
    has_layer_norm = any(isinstance(module, nn.LayerNorm) for module in adaptation.network.modules())
    rate = rate_factor * (_TRANSFORMER_RATE if has_layer_norm else _CONVOLUTION_RATE)
    return settings_of(adaptation, FINE_TUNING | {"learning_rate": rate})


def settings_of(adaptation: Adaptation, defaults: Mapping[str, Any]) -> TrainingSettings:
    """Return ``defaults`` with what was asked for in their place; classifiers are chosen by top-1."""
    select = "top1" if adaptation.model.contract.kind.has_classes else "loss"
    return TrainingSettings(**({"select": select} | dict(defaults) | dict(adaptation.settings)))


def fit(
    adaptation: Adaptation,
    stage: str,
    model: TorchModel,
    rows: Mapping[str, Rows],
    settings: TrainingSettings,
    *,
    rate_shares: Callable[[str], float] = lambda name: 1.0,
    augmentation: Augmentation | None = None,
) -> Stage:
    """Train ``model`` in place by the project's one loop, with checkpoints in the stage's own folder.

    Raises:
        MonographError: as :func:`~monograph.pipelines.training.train`.
    """
    folder = adaptation.folder / stage
    folder.mkdir(parents=True, exist_ok=True)
    training = train(
        model,
        rows["train"],
        rows["validation"],
        settings,
        lambda number, epoch: adaptation.on_epoch(stage, number, epoch),
        objective=adaptation.objective,
        augmentation=augmentation,
        folder=folder,
        identity=dict(adaptation.identity) | {"stage": stage},
        rate_shares=rate_shares,
        on_step=lambda step, steps, loss: adaptation.on_step(stage, step, steps, loss),
    )
    return Stage(stage, training)


def fit_all(
    adaptation: Adaptation, stage: str, settings: TrainingSettings, rate_shares: Callable[[str], float] = lambda name: 1.0
) -> Stage:
    """Train the whole network on the rows as they are, those weights of it that take a gradient."""
    return fit(
        adaptation,
        stage,
        adaptation.model,
        adaptation.rows,
        settings,
        rate_shares=rate_shares,
        augmentation=adaptation.augmentation,
    )
