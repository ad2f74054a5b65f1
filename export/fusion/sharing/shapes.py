"""Shapes written one way, however an exporter writes them: as constants where they can be, else as sizes of inputs.

One exporter reads the batch size of each hidden state anew (Shape, Gather, Unsqueeze, Concat), another once of an input
(Shape with start and end), a third lets Reshape work it out (-1).
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from monograph.export.fusion.sharing.shape_values import operand, whole_numbers
from monograph.export.fusion.sharing.size_rules import reduced_axes
from monograph.export.fusion.sharing.sizes import Size, Sizes

_MAKE_SHAPES = frozenset({"Concat", "Where", "Slice", "Shape", "Unsqueeze", "Gather"})


def unify_shapes(model: ir.Model) -> None:
    """Write equal shapes alike.

    - The shape of a Reshape becomes a constant wherever each size is a number, is copied from the data (0) or is the
      only one left (-1); one that keeps the first axis and joins all others becomes Flatten; one that changes nothing goes.
    - Of an Expand, sizes that the data has are written 1.
    - Any other shape that is put together while the graph runs is put together once, of sizes of inputs.
    - A mean over the two axes of a picture becomes GlobalAveragePool; two Unsqueezes in a row become one.
    """
    sizes = Sizes(model.graph)
    for node in list(model.graph):
        if node.domain != "" or any(value.is_graph_output() for value in node.outputs):
            continue
        if node.op_type == "Reshape":
            _unify_reshape(node, sizes)
        elif node.op_type == "Expand":
            _unify_expand(node, sizes)
        elif node.op_type == "ReduceMean":
            _unify_mean(node, sizes)
        elif node.op_type in _MAKE_SHAPES and sizes.rank(node.outputs[0]) == 1 and (parts := sizes.known_parts(node.outputs[0])):
            node.outputs[0].replace_all_uses_with(sizes.vector(parts))
        elif node.op_type == "Unsqueeze":
            _join_unsqueezes(node, model.graph)


def _unify_reshape(node: ir.Node, sizes: Sizes) -> None:
    data, out = node.inputs[0], node.outputs[0]
    rank, new_rank = sizes.rank(data), sizes.rank(out)
    if data is None or rank is None or new_rank is None:
        return
    old = [sizes.size(data, axis) for axis in range(rank)]
    new = [sizes.size(out, axis) for axis in range(new_rank)]
    if None in new or any(isinstance(size, int) and size <= 0 for size in new):
        return
    known = [size for size in new if size is not None]
    if known == old:
        out.replace_all_uses_with(data)
    elif rank > 2 and new_rank == 2 and old[0] == new[0] and _joined(old[1:]) == new[1]:
        _replace(node, ir.node("Flatten", [data]))
    elif (shape := _constant_shape(old, known)) is not None:
        node.attributes.pop("allowzero", None)
        node.replace_input_with(1, sizes.vector(shape))


def _joined(old: list[Size | None]) -> int | None:
    numbers = [size for size in old if isinstance(size, int)]
    return math.prod(numbers) if len(numbers) == len(old) else None


def _constant_shape(old: list[Size | None], new: list[Size]) -> list[Size] | None:
    """Return the shape as constants; None where a size is neither a number, nor copied, nor the only one left."""
    free = [axis for axis, size in enumerate(new) if not isinstance(size, int)]
    if len(free) <= 1:
        return [-1 if axis in free else size for axis, size in enumerate(new)]
    copied = [axis for axis in free if axis < len(old) and old[axis] == new[axis]]
    if len(free) - len(copied) > 1:
        return None
    return [size if isinstance(size, int) else 0 if axis in copied else -1 for axis, size in enumerate(new)]


def _unify_expand(node: ir.Node, sizes: Sizes) -> None:
    parts, rank = sizes.known_parts(operand(node, 1)), sizes.rank(node.inputs[0])
    if parts is None or rank is None or rank > len(parts):
        return
    old = [1] * (len(parts) - rank) + [sizes.size(node.inputs[0], axis) for axis in range(rank)]
    node.replace_input_with(1, sizes.vector([1 if size == part else part for size, part in zip(old, parts, strict=True)]))


def _unify_mean(node: ir.Node, sizes: Sizes) -> None:
    axes, rank = reduced_axes(node), sizes.rank(node.inputs[0])
    if (
        axes is not None
        and rank == 4
        and sorted(axis % 4 for axis in axes) == [2, 3]
        and node.attributes.get_int("keepdims", 1) != 0
    ):
        _replace(node, ir.node("GlobalAveragePool", [node.inputs[0]]))


def _replace(node: ir.Node, new: ir.Node) -> None:
    """Put ``new`` in the place of ``node``: under its name, with what is known of its output."""
    assert node.graph is not None
    old, out = node.outputs[0], new.outputs[0]
    new.name = node.name
    out.name, out.type, out.shape = old.name, old.type, old.shape
    old.replace_all_uses_with(out)
    node.graph.insert_before(node, new)
    node.graph.remove(node, safe=True)


def _join_unsqueezes(node: ir.Node, graph: ir.Graph) -> None:
    """Let Unsqueeze(Unsqueeze(x, [a]), [b]) with a < b be Unsqueeze(x, [a, b])."""
    source = node.inputs[0]
    inner = None if source is None else source.producer()
    if inner is None or inner.op_type != "Unsqueeze":
        return
    first, second = whole_numbers(operand(inner, 1)), whole_numbers(operand(node, 1))
    if first is None or second is None or min(first + second) < 0 or max(first) >= min(second):
        return
    axes = np.array(sorted([*first, *second]), np.int64)
    name = f"{node.name}/axes"
    if name in graph.initializers:
        return
    value = ir.Value(name=name, const_value=ir.tensor(axes, name=name), type=ir.TensorType(ir.DataType.INT64))
    value.shape = ir.Shape(axes.shape)
    graph.register_initializer(value)
    node.replace_input_with(0, inner.inputs[0])
    node.replace_input_with(1, value)
