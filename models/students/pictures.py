"""Students of pictures, and of flat features.

Shape letters: ``b`` batch, ``k`` channels, ``h`` height, ``w`` width, ``f`` features, ``c`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from monograph.models.students.contracts import ModuleAndContract, feature_classifier_contract, image_classifier_contract


def mlp(
    input_shape: Sequence[int] = (1, 28, 28), class_count: int = 10, width: int = 256, dropout: float = 0.2
) -> ModuleAndContract:
    """Two hidden layers of ``width`` units on the flattened picture, or on the features of ``input_shape`` ``[f]``.

    Raises:
        ConfigError: ``input_shape`` is neither ``[k, h, w]`` nor ``[f]``.
    """
    is_flat = len(input_shape) == 1
    contract = (
        feature_classifier_contract(input_shape[0], class_count)
        if is_flat
        else image_classifier_contract(input_shape, class_count)
    )
    module = nn.Sequential(
        nn.Flatten(),  # [b, f] with f = k*h*w
        nn.Linear(math.prod(input_shape), width),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(width, class_count),  # [b, c]
    )
    return module, contract


def conv(
    input_shape: Sequence[int] = (1, 28, 28), class_count: int = 10, width: int = 16, dropout: float = 0.2
) -> ModuleAndContract:
    """Three 3×3 convolutions, each followed by BatchNorm and halving the picture, then one linear layer.

    Raises:
        ConfigError: ``input_shape`` is not ``[k, h, w]``.
    """
    contract = image_classifier_contract(input_shape, class_count)
    layers: list[nn.Module] = []
    channels = input_shape[0]
    for out_channels in (width, 2 * width, 4 * width):
        layers += [*_convolution(channels, out_channels), nn.MaxPool2d(2, ceil_mode=True)]
        channels = out_channels
    return _with_head(layers, channels, class_count, dropout), contract


def separable_conv(
    input_shape: Sequence[int] = (1, 28, 28), class_count: int = 10, width: int = 24, dropout: float = 0.2
) -> ModuleAndContract:
    """A strided stem, then depthwise-separable convolutions (Howard et al. 2017, arXiv 1704.04861).

    Raises:
        ConfigError: ``input_shape`` is not ``[k, h, w]``.
    """
    contract = image_classifier_contract(input_shape, class_count)
    layers: list[nn.Module] = [
        nn.Conv2d(input_shape[0], width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU6(),
    ]
    channels = width
    for out_channels, stride in ((2 * width, 1), (2 * width, 2), (4 * width, 1)):
        layers += [
            nn.Conv2d(channels, channels, 5, stride=stride, padding=2, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU6(),
            nn.Conv2d(channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU6(),
        ]
        channels = out_channels
    return _with_head(layers, channels, class_count, dropout), contract


def residual_conv(
    input_shape: Sequence[int] = (1, 28, 28), class_count: int = 10, width: int = 32, dropout: float = 0.2
) -> ModuleAndContract:
    """Five 3×3 convolutions up to ``4·width`` channels and two residual blocks between them: rather a teacher than a student.

    The order of layers of the nine-layer ResNet of DAWNBench (Page 2018, github.com/davidcpage/cifar10-fast), narrower.

    Raises:
        ConfigError: ``input_shape`` is not ``[k, h, w]``.
    """
    contract = image_classifier_contract(input_shape, class_count)
    halved = nn.MaxPool2d(2, ceil_mode=True)
    layers = [
        *_convolution(input_shape[0], width),
        *_convolution(width, 2 * width),
        halved,
        Residual(2 * width),
        *_convolution(2 * width, 4 * width),
        halved,
        *_convolution(4 * width, 4 * width),
        halved,
        Residual(4 * width),
    ]
    return _with_head(layers, 4 * width, class_count, dropout), contract


class Residual(nn.Module):
    """Two 3×3 convolutions, added to what they take."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolution(channels, channels), *_convolution(channels, channels))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return ``[b, k, h, w]`` for ``hidden`` ``[b, k, h, w]``."""
        added: torch.Tensor = self.body(hidden)
        return hidden + added


def _convolution(channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    return (nn.Conv2d(channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU())


def _with_head(layers: Sequence[nn.Module], channels: int, class_count: int, dropout: float) -> nn.Module:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels, class_count))
    return nn.Sequential(*layers, *head)
