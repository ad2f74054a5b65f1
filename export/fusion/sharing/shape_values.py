"""Shapes that are put together while a graph runs, worked out as far as they can be known before.

An exporter writes ``Where(Equal(shape, -1), 1, shape)`` over Concat, Unsqueeze and Gather where another writes one constant.
A value ``int64 [n]`` (or a number) is known by its parts: sizes of inputs, and numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from monograph.export.fusion.sharing.sizes import Parts, Size, Sizes

_LONGEST = 16
"""More numbers than this are no shape."""


def whole_numbers(value: ir.Value | None) -> list[int] | None:
    """Return the numbers that a small constant ``int64`` holds; None where it is none."""
    tensor = None if value is None or value.is_graph_input() else value.const_value
    if tensor is None or tensor.dtype is not ir.DataType.INT64 or tensor.size > _LONGEST or len(tensor.shape) > 1:
        return None
    return [int(number) for number in np.atleast_1d(tensor.numpy())]


def operand(node: ir.Node, position: int) -> ir.Value | None:
    """Return an input; None where it is left out, as it is where an older opset has an attribute in its place."""
    return node.inputs[position] if position < len(node.inputs) else None


def _shape(sizes: Sizes, node: ir.Node) -> Parts | None:
    rank = sizes.rank(node.inputs[0])
    if rank is None:
        return None
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", rank)
    return [sizes.size(node.inputs[0], axis) for axis in range(rank)][start:end]


def _gather(sizes: Sizes, node: ir.Node) -> Parts | None:
    table, positions = sizes.parts(node.inputs[0]), whole_numbers(operand(node, 1))
    if table is None or positions is None or node.attributes.get_int("axis", 0) != 0:
        return None
    return [table[position] for position in positions] if all(-len(table) <= at < len(table) for at in positions) else None


def _slice(sizes: Sizes, node: ir.Node) -> Parts | None:
    table = sizes.parts(node.inputs[0])
    bounds = [whole_numbers(value) for value in node.inputs[1:]]
    if table is None or len(bounds) < 2 or any(bound is None or len(bound) != 1 for bound in bounds):
        return None
    start, end, axis, step = [bound[0] for bound in bounds if bound] + [0, 1][len(bounds) - 2 :]
    return table[start : min(end, len(table)) : step] if axis == 0 and step > 0 else None


def _concat(sizes: Sizes, node: ir.Node) -> Parts | None:
    inner = [sizes.parts(item) for item in node.inputs]
    return [part for parts in inner for part in parts or ()] if all(parts is not None for parts in inner) else None


def _same(sizes: Sizes, node: ir.Node) -> Parts | None:
    return sizes.parts(node.inputs[0])


def _cast(sizes: Sizes, node: ir.Node) -> Parts | None:
    return sizes.parts(node.inputs[0]) if node.attributes.get_int("to", 0) == ir.DataType.INT64 else None


def _reshape(sizes: Sizes, node: ir.Node) -> Parts | None:
    parts = sizes.parts(node.inputs[0])
    return parts if parts is not None and whole_numbers(operand(node, 1)) in ([-1], [len(parts)]) else None


def _constant_of_shape(sizes: Sizes, node: ir.Node) -> Parts | None:
    count = sizes.parts(node.inputs[0])
    tensor = node.attributes["value"].as_tensor() if "value" in node.attributes else None
    if tensor is None or tensor.dtype is not ir.DataType.INT64 or count is None or len(count) != 1:
        return None
    number = count[0]
    return [int(tensor.numpy().reshape(-1)[0])] * number if isinstance(number, int) and number <= _LONGEST else None


def _pairs(sizes: Sizes, node: ir.Node) -> list[tuple[Size | None, Size | None]] | None:
    left, right = sizes.parts(node.inputs[0]), sizes.parts(operand(node, 1))
    if left is None or right is None:
        return None
    length = max(len(left), len(right))
    if {len(left), len(right)} - {1, length}:
        return None
    left, right = (parts * length if len(parts) == 1 else parts for parts in (left, right))
    return list(zip(left, right, strict=True))


def _product(sizes: Sizes, node: ir.Node) -> Parts | None:
    pairs = _pairs(sizes, node)
    return None if pairs is None else [_times(a, b) for a, b in pairs]


def _times(a: Size | None, b: Size | None) -> Size | None:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    return a if b == 1 else b if a == 1 else None


def _equal(sizes: Sizes, node: ir.Node) -> Parts | None:
    """One or zero; a size is never a negative number."""
    pairs = _pairs(sizes, node)
    return None if pairs is None else [_same_size(a, b) for a, b in pairs]


def _same_size(a: Size | None, b: Size | None) -> int | None:
    if a is None or b is None:
        return None
    if isinstance(a, int) == isinstance(b, int):
        return int(a == b) if isinstance(a, int) or a == b else None
    number = a if isinstance(a, int) else b
    return 0 if isinstance(number, int) and number < 0 else None


def _where(sizes: Sizes, node: ir.Node) -> Parts | None:
    condition, yes, no = (sizes.parts(value) for value in node.inputs)
    if condition is None or yes is None or no is None:
        return None
    length = max(len(condition), len(yes), len(no))
    if {len(condition), len(yes), len(no)} - {1, length}:
        return None
    condition, yes, no = (parts * length if len(parts) == 1 else parts for parts in (condition, yes, no))
    return [{1: a, 0: b}.get(c) if isinstance(c, int) else None for c, a, b in zip(condition, yes, no, strict=True)]


PARTS: dict[str, Callable[[Sizes, ir.Node], Parts | None]] = {
    "Shape": _shape,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Unsqueeze": _same,
    "Squeeze": _same,
    "Identity": _same,
    "Cast": _cast,
    "Reshape": _reshape,
    "ConstantOfShape": _constant_of_shape,
    "Mul": _product,
    "Equal": _equal,
    "Where": _where,
}
"""How the parts of an operator's output follow from its inputs'."""
