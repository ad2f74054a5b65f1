"""Random logits for every test of a loss, and the softmax that the expected values are computed with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

Array = npt.NDArray[np.float64]
Pair = tuple[Array, Array, npt.NDArray[np.int64]]


@pytest.fixture
def draw() -> Callable[..., Pair]:
    """Make logits of a student and of a teacher [b x c], and labels [b], in float64."""

    def make(seed: int = 0, b: int = 6, c: int = 5, scale: float = 3.0) -> Pair:
        rng = np.random.default_rng(seed)
        return scale * rng.standard_normal((b, c)), scale * rng.standard_normal((b, c)), rng.integers(0, c, b)

    return make


@pytest.fixture
def softmax64() -> Callable[[Array], Array]:
    """The softmax of each row, by its definition."""

    def softmax(logits: Array) -> Array:
        powers = np.exp(logits)
        return powers / powers.sum(axis=-1, keepdims=True)

    return softmax


@pytest.fixture
def gradient() -> Callable[[Callable[[torch.Tensor], torch.Tensor], Array], Array]:
    """The gradient of the sum over rows of a loss, at this student."""

    def of(loss: Callable[[torch.Tensor], torch.Tensor], student: Array) -> Array:
        leaf = torch.tensor(student, requires_grad=True)
        loss(leaf).sum().backward()
        assert leaf.grad is not None
        return leaf.grad.numpy()

    return of
