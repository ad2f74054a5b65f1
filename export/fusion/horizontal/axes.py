"""Operators that work along axes, or change them.

Shape letters: ``m`` members, ``b`` batch, ``c`` channels of one member, ``k`` and ``n`` rows and columns of a matrix.
"""

from __future__ import annotations

import numpy as np

from monograph.export.fusion.horizontal.call import (
    Call,
    Given,
    batched_among,
    batched_operand,
    constant_integers,
    positive_axis,
    shared_value,
    weights_operand,
    without_axes,
)
from monograph.export.fusion.horizontal.layouts import (
    STACKED,
    CannotBatchError,
    Shared,
    Weights,
    rank_of,
    shape_of_weight,
    static_dim,
)

_AXES_ARE_INPUTS = 18
"""Since this opset; of ReduceSum they have been since 13."""


def softmax(call: Call) -> list[Given]:
    """Over an axis of one member: softmax and its logarithm."""
    rank = rank_of(call.operand(0))
    axis = positive_axis(call.setting("axis", -1), rank)
    value, member_axis = without_axes(call, [axis])
    return [(call.run([value], axis=axis if member_axis is not None else axis + 1), member_axis)]


def layer_normalization(call: Call) -> list[Given]:
    """Stacked, without scale and bias of the members' own, which follow as Mul and Add: ONNX broadcasts neither."""
    if len(call.node.outputs) > 1:
        raise CannotBatchError
    x, scale, bias = batched_operand(call.operand(0)), call.operand(1), call.optional(2)
    rank = rank_of(x)
    axis = positive_axis(call.setting("axis", -1), rank)
    value, member_axis = without_axes(call, range(axis, rank))
    shift = 1 if member_axis is STACKED else 0
    if isinstance(scale, Shared) and (bias is None or isinstance(bias, Shared)):
        return [(call.run([value, scale.value, None if bias is None else bias.value], axis=axis + shift), member_axis)]
    if shift == 0:
        value = call.batch.stacked(x)
    size = shape_of_weight(weights_operand(scale).sample)
    ones = np.ones(size, scale.sample.dtype.numpy() if scale.sample.dtype is not None else np.float32)
    value = call.run([value, call.batch.tensor(ones, "ones")], axis=axis + 1)
    value = call.batch.op("Mul", [value, call.batch.stacked(scale, rank)])
    if bias is not None:
        value = call.batch.op("Add", [value, call.batch.stacked(bias, rank)])
    return [(value, STACKED)]


def reduce(call: Call) -> list[Given]:
    """Over axes of one member, given as a setting or as a constant; none given means all."""
    x = batched_operand(call.operand(0))
    rank = rank_of(x)
    listed = call.setting("axes", None)
    if (constant := call.optional(1)) is not None:
        listed = constant_integers(constant)
    if listed is None and call.setting("noop_with_empty_axes", 0):
        raise CannotBatchError
    axes = sorted(positive_axis(axis, rank) for axis in (range(rank) if listed is None else listed))
    value, member_axis = without_axes(call, axes)
    moved = axes if member_axis is not None else [axis + 1 for axis in axes]
    if member_axis is not None and not call.setting("keepdims", 1):
        member_axis -= sum(axis < member_axis for axis in axes)
    if call.batch.opset < _AXES_ARE_INPUTS and call.node.op_type != "ReduceSum":
        return [(call.run([value], axes=moved), member_axis)]
    return [(call.run([value, call.batch.integers(moved)]), member_axis)]


def transpose(call: Call) -> list[Given]:
    """Stacked, the member axis stays first; joined, it moves along."""
    x = batched_operand(call.operand(0))
    order = list(call.setting("perm", range(rank_of(x))[::-1]))
    if x.axis is STACKED:
        return [(call.run([x.value], perm=[0, *(axis + 1 for axis in order)]), STACKED)]
    return [(call.run([x.value], perm=order), order.index(x.axis))]


def gather(call: Call) -> list[Given]:
    """Rows of tables of the members' own, or a place in what is batched; the positions are shared."""
    table, positions = call.operand(0), shared_value(call.operand(1))
    rank = rank_of(table)
    axis = positive_axis(call.setting("axis", 0), rank)
    if isinstance(table, Weights):
        return [(call.run([call.batch.stacked(table), positions], axis=axis + 1), STACKED)]
    value, member_axis = without_axes(call, [axis])
    if member_axis is STACKED:
        return [(call.run([value, positions], axis=axis + 1), STACKED)]
    shift = rank_of(Shared(positions)) - 1
    return [(call.run([value, positions], axis=axis), member_axis + (shift if axis < member_axis else 0))]


def slice_(call: Call) -> list[Given]:
    """The same part of each member."""
    x = batched_operand(call.operand(0))
    rank = rank_of(x)
    starts, ends, steps = shared_value(call.operand(1)), shared_value(call.operand(2)), call.optional(4)
    listed = call.optional(3)
    every = range(static_dim(Shared(starts), 0)) if listed is None else constant_integers(listed)
    axes = [positive_axis(axis, rank) for axis in every]
    value, member_axis = without_axes(call, axes)
    moved = call.batch.integers(axes if member_axis is not None else [axis + 1 for axis in axes])
    return [(call.run([value, starts, ends, moved, *([] if steps is None else [shared_value(steps)])]), member_axis)]


def concat(call: Call) -> list[Given]:
    """Along another axis than the member axis, which all operands are brought to have alike."""
    operands = [call.operand(position) for position in range(len(call.operands))]
    axis = positive_axis(call.setting("axis", 0), rank_of(operands[0]))
    batched = batched_among(operands)
    if not batched:
        raise CannotBatchError
    member_axes = {operand.axis for operand in batched}
    if len(member_axes) == 1 and (member_axis := member_axes.pop()) is not None and member_axis != axis:
        return [(call.run([call.batch.joined(operand, member_axis) for operand in operands]), member_axis)]
    return [(call.run([call.batch.stacked(operand, repeat=True) for operand in operands], axis=axis + 1), STACKED)]


def split(call: Call) -> list[Given]:
    """Along an axis of one member."""
    rank = rank_of(call.operand(0))
    axis = positive_axis(call.setting("axis", 0), rank)
    value, member_axis = without_axes(call, [axis])
    attributes = {**call.node.attributes, "axis": axis if member_axis is not None else axis + 1}
    node = call.batch.node("Split", [value, *call.rest()], attributes, outputs=len(call.node.outputs))
    return [(output, member_axis) for output in node.outputs]


def pad(call: Call) -> list[Given]:
    """By constant widths, around each member."""
    x = batched_operand(call.operand(0))
    rank = rank_of(x)
    pads = constant_integers(call.operand(1))
    if call.optional(3) is not None or len(pads) != 2 * rank:
        raise CannotBatchError
    value, member_axis = without_axes(call, [axis for axis in range(rank) if pads[axis] or pads[axis + rank]])
    if member_axis is STACKED:
        pads = [0, *pads[:rank], 0, *pads[rank:]]
    filling = call.optional(2)
    return [(call.run([value, call.batch.integers(pads), *([] if filling is None else [shared_value(filling)])]), member_axis)]
