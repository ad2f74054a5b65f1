"""Operators that work element by element.

Shape letters: ``m`` members, ``b`` batch, ``c`` channels of one member, ``k`` and ``n`` rows and columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from monograph.export.fusion.horizontal.call import (
    Call,
    Given,
    batched_among,
    batched_operand,
)
from monograph.export.fusion.horizontal.layouts import (
    STACKED,
    Batch,
    Batched,
    CannotBatchError,
    Operand,
    Shared,
    Weights,
    dim_of,
    rank_of,
)

Array = npt.NDArray[Any]


def unary(call: Call) -> list[Given]:
    """Element by element, with further inputs that are the same for all: bounds, for instance."""
    x = batched_operand(call.operand(0))
    return [(call.run([x.value, *call.rest()]), x.axis)]


def dropout(call: Call) -> list[Given]:
    """Of inference, which drops nothing."""
    if call.optional(2) is not None or len(call.node.outputs) > 1:
        raise CannotBatchError
    return unary(call)


def elementwise(call: Call) -> list[Given]:
    """Any operator that broadcasts its inputs: joined where all of them can be, else stacked."""
    operands = [operand for operand in call.operands if operand is not None]
    if len(operands) < len(call.operands) or not any(isinstance(operand, Batched) for operand in operands):
        raise CannotBatchError
    rank = max(rank_of(operand) for operand in operands)
    axes = {STACKED if one.axis is None else one.axis + rank - rank_of(one) for one in batched_among(operands)}
    if len(axes) == 1 and (axis := axes.pop()) is not None:
        inputs = _joined_alike(call.batch, operands, axis, rank)
        if inputs is not None:
            return [(call.run(inputs), axis)]
    return [(call.run([call.batch.stacked(operand, rank) for operand in operands]), STACKED)]


def _joined_alike(batch: Batch, operands: Sequence[Operand], axis: int, rank: int) -> list[ir.Value] | None:
    """Return the operands joined along ``axis`` of the ``rank`` axes that they broadcast to; None where they cannot be."""
    sizes = {dim_of(one, one.axis) for one in batched_among(operands) if one.axis is not None}
    if len(sizes) != 1 or (size := sizes.pop()) is None:
        return None
    if not all(_joins(operand, axis, rank, size) for operand in operands):
        return None
    return [_joined_to(batch, operand, axis, rank, size) for operand in operands]


def _joins(operand: Operand, axis: int, rank: int, size: int) -> bool:
    """True where an operand is one number, or ``size`` numbers, along the axis."""
    own = axis - (rank - rank_of(operand))
    return own < 0 or isinstance(operand, Batched) or dim_of(operand, own) in (1, size)


def _joined_to(batch: Batch, operand: Operand, axis: int, rank: int, size: int) -> ir.Value:
    own = axis - (rank - rank_of(operand))
    if isinstance(operand, Batched):
        return operand.value
    if isinstance(operand, Shared) and (own < 0 or dim_of(operand, own) == 1):
        return operand.value
    if isinstance(operand, Weights):
        shape = [1] * (rank - len(operand.shape)) + list(operand.shape)
        shape[axis] = size
        return batch.batch_weights(operand, axis, shape=shape, prepare=lambda array: _with_rank(array, rank))
    return batch.joined(operand, own)


def _with_rank(array: Array, rank: int) -> Array:
    return array.reshape((1,) * (rank - array.ndim) + array.shape)
