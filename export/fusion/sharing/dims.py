"""Sizes read at run time, written one way, however an exporter writes them: as the size of an input of the graph.

One exporter reads the batch size of each hidden state anew (Shape, Gather, Unsqueeze, Concat), another once of an input
(Shape with start and end). What a size is can be told by following the axis back to an input.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

Origin = tuple[ir.Value, int]
"""An input of the graph and an axis of it."""
_MAX_DEPTH = 40
_SAME_SHAPE = frozenset({"LayerNormalization", "Softmax", "Relu", "Gelu", "Tanh", "Erf", "Sigmoid", "Cast", "Sqrt"})


class Sizes:
    """Where the sizes of values come from, and the one node for each that reads it."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.first: dict[str, Origin] = {}
        for value in graph.inputs:
            for axis, dim in enumerate(value.shape or ()):
                if isinstance(dim, ir.SymbolicDim) and dim.value:
                    self.first.setdefault(dim.value, (value, axis))
        self.nodes: dict[tuple[int, int], ir.Node] = {}
        self.known: dict[tuple[int, int], Origin | None] = {}

    def read(self, origin: Origin) -> ir.Value:
        """Return the value ``int64 [1]`` that holds the size, read by a node at the head of the graph."""
        value, axis = origin
        node = self.nodes.get((id(value), axis))
        if node is None:
            node = ir.node("Shape", [value], {"start": axis, "end": axis + 1}, name=f"fusion/size/{value.name}/{axis}")
            out = node.outputs[0]
            out.name, out.shape, out.type = f"{node.name}_output", ir.Shape([1]), ir.TensorType(ir.DataType.INT64)
            self.nodes[id(value), axis] = node
            self.graph.insert_before(self.graph[0], node)
        return node.outputs[0]

    def origin(self, value: ir.Value | None, axis: int, depth: int = 0) -> Origin | None:
        """Return the input and axis that give ``value`` its size along ``axis``; None where that cannot be told."""
        if value is None or axis < 0 or depth > _MAX_DEPTH:
            return None
        key = (id(value), axis)
        if key not in self.known:
            self.known[key] = self._trace(value, axis, depth + 1)
        return self.known[key]

    def _trace(self, value: ir.Value, axis: int, depth: int) -> Origin | None:
        if value.is_graph_input():
            dims = value.shape or ()
            dim = dims[axis] if axis < len(dims) else None
            return self.first.get(dim.value) if isinstance(dim, ir.SymbolicDim) and dim.value else None
        node = value.producer()
        if node is None or node.domain != "":
            return None
        source = node.inputs[0] if node.inputs else None
        if node.op_type in _SAME_SHAPE:
            return self.origin(source, axis, depth)
        if node.op_type == "Transpose" and "perm" in node.attributes:
            return self.origin(source, node.attributes["perm"].as_ints()[axis], depth)
        if node.op_type == "Gather" and "axis" not in node.attributes:
            return self.origin(node.inputs[1], axis, depth)
        if node.op_type == "MatMul":
            weight = node.inputs[1]
            plain = weight is not None and weight.const_value is not None and len(weight.const_value.shape) == 2
            left = self.origin(source, axis, depth)  # of the last axis, which a weight replaces, no origin is known
            return left if plain or axis == 0 else None
        if node.op_type in ("Add", "Mul", "Sub", "Div"):
            return self._broadcast(node, axis, depth)
        if node.op_type == "Reshape":
            parts = self.parts(node.inputs[1])
            part = parts[axis] if parts is not None and axis < len(parts) else None
            return part if isinstance(part, tuple) else None
        return None

    def _broadcast(self, node: ir.Node, axis: int, depth: int) -> Origin | None:
        """The operands that are no weights must agree; a weight of one axis touches the last axis only."""
        found: list[Origin | int | None] = []
        for value in node.inputs:
            constant = None if value is None else value.const_value
            if constant is None:
                found.append(self.origin(value, axis, depth) or self._bounded(value, axis))
            elif constant.size > 1 and len(constant.shape) > 1:
                return None
        sizes = [size for size in found if size != 1]
        first = sizes[0] if sizes else None
        return first if isinstance(first, tuple) and all(size == first for size in sizes) else None

    def _bounded(self, value: ir.Value | None, axis: int) -> Origin | int | None:
        """Return the size of the first rows of a table, such as positions: as many as asked for, if it has so many.

        Where it has not, what adds them to as many rows fails, so there the size is the asked one whenever it runs.
        """
        node = None if value is None else value.producer()
        if node is not None and node.op_type == "Gather" and "axis" not in node.attributes:
            return self._bounded(node.inputs[1], axis)
        if node is None or node.op_type != "Slice" or node.inputs[0] is None or len(node.inputs) < 4:
            return None
        table = node.inputs[0].const_value
        steps = _numbers(node.inputs[4]) if len(node.inputs) > 4 else [1]
        if table is None or axis >= len(table.shape) or _numbers(node.inputs[1]) != [0] or steps != [1]:
            return None
        axes = _numbers(node.inputs[3])
        if axes is None or min(axes) < 0:
            return None
        if axis not in axes:
            return 1 if table.shape[axis] == 1 else None
        end = self.parts(node.inputs[2])
        return end[0] if end and isinstance(end[0], tuple) else None

    def parts(self, value: ir.Value | None) -> list[Origin | int] | None:
        """Return what a shape ``int64 [rank]`` is put together from: sizes of inputs and numbers."""
        if value is None:
            return None
        if value.const_value is not None:
            return [int(size) for size in np.atleast_1d(value.const_value.numpy())]
        node = value.producer()
        if node is None or node.op_type != "Concat":
            return None if node is None or node not in self.nodes.values() else [self._origin_of(node)]
        parts: list[Origin | int] = []
        for item in node.inputs:
            inner = self.parts(item)
            if inner is None:
                return None
            parts += inner
        return parts

    def _origin_of(self, node: ir.Node) -> Origin:
        (source,) = node.inputs
        assert source is not None
        return source, node.attributes["start"].as_int()


def unify_sizes(model: ir.Model) -> None:
    """Read each size of an input once, whatever hidden state it was read of; two Unsqueezes in a row become one.

    ``Gather(Shape(v), k)`` under an Unsqueeze and ``Shape<start = k, end = k + 1>(v)`` become the size of an input. A
    Reshape loses ``allowzero`` where its shape holds no zero but sizes that its data has on the same axes.
    """
    sizes = Sizes(model.graph)
    for node in list(model.graph):
        if node.domain != "" or any(value.is_graph_output() for value in node.outputs):
            continue
        if (origin := _size_read(node, sizes)) is not None:
            node.outputs[0].replace_all_uses_with(sizes.read(origin))
        elif node.op_type == "Reshape" and "allowzero" in node.attributes and _zero_means_copy(node, sizes):
            node.attributes.pop("allowzero")
        elif node.op_type == "Unsqueeze":
            _join_unsqueezes(node, model.graph)


def _size_read(node: ir.Node, sizes: Sizes) -> Origin | None:
    """Return the size that ``node`` gives as ``int64 [1]``."""
    if node.op_type == "Shape" and "end" in node.attributes:
        start = node.attributes["start"].as_int() if "start" in node.attributes else 0
        return sizes.origin(node.inputs[0], start) if node.attributes["end"].as_int() == start + 1 else None
    if node.op_type != "Unsqueeze" or _numbers(node.inputs[1]) != [0]:
        return None
    source = node.inputs[0]
    gather = None if source is None else source.producer()
    if gather is None or gather.op_type != "Gather" or "axis" in gather.attributes:
        return None
    table, index = gather.inputs
    shape = None if table is None else table.producer()
    if shape is None or shape.op_type != "Shape" or shape.attributes or index is None:
        return None
    position = _numbers(index)
    scalar = index.const_value is not None and len(index.const_value.shape) == 0
    return sizes.origin(shape.inputs[0], position[0]) if position and scalar else None


def _numbers(value: ir.Value | None) -> list[int] | None:
    if value is None or value.const_value is None:
        return None
    return [int(number) for number in np.atleast_1d(value.const_value.numpy())]


def _zero_means_copy(node: ir.Node, sizes: Sizes) -> bool:
    """True where a zero of the shape could only be the size that the data has on the same axis."""
    parts = sizes.parts(node.inputs[1])
    return parts is not None and all(
        sizes.origin(node.inputs[0], axis) == part if isinstance(part, tuple) else part != 0 for axis, part in enumerate(parts)
    )


def _join_unsqueezes(node: ir.Node, graph: ir.Graph) -> None:
    """Let Unsqueeze(Unsqueeze(x, [a]), [b]) with a < b be Unsqueeze(x, [a, b])."""
    source = node.inputs[0]
    inner = None if source is None else source.producer()
    if inner is None or inner.op_type != "Unsqueeze":
        return
    first, second = _numbers(inner.inputs[1]), _numbers(node.inputs[1])
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
