"""Operators that change the number of axes or their sizes.

Shape letters: ``m`` members, ``b`` batch, ``c`` channels of one member, ``k`` and ``n`` rows and columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from monograph.export.fusion.horizontal.call import (
    Call,
    Given,
    batched_operand,
    constant_integers,
    positive_axis,
    shared_value,
    without_axes,
)
from monograph.export.fusion.horizontal.layouts import (
    STACKED,
    Apart,
    Batched,
    CannotBatchError,
    Shared,
    dim_of,
    is_weight,
    rank_of,
    static_dim,
)


def reshape(call: Call) -> list[Given]:
    """Stacked: the member axis goes before the new shape. Joined along axis 1: where the rows stay the rows."""
    x, shape = batched_operand(call.operand(0)), shared_value(call.operand(1))
    joined = _reshape_joined(call, x, shape) if x.axis == 1 else None
    if joined is not None:
        return [(joined, 1)]
    if call.output_rank() == 0:
        raise CannotBatchError
    # A zero of the shape copies the size at its own place: the member axis stands before both.
    return [(call.run([call.batch.stacked(x), call.batch.shape_of_all(shape)]), STACKED)]


def _reshape_joined(call: Call, x: Batched, shape: ir.Value) -> ir.Value | None:
    """Return ``[b, m·c, …]`` in another shape of which ``b`` is the first part; None where that is not certain."""
    if not is_weight(shape):
        return None
    sizes = constant_integers(Shared(shape))
    before, after = call.node.inputs[0], call.node.outputs[0]
    if len(sizes) < 2 or 0 in sizes[1:] or before is None or before.shape is None or after.shape is None:
        return None
    if not _same_rows(before.shape, after.shape, sizes):
        return None
    rows = 0 if call.setting("allowzero", 0) == 0 else sizes[0]
    if sizes[0] == -1 and call.setting("allowzero", 0):
        rows = -1
    second = sizes[1] if sizes[1] == -1 else sizes[1] * call.batch.member_count
    return call.run([x.value, call.batch.integers([rows, second, *sizes[2:]])])


def _same_rows(before: ir.Shape, after: ir.Shape, sizes: Sequence[int]) -> bool:
    """True where a Reshape to ``sizes`` keeps the first axis: a row holds as many numbers before as after."""
    if sizes[0] == 0:
        return True
    row = [dim for dim in list(before)[1:] if isinstance(dim, int)]
    if len(row) == len(before) - 1 and -1 not in sizes[1:]:
        return int(np.prod(row)) == int(np.prod(sizes[1:]))
    return isinstance(before[0], int) and before[0] == sizes[0]


def flatten(call: Call) -> list[Given]:
    """Rows stay rows; all else of a member becomes one axis."""
    x = batched_operand(call.operand(0))
    if call.setting("axis", 1) != 1:
        raise CannotBatchError
    if x.axis == 1 and dim_of(Shared(call.node.outputs[0]), 1) is not None:
        return [(call.run([x.value]), 1)]
    return [(call.batch.op("Reshape", [call.batch.stacked(x), call.batch.integers([0, 0, -1])]), STACKED)]


def unsqueeze(call: Call) -> list[Given]:
    """New axes of size 1 among those of one member."""
    x = batched_operand(call.operand(0))
    rank = rank_of(x)
    listed = constant_integers(call.operand(1))
    axes = sorted(positive_axis(axis, rank + len(listed)) for axis in listed)
    if x.axis is STACKED:
        return [(call.run([x.value, call.batch.integers([axis + 1 for axis in axes])]), STACKED)]
    places = [axis for axis in range(rank + len(axes)) if axis not in axes]
    return [(call.run([x.value, call.batch.integers(axes)]), places[x.axis])]


def squeeze(call: Call) -> list[Given]:
    """Without axes of size 1 of one member."""
    x = batched_operand(call.operand(0))
    rank = rank_of(x)
    axes = sorted(positive_axis(axis, rank) for axis in constant_integers(call.operand(1)))
    value, member_axis = without_axes(call, axes)
    if member_axis is STACKED:
        return [(call.run([value, call.batch.integers([axis + 1 for axis in axes])]), STACKED)]
    return [(call.run([value, call.batch.integers(axes)]), member_axis - sum(axis < member_axis for axis in axes))]


def expand(call: Call) -> list[Given]:
    """Broadcast, weights too, to a shape that is the same for all members."""
    x, shape = call.operand(0), shared_value(call.operand(1))
    if isinstance(x, Shared | Apart) or static_dim(Shared(shape), 0) != call.output_rank():
        raise CannotBatchError
    return [(call.run([call.batch.stacked(x, call.output_rank()), call.batch.shape_of_all(shape)]), STACKED)]
