"""How an operator's sizes and ranks follow from its inputs'; a new rule is one function and one entry."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from monograph.export.fusion.sharing.shape_values import operand, whole_numbers

if TYPE_CHECKING:
    from monograph.export.fusion.sharing.sizes import Size, Sizes

_SAME_SHAPE = frozenset(
    {
        "Abs", "BatchNormalization", "Cast", "Ceil", "Clip", "Cos", "CumSum", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu",
        "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax",
        "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softmax", "Softplus", "Sqrt",
        "Tanh",
    }
)  # fmt: skip
_BROADCASTING = frozenset(
    {
        "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul",
        "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
    }
)  # fmt: skip
_WINDOWED = frozenset({"AveragePool", "Conv", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})


def _producer(value: ir.Value | None) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.domain == "" else None


def _broadcast(sizes: Sizes, node: ir.Node, axis: int, depth: int) -> Size | None:
    """Operands are aligned at their last axes; those that are not of size 1 must agree."""
    ranks = [sizes.rank(value, depth) for value in node.inputs]
    if None in ranks:
        return None
    longest = max(rank or 0 for rank in ranks)
    found: set[Size | None] = set()
    for value, rank in zip(node.inputs, ranks, strict=True):
        own = axis - longest + (rank or 0)
        size = 1 if own < 0 else sizes.size(value, own, depth)
        found.add(_table_rows(sizes, value, own) if size is None else size)
    found.discard(1)
    return found.pop() if len(found) == 1 else (1 if not found else None)


def _transpose(sizes: Sizes, node: ir.Node, axis: int, depth: int) -> Size | None:
    if "perm" not in node.attributes:
        return None
    perm = node.attributes["perm"].as_ints()
    return sizes.size(node.inputs[0], perm[axis], depth) if axis < len(perm) else None


def _reshape(sizes: Sizes, node: ir.Node, axis: int, depth: int) -> Size | None:
    """A size that is written is taken, a copied 0 is the data's, and -1 stands for what is left of the data's sizes."""
    written = sizes.known_parts(operand(node, 1))
    if written is None or axis >= len(written):
        return None
    rank = sizes.rank(node.inputs[0], depth)
    data = [sizes.size(node.inputs[0], own, depth) for own in range(rank or 0)]
    copies = not node.attributes.get_int("allowzero", 0)
    parts = [data[at] if part == 0 and copies and at < len(data) else part for at, part in enumerate(written)]
    if parts[axis] != -1:
        return parts[axis] if parts[axis] != 0 else None
    if not data or None in data or None in parts:
        return None
    return _quotient([size for size in data if size is not None], [part for part in parts if part is not None])


def _quotient(data: Sequence[Size], parts: Sequence[Size]) -> Size | None:
    """Return what the sizes of the data, multiplied, are over the sizes that are written; None unless it is one size."""
    left = [size for size in data if isinstance(size, tuple)]
    for part in parts:
        if isinstance(part, tuple):
            if part not in left:
                return None
            left.remove(part)
    held = math.prod(size for size in data if isinstance(size, int))
    written = math.prod(part for part in parts if isinstance(part, int) and part != -1)
    if len(left) == 1 and held == written:
        return left[0]
    return held // written if not left and written and held % written == 0 else None


def _gather(sizes: Sizes, node: ir.Node, axis: int, depth: int) -> Size | None:
    """The axis that is gathered over gives way to the axes of the indices."""
    over = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    index_rank = sizes.rank(operand(node, 1), depth)
    if over < 0 or index_rank is None:
        return None
    if axis < over:
        return sizes.size(node.inputs[0], axis, depth)
    if axis >= over + index_rank:
        return sizes.size(node.inputs[0], axis - index_rank + 1, depth)
    size = sizes.size(operand(node, 1), axis - over, depth)
    return _table_rows(sizes, operand(node, 1), axis - over) if size is None else size


def _matmul(sizes: Sizes, node: ir.Node, axis: int, depth: int) -> Size | None:
    """Rows of the left factor, columns of the right one; axes before the last two are broadcast."""
    left, right = node.inputs
    ranks = sizes.rank(left, depth), sizes.rank(right, depth)
    if ranks[0] is None or ranks[1] is None or min(ranks[0], ranks[1]) < 2:
        return None
    from_end = max(ranks[0], ranks[1]) - axis
    if from_end == 1:
        return sizes.size(right, ranks[1] - 1, depth)
    if from_end == 2:
        return sizes.size(left, ranks[0] - 2, depth)
    found = {
        1 if rank < from_end else sizes.size(value, rank - from_end, depth)
        for value, rank in ((left, ranks[0]), (right, ranks[1]))
    }
    found.discard(1)
    return found.pop() if len(found) == 1 else (1 if not found else None)


def _unsqueeze(sizes: Sizes, node: ir.Node, axis: int, depth: int) -> Size | None:
    axes = whole_numbers(operand(node, 1))
    if axes is None or min(axes) < 0:
        return None
    return 1 if axis in axes else sizes.size(node.inputs[0], axis - sum(new < axis for new in axes), depth)


def _squeeze(sizes: Sizes, node: ir.Node, axis: int, depth: int) -> Size | None:
    axes = whole_numbers(operand(node, 1))
    rank = sizes.rank(node.inputs[0], depth)
    if axes is None or rank is None:
        return None
    kept = [own for own in range(rank) if own not in {gone % rank for gone in axes}]
    return sizes.size(node.inputs[0], kept[axis], depth) if axis < len(kept) else None


def _flatten(sizes: Sizes, node: ir.Node, axis: int, depth: int) -> Size | None:
    rank = sizes.rank(node.inputs[0], depth)
    if rank is None or rank < 2 or node.attributes.get_int("axis", 1) != 1:
        return None
    joined = [sizes.size(node.inputs[0], own, depth) for own in (range(1) if axis == 0 else range(1, rank))]
    if len(joined) == 1:
        return joined[0]
    numbers = [size for size in joined if isinstance(size, int)]
    return math.prod(numbers) if len(numbers) == len(joined) else None


def _concat(sizes: Sizes, node: ir.Node, axis: int, depth: int) -> Size | None:
    joined = node.attributes["axis"].as_int()
    if joined < 0:
        rank = sizes.rank(node.inputs[0], depth)
        joined = -1 if rank is None else joined + rank
    if joined < 0 or axis != joined:
        return sizes.size(node.inputs[0], axis, depth) if joined >= 0 else None
    parts = [sizes.size(value, axis, depth) for value in node.inputs]
    numbers = [part for part in parts if isinstance(part, int)]
    return sum(numbers) if len(numbers) == len(parts) else None


def _expand(sizes: Sizes, node: ir.Node, axis: int, depth: int) -> Size | None:
    """Of the size that is there and the one that is asked for, the one that is not 1."""
    parts, rank = sizes.parts(operand(node, 1)), sizes.rank(node.inputs[0], depth)
    if parts is None or rank is None:
        return None
    longest = max(rank, len(parts))
    own, asked = axis - longest + rank, axis - longest + len(parts)
    size = 1 if own < 0 else sizes.size(node.inputs[0], own, depth)
    found = {
        _table_rows(sizes, node.inputs[0], own) if size is None else size,
        1 if asked < 0 or asked >= len(parts) else parts[asked],
    } - {1}
    return found.pop() if len(found) == 1 else (None if found else 1)


def _reduction(sizes: Sizes, node: ir.Node, axis: int, depth: int) -> Size | None:
    """Reduced axes keep size 1, or go."""
    rank, axes = sizes.rank(node.inputs[0], depth), reduced_axes(node)
    if rank is None or axes is None:
        return None
    reduced = {own % rank for own in axes}
    if node.attributes.get_int("keepdims", 1) != 0:
        return 1 if axis in reduced else sizes.size(node.inputs[0], axis, depth)
    kept = [own for own in range(rank) if own not in reduced]
    return sizes.size(node.inputs[0], kept[axis], depth) if axis < len(kept) else None


def reduced_axes(node: ir.Node) -> list[int] | None:
    """Return the axes that a reduction states, as an attribute or as a constant; None where it states none."""
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    return whole_numbers(operand(node, 1))


def _slice(sizes: Sizes, node: ir.Node, axis: int, depth: int) -> Size | None:
    axes = whole_numbers(operand(node, 3))
    return None if axes is None or min(axes) < 0 or axis in axes else sizes.size(node.inputs[0], axis, depth)


def _windowed(sizes: Sizes, node: ir.Node, axis: int, depth: int) -> Size | None:
    """Rows stay, a convolution has as many channels as its weight has rows, and windows are counted where sizes are numbers."""
    if axis == 0:
        return sizes.size(node.inputs[0], 0, depth)
    if axis == 1:
        return sizes.size(operand(node, 1), 0, depth) if node.op_type == "Conv" else sizes.size(node.inputs[0], 1, depth)
    if node.op_type.startswith("Global"):
        return 1
    size = sizes.size(node.inputs[0], axis, depth)
    return _window_count(sizes, node, axis - 2, size) if isinstance(size, int) else None


def _window_count(sizes: Sizes, node: ir.Node, position: int, size: int) -> int | None:
    """Return ``⌊(size + pads - dilation·(kernel - 1) - 1) / stride⌋ + 1``, as the operators of ONNX say."""
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or node.attributes.get_int("ceil_mode", 0) != 0:
        return None
    kernel = _number(node, "kernel_shape", position)
    if kernel is None and node.op_type == "Conv":
        written = sizes.size(operand(node, 1), position + 2)
        kernel = written if isinstance(written, int) else None
    if kernel is None:
        return None
    stride, dilation = (_number(node, name, position) or 1 for name in ("strides", "dilations"))
    pads = list(node.attributes["pads"].as_ints()) if "pads" in node.attributes else []
    padding = sum(pads[position :: len(pads) // 2]) if pads else 0
    return (size + padding - dilation * (kernel - 1) - 1) // stride + 1


def _number(node: ir.Node, name: str, position: int) -> int | None:
    numbers = node.attributes[name].as_ints() if name in node.attributes else ()
    return int(numbers[position]) if position < len(numbers) else None


def _gemm(sizes: Sizes, node: ir.Node, axis: int, depth: int) -> Size | None:
    transposed = "transA" if axis == 0 else "transB"
    flipped = transposed in node.attributes and node.attributes[transposed].as_int() != 0
    return sizes.size(node.inputs[axis], 1 - axis if flipped else axis, depth) if axis < 2 else None


def _table_rows(sizes: Sizes, value: ir.Value | None, axis: int) -> Size | None:
    """Return the size of the first rows of a table, such as positions: as many as asked for, if it has so many.

    Where it has not, what adds them to as many rows fails, so there the size is the asked one whenever it runs.
    """
    node = _producer(value)
    if node is not None and node.op_type == "Gather" and "axis" not in node.attributes:
        return _table_rows(sizes, operand(node, 1), axis)
    if node is None or node.op_type != "Slice" or node.inputs[0] is None or len(node.inputs) < 4:
        return None
    table = node.inputs[0].const_value
    steps = whole_numbers(node.inputs[4]) if len(node.inputs) > 4 else [1]
    axes = whole_numbers(operand(node, 3))
    if table is None or axis >= len(table.shape) or axes != [axis] or steps != [1] or whole_numbers(operand(node, 1)) != [0]:
        return None
    end = sizes.parts(operand(node, 2))
    return end[0] if end and end[0] is not None else None


SIZE_RULES: dict[str, Callable[[Sizes, ir.Node, int, int], Size | None]] = {
    **dict.fromkeys(_SAME_SHAPE, lambda sizes, node, axis, depth: sizes.size(node.inputs[0], axis, depth)),
    **dict.fromkeys(_BROADCASTING, _broadcast),
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Gather": _gather,
    "MatMul": _matmul,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Flatten": _flatten,
    "Concat": _concat,
    "Slice": _slice,
    "Gemm": _gemm,
    "Expand": _expand,
    "Shape": lambda sizes, node, axis, depth: len(sizes.parts(node.outputs[0]) or ()) or None,
    **dict.fromkeys(_WINDOWED, _windowed),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), _reduction),
}
"""The size of an operator's first output along one axis."""


def _rank_of_reshape(sizes: Sizes, node: ir.Node, depth: int) -> int | None:
    parts = sizes.parts(operand(node, 1))
    return None if parts is None else len(parts)


def _rank_of_broadcast(sizes: Sizes, node: ir.Node, depth: int) -> int | None:
    ranks = [sizes.rank(operand, depth) for operand in node.inputs]
    return None if None in ranks else max(rank or 0 for rank in ranks)


def _rank_of_expand(sizes: Sizes, node: ir.Node, depth: int) -> int | None:
    parts, inner = sizes.parts(operand(node, 1)), sizes.rank(node.inputs[0], depth)
    return None if parts is None or inner is None else max(len(parts), inner)


def _rank_of_gather(sizes: Sizes, node: ir.Node, depth: int) -> int | None:
    table, index = sizes.rank(node.inputs[0], depth), sizes.rank(operand(node, 1), depth)
    return None if table is None or index is None else table + index - 1


def _rank_of_unsqueeze(sizes: Sizes, node: ir.Node, depth: int) -> int | None:
    inner, axes = sizes.rank(node.inputs[0], depth), whole_numbers(operand(node, 1))
    return None if inner is None or axes is None else inner + len(axes)


RANK_RULES: dict[str, Callable[[Sizes, ir.Node, int], int | None]] = {
    **dict.fromkeys(
        (*_SAME_SHAPE, *_WINDOWED, "Transpose", "Slice", "Concat"), lambda sizes, node, depth: sizes.rank(node.inputs[0], depth)
    ),
    **dict.fromkeys((*_BROADCASTING, "MatMul"), _rank_of_broadcast),
    **dict.fromkeys(("Flatten", "Gemm"), lambda sizes, node, depth: 2),
    "Shape": lambda sizes, node, depth: 1,
    "Reshape": _rank_of_reshape,
    "Expand": _rank_of_expand,
    "Gather": _rank_of_gather,
    "Unsqueeze": _rank_of_unsqueeze,
}
"""The number of axes of an operator's output."""
