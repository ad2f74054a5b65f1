"""Convolutions, matrix products and what works channel by channel.

Shape letters: ``m`` members, ``b`` batch, ``c`` channels of one member, ``k`` and ``n`` rows and columns of a matrix.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from monograph.export.fusion.horizontal.call import (
    Call,
    Given,
    batched_operand,
    shared_value,
    weights_operand,
)
from monograph.export.fusion.horizontal.layouts import (
    STACKED,
    Batched,
    CannotBatchError,
    Shared,
    Weights,
    is_weight,
    rank_of,
    shape_of_weight,
)

Array = npt.NDArray[Any]


def conv(call: Call) -> list[Given]:
    """Channels of all members side by side; on a shared input the plain Conv has all filters."""
    x, weight = call.operand(0), weights_operand(call.operand(1))
    group = call.setting("group", 1)
    bias = call.optional(2)
    inputs = [call.batch.batch_weights(weight, 0)]
    inputs += [call.batch.batch_weights(weights_operand(bias), 0)] if bias is not None else []
    if isinstance(x, Shared) and group == 1 and call.node.op_type == "Conv":
        return [(call.run([x.value, *inputs]), 1)]
    return [(call.run([call.batch.joined(x, 1), *inputs], group=group * call.batch.member_count), 1)]


def per_channel(call: Call) -> list[Given]:
    """Pooling and normalisation, channel by channel, with what further inputs hold of each channel."""
    if len(call.node.outputs) > 1:
        raise CannotBatchError
    parameters = [call.batch.batch_weights(weights_operand(call.operand(at)), 0) for at in range(1, len(call.operands))]
    return [(call.run([call.batch.joined(batched_operand(call.operand(0)), 1), *parameters]), 1)]


def group_normalization(call: Call) -> list[Given]:
    """As many groups again for each member."""
    groups = call.setting("num_groups", 1) * call.batch.member_count
    parameters = [call.batch.batch_weights(weights_operand(call.operand(at)), 0) for at in (1, 2)]
    return [(call.run([call.batch.joined(batched_operand(call.operand(0)), 1), *parameters], num_groups=groups), 1)]


def resize(call: Call) -> list[Given]:
    """By scales that leave the channels alone."""
    scales = call.optional(2)
    if scales is None or call.optional(3) is not None or call.optional(1) is not None or "axes" in call.node.attributes:
        raise CannotBatchError
    value = shared_value(scales)
    if not is_weight(value) or value.const_value is None or value.const_value.numpy()[1] != 1:
        raise CannotBatchError
    return [(call.run([call.batch.joined(batched_operand(call.operand(0)), 1), None, value]), 1)]


def gemm(call: Call) -> list[Given]:
    """On a shared input all columns side by side, else ``[m, b, k] × [m, k, n]``."""
    x, weight, bias = call.operand(0), weights_operand(call.operand(1)), call.optional(2)
    if call.setting("transA", 0):
        raise CannotBatchError
    alpha, beta, turned = call.setting("alpha", 1.0), call.setting("beta", 1.0), call.setting("transB", 0)
    rows, columns = shape_of_weight(weight.sample)[:: -1 if turned else 1]

    def matrix(array: Array) -> Array:
        array = array.T if turned else array
        return array if alpha == 1 else (array * alpha).astype(array.dtype)

    def row(array: Array) -> Array:
        array = array.reshape(-1)
        return array if beta == 1 else (array * beta).astype(array.dtype)

    if bias is not None and shape_of_weight(weights_operand(bias).sample) not in ((columns,), (1, columns), (1,), (), (1, 1)):
        raise CannotBatchError
    axis = 1 if isinstance(x, Shared) else STACKED
    matrices = call.batch.batch_weights(weight, axis, shape=(rows, columns), prepare=matrix)
    if isinstance(x, Shared):
        biases = [] if bias is None else [call.batch.batch_weights(weights_operand(bias), 0, shape=(columns,), prepare=row)]
        return [(call.batch.op("Gemm", [x.value, matrices, *biases]), 1)]
    product = call.batch.op("MatMul", [call.batch.stacked(x), matrices])
    if bias is None:
        return [(product, STACKED)]
    added = call.batch.batch_weights(weights_operand(bias), STACKED, shape=(1, columns), prepare=lambda array: row(array)[None])
    return [(call.batch.op("Add", [product, added]), STACKED)]


def matmul(call: Call) -> list[Given]:
    """On a shared left factor all columns side by side, else batched over a leading member axis."""
    left, right = call.operand(0), call.operand(1)
    ranks = rank_of(left), rank_of(right)
    if min(ranks) < 2:
        raise CannotBatchError
    if isinstance(left, Shared) and isinstance(right, Weights) and ranks[1] == 2:
        return [(call.run([left.value, call.batch.batch_weights(right, 1)]), ranks[0] - 1)]
    if not any(isinstance(operand, Weights | Batched) for operand in (left, right)):
        raise CannotBatchError
    return [(call.run([call.batch.stacked(operand, max(ranks)) for operand in (left, right)]), STACKED)]
