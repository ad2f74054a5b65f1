"""What every loss demands of its inputs, and arithmetic that stays finite where a norm is zero.

Shape letters: ``b`` batch, ``c`` classes, ``n`` length of a vector.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.linalg import vector_norm

from monograph.errors import ConfigError, ContractError
from monograph.models.data.rows import UNLABELLED

_ROUNDING = 10
"""A vector that is this many times smaller than the rounding error of what it was computed from is zero."""


def in_single_precision(tensor: Tensor) -> Tensor:
    """Return ``tensor`` as float32 if it is of half precision or of whole numbers, else as it is."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def checked_pair(name: str, student: Tensor, teacher: Tensor, dimensions: int | None = None) -> tuple[Tensor, Tensor]:
    """Return student and teacher, of equal shape, in float32 or above, and the teacher cut off from the gradient.

    Raises:
        ContractError: shapes that differ, or that have another number of ``dimensions``.
    """
    if student.shape != teacher.shape:
        raise ContractError(
            f"the loss {name} got a student of shape {_shape(student)} and a teacher of shape {_shape(teacher)}, "
            "expected equal shapes: give both the same rows and the same classes"
        )
    check_dimensions(name, student, dimensions)
    return in_single_precision(student), in_single_precision(teacher.detach())


def check_dimensions(name: str, tensor: Tensor, dimensions: int | None) -> None:
    """Check the number of dimensions of ``tensor``; None takes 1 or more.

    Raises:
        ContractError: another number.
    """
    if tensor.ndim == 0 or (dimensions is not None and tensor.ndim != dimensions):
        expected = {None: "[b x ...]", 2: "[b x c]", 3: "[t x b x c]", 4: "[b x k x h x w]"}[dimensions]
        raise ContractError(f"the loss {name} got shape {_shape(tensor)}, expected {expected}: reshape it")


def check_temperature(name: str, temperature: float) -> None:
    """Check that logits can be divided by ``temperature``.

    Raises:
        ConfigError: not above 0, or not finite.
    """
    if not 0 < temperature < math.inf:
        raise ConfigError(f"the loss {name} got temperature {temperature}, expected one above 0: 1 leaves logits as they are")


def checked_labels(name: str, student: Tensor, labels: Tensor | None, *, all_labelled: bool = False) -> Tensor:
    """Return ``labels`` [b] as int64 on the device of ``student`` [b x c].

    Raises:
        ContractError: no labels, another number of them, not whole numbers, or outside the classes. `UNLABELLED` passes,
            except with ``all_labelled``.
    """
    if labels is None:
        raise ContractError(f"the loss {name} needs the label of every row and got none: give labels, or use the loss kd")
    if labels.shape != student.shape[:1] or student.ndim != 2:
        raise ContractError(
            f"the loss {name} got labels of shape {_shape(labels)} for outputs of shape {_shape(student)}, "
            "expected labels [b] for logits [b x c]"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise ContractError(f"the loss {name} got labels of {labels.dtype}, expected whole numbers of classes: cast them")
    labels = labels.to(student.device, torch.int64)
    c = student.shape[1]
    outside = labels[(labels < UNLABELLED) | (labels >= c)]
    if outside.numel():
        raise ContractError(
            f"the loss {name} got the label {int(outside[0])}, expected 0 to {c - 1}, or {UNLABELLED} for a row without a label"
        )
    if all_labelled and bool((labels == UNLABELLED).any()):
        count = int((labels == UNLABELLED).sum())
        raise ContractError(
            f"the loss {name} needs the label of every row, and {count} of {len(labels)} have none: "
            "leave these rows out, or use the loss kd"
        )
    return labels


def unit(vectors: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Divide vectors by their Euclidean norm; where one is zero, give zero and let no gradient through.

    A plain division by ``norm + eps`` has a gradient of ``1 / eps`` there, which a student with an output layer of zeros meets
    in its first step.

    Args:
        vectors: ``[... x n]``.
        size: ``[... x 1]``, the norm of what the vectors were computed from. A vector within the rounding error of it is zero.

    Returns:
        The unit vectors ``[... x n]``, and which are zero, ``[... x 1]``.
    """
    norm = vector_norm(vectors, dim=-1, keepdim=True)
    is_zero = norm <= _ROUNDING * torch.finfo(vectors.dtype).eps * size.detach()
    return torch.where(is_zero, 0.0, vectors / torch.where(is_zero, 1.0, norm)), is_zero


def centred_unit(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract its mean from each vector and divide by the norm; a constant vector gives zero without a gradient.

    ``[... x n]`` to the unit vectors ``[... x n]``, and which are constant, ``[... x 1]``.
    """
    return unit(vectors - vectors.mean(-1, keepdim=True), vector_norm(vectors, dim=-1, keepdim=True))


def _shape(tensor: Tensor) -> str:
    return f"[{' x '.join(map(str, tensor.shape))}]"
