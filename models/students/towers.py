"""A student of pairs, for retrieval and recommendation: each side by its own tower, so that one side can be kept.

Shape letters: ``b`` batch, ``f`` features, ``d`` width.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from monograph.errors import ConfigError
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.students.contracts import ModuleAndContract

IDS, FEATURES = "ids", "features"


def two_tower(
    left_size: int = 1000, right_size: int = 1000, width: int = 32, left_kind: str = IDS, right_kind: str = IDS
) -> ModuleAndContract:
    """Score how well ``left`` and ``right`` match: the dot product of their embeddings over ``sqrt(width)``.

    A side of the kind ``ids`` takes int64 ``[b]`` in ``[0, size)`` and looks its embedding up; one of the kind
    ``features`` takes float32 ``[b, size]`` and computes it by two linear layers. Gives ``scores`` float32 ``[b, 1]``,
    which are unbounded: they order pairs, and are no probabilities. Source: Covington et al. 2016, doi
    10.1145/2959100.2959190; the scale is that of Vaswani et al. 2017, arXiv 1706.03762.

    Raises:
        ConfigError: a size is not positive, or a kind is unknown.
    """
    sides = {"left": (left_kind, left_size), "right": (right_kind, right_size)}
    for name, size in {"left_size": left_size, "right_size": right_size, "width": width}.items():
        if size < 1:
            raise ConfigError(f"{name} is {size}, expected a positive number")
    inputs = tuple(_side(name, kind, size) for name, (kind, size) in sides.items())
    contract = Contract(inputs, (TensorSpec("scores", "float32", ("batch", 1)),), Kind.SCORES)
    return TwoTowers(*(_tower(kind, size, width) for kind, size in sides.values())), contract


class TwoTowers(nn.Module):
    """Two inputs to one score; what :func:`two_tower` makes."""

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Return ``scores`` float32 ``[b, 1]``."""
        one, other = self.left(left), self.right(right)  # [b x d] each
        scores: torch.Tensor = (one[:, None, :] @ other[:, :, None]).squeeze(2) / math.sqrt(one.shape[1])
        return scores


def _side(name: str, kind: str, size: int) -> TensorSpec:
    if kind == IDS:
        return TensorSpec(name, "int64", ("batch",), upper_bound=size)
    if kind == FEATURES:
        return TensorSpec(name, "float32", ("batch", size))
    raise ConfigError(f"{name}_kind is {kind!r}, expected {IDS!r} or {FEATURES!r}")


def _tower(kind: str, size: int, width: int) -> nn.Module:
    if kind == IDS:
        return nn.Embedding(size, width)
    return nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.Linear(width, width))
