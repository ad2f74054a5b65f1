"""Where the sizes of values come from: each axis followed back, through the operators, to an input or to a number.

What value infos claim is not read, only what operators do to the inputs of the graph and to constants. ONNX's own shape
inference gives up at a size that was read at run time and put together again, which is what exporters of transformers write.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

Origin = tuple[ir.Value, int]
"""An input of the graph and an axis of it."""
Size = Origin | int
_MAX_DEPTH = 200
"""A long chain of layers is told from its start on, since what was found is kept; this bounds one step of it."""
_SAME_SHAPE = frozenset(
    {
        "BatchNormalization", "Cast", "Clip", "Dropout", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity",
        "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "Mish", "Neg", "Not", "Reciprocal",
        "Relu", "Selu", "Sigmoid", "Softmax", "Softplus", "Sqrt", "Tanh",
    }
)  # fmt: skip
_BROADCASTING = frozenset({"Add", "And", "Div", "Equal", "Max", "Min", "Mul", "Or", "Pow", "Sub", "Sum", "Where"})
_WINDOWED = frozenset({"AveragePool", "Conv", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})


def whole_numbers(value: ir.Value | None) -> list[int] | None:
    """Return the numbers that a constant holds; None where it is none."""
    if value is None or value.const_value is None:
        return None
    return [int(number) for number in np.atleast_1d(value.const_value.numpy())]


class Sizes:
    """The sizes of the values of one graph, and the one node for each size of an input that reads it."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.nodes: dict[tuple[int, int], ir.Node] = {}
        self._first: dict[str, Origin] = {}
        for value in graph.inputs:
            for axis, dim in enumerate(value.shape or ()):
                if isinstance(dim, ir.SymbolicDim) and dim.value:
                    self._first.setdefault(dim.value, (value, axis))
        self._sizes: dict[tuple[ir.Value, int], Size | None] = {}
        self._ranks: dict[ir.Value, int | None] = {}
        for node in graph:  # in order, so that no question goes further back than one node
            for value in node.outputs:
                for axis in range(self.rank(value) or 0):
                    self.size(value, axis)

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

    def origin(self, value: ir.Value | None, axis: int) -> Origin | None:
        """Return the input and axis that give ``value`` its size along ``axis``; None where that cannot be told."""
        size = self.size(value, axis)
        return size if isinstance(size, tuple) else None

    def size(self, value: ir.Value | None, axis: int, depth: int = 0) -> Size | None:
        """Return the size of ``value`` along ``axis``: of an input, or a number; None where that cannot be told."""
        if value is None or axis < 0 or depth > _MAX_DEPTH:
            return None
        if value.const_value is not None and not value.is_graph_input():
            shape = value.const_value.shape
            return int(shape[axis]) if axis < len(shape) else None  # type: ignore[arg-type]
        if (value, axis) not in self._sizes:
            self._sizes[value, axis] = self._trace(value, axis, depth + 1)
        return self._sizes[value, axis]

    def rank(self, value: ir.Value | None, depth: int = 0) -> int | None:
        """Return the number of axes; None where it cannot be told."""
        if value is None or depth > _MAX_DEPTH:
            return None
        if value.const_value is not None:
            return len(value.const_value.shape)
        if value not in self._ranks:
            self._ranks[value] = self._trace_rank(value, depth + 1)
        return self._ranks[value]

    def parts(self, value: ir.Value | None) -> list[Size] | None:
        """Return what a shape ``int64 [rank]`` is put together from."""
        if value is None:
            return None
        if (numbers := whole_numbers(value)) is not None:
            return list(numbers)
        node = value.producer()
        if node is None or node.domain != "":
            return None
        if node in self.nodes.values():
            source = node.inputs[0]
            assert source is not None
            return [(source, node.attributes["start"].as_int())]
        if node.op_type == "Concat":
            inner = [self.parts(item) for item in node.inputs]
            return None if None in inner else [part for parts in inner for part in parts or ()]
        read = self.size_read(node)
        return None if read is None else [read]

    def size_read(self, node: ir.Node) -> Size | None:
        """Return the size that ``node`` gives as ``int64 [1]``: Shape of one axis, or Unsqueeze of one number of a Shape."""
        if node.op_type == "Shape" and "end" in node.attributes:
            start = node.attributes["start"].as_int() if "start" in node.attributes else 0
            return self.size(node.inputs[0], start) if node.attributes["end"].as_int() == start + 1 else None
        if node.op_type != "Unsqueeze" or whole_numbers(node.inputs[1]) != [0]:
            return None
        gather = _producer(node.inputs[0])
        if gather is None or gather.op_type != "Gather" or "axis" in gather.attributes:
            return None
        shape, index = _producer(gather.inputs[0]), gather.inputs[1]
        if shape is None or shape.op_type != "Shape" or shape.attributes or index is None or index.const_value is None:
            return None
        position = whole_numbers(index)
        return self.size(shape.inputs[0], position[0]) if position and len(index.const_value.shape) == 0 else None

    def _trace(self, value: ir.Value, axis: int, depth: int) -> Size | None:
        if value.is_graph_input():
            dims = value.shape or ()
            dim = dims[axis] if axis < len(dims) else None
            if isinstance(dim, int):
                return dim
            return self._first.get(dim.value) if isinstance(dim, ir.SymbolicDim) and dim.value else None
        node = value.producer()
        if node is None or node.domain != "" or value.index() != 0:
            return None
        if node.op_type in _SAME_SHAPE:
            return self.size(node.inputs[0], axis, depth)
        if node.op_type in _BROADCASTING:
            return self._broadcast(node, axis, depth)
        handler = _HANDLERS.get(node.op_type)
        return handler(self, node, axis, depth) if handler else None

    def _broadcast(self, node: ir.Node, axis: int, depth: int) -> Size | None:
        """Operands are aligned at their last axes; those that are not of size 1 must agree."""
        ranks = [self.rank(value, depth) for value in node.inputs]
        if None in ranks:
            return None
        longest = max(rank or 0 for rank in ranks)
        found: set[Size | None] = set()
        for value, rank in zip(node.inputs, ranks, strict=True):
            own = axis - longest + (rank or 0)
            size = 1 if own < 0 else self.size(value, own, depth)
            found.add(_table_rows(self, value, own) if size is None else size)
        found.discard(1)
        return found.pop() if len(found) == 1 else (1 if not found else None)

    def _trace_rank(self, value: ir.Value, depth: int) -> int | None:
        if value.is_graph_input():
            return None if value.shape is None else len(value.shape)
        node = value.producer()
        claimed = None if value.shape is None else len(value.shape)
        if node is None or node.domain != "":
            return claimed
        source = node.inputs[0] if node.inputs else None
        if node.op_type in _SAME_SHAPE or node.op_type in _WINDOWED or node.op_type in ("Transpose", "Slice", "Concat"):
            return self.rank(source, depth) or claimed
        if node.op_type == "Reshape":
            parts = self.parts(node.inputs[1])
            return claimed if parts is None else len(parts)
        if node.op_type in _BROADCASTING or node.op_type == "MatMul":
            ranks = [self.rank(operand, depth) for operand in node.inputs]
            return claimed if None in ranks else max(rank or 0 for rank in ranks)
        if node.op_type == "Gather":
            table, index = self.rank(source, depth), self.rank(node.inputs[1], depth)
            return claimed if table is None or index is None else table + index - 1
        if node.op_type == "Unsqueeze":
            inner, axes = self.rank(source, depth), whole_numbers(node.inputs[1])
            return claimed if inner is None or axes is None else inner + len(axes)
        return claimed


def _producer(value: ir.Value | None) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.domain == "" else None


def _transpose(sizes: Sizes, node: ir.Node, axis: int, depth: int) -> Size | None:
    if "perm" not in node.attributes:
        return None
    perm = node.attributes["perm"].as_ints()
    return sizes.size(node.inputs[0], perm[axis], depth) if axis < len(perm) else None


def _reshape(sizes: Sizes, node: ir.Node, axis: int, depth: int) -> Size | None:
    """A size that is written is taken, a copied 0 is the data's, and -1 stands for what is left of the data's sizes."""
    parts = sizes.parts(node.inputs[1])
    if parts is None or axis >= len(parts):
        return None
    if parts[axis] == 0:
        return None if "allowzero" in node.attributes else sizes.size(node.inputs[0], axis, depth)
    if parts[axis] == -1 and 0 not in parts:
        rank = sizes.rank(node.inputs[0], depth)
        data = [sizes.size(node.inputs[0], own, depth) for own in range(rank or 0)]
        return None if not data or None in data else _quotient([size for size in data if size is not None], parts)
    return parts[axis]


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
    index_rank = sizes.rank(node.inputs[1], depth)
    if over < 0 or index_rank is None:
        return None
    if axis < over:
        return sizes.size(node.inputs[0], axis, depth)
    if axis >= over + index_rank:
        return sizes.size(node.inputs[0], axis - index_rank + 1, depth)
    size = sizes.size(node.inputs[1], axis - over, depth)
    return _table_rows(sizes, node.inputs[1], axis - over) if size is None else size


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
    axes = whole_numbers(node.inputs[1])
    if axes is None or min(axes) < 0:
        return None
    return 1 if axis in axes else sizes.size(node.inputs[0], axis - sum(new < axis for new in axes), depth)


def _concat(sizes: Sizes, node: ir.Node, axis: int, depth: int) -> Size | None:
    joined = node.attributes["axis"].as_int()
    return None if joined < 0 or axis == joined else sizes.size(node.inputs[0], axis, depth)


def _slice(sizes: Sizes, node: ir.Node, axis: int, depth: int) -> Size | None:
    axes = whole_numbers(node.inputs[3]) if len(node.inputs) > 3 else None
    return None if axes is None or min(axes) < 0 or axis in axes else sizes.size(node.inputs[0], axis, depth)


def _windowed(sizes: Sizes, node: ir.Node, axis: int, depth: int) -> Size | None:
    """Rows stay, a convolution has as many channels as its weight has rows; what a window leaves is not followed."""
    if axis == 0:
        return sizes.size(node.inputs[0], 0, depth)
    if axis > 1:
        return 1 if node.op_type.startswith("Global") else None
    return sizes.size(node.inputs[1], 0, depth) if node.op_type == "Conv" else sizes.size(node.inputs[0], 1, depth)


def _gemm(sizes: Sizes, node: ir.Node, axis: int, depth: int) -> Size | None:
    transposed = "transA" if axis == 0 else "transB"
    flipped = transposed in node.attributes and node.attributes[transposed].as_int() != 0
    return sizes.size(node.inputs[axis], 1 - axis if flipped else axis, depth) if axis < 2 else None


_Handler = Callable[[Sizes, ir.Node, int, int], Size | None]
_HANDLERS: dict[str, _Handler] = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Gather": _gather,
    "MatMul": _matmul,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Slice": _slice,
    "Gemm": _gemm,
    **dict.fromkeys(_WINDOWED, _windowed),
}


def _table_rows(sizes: Sizes, value: ir.Value | None, axis: int) -> Size | None:
    """Return the size of the first rows of a table, such as positions: as many as asked for, if it has so many.

    Where it has not, what adds them to as many rows fails, so there the size is the asked one whenever it runs.
    """
    node = _producer(value)
    if node is not None and node.op_type == "Gather" and "axis" not in node.attributes:
        return _table_rows(sizes, node.inputs[1], axis)
    if node is None or node.op_type != "Slice" or node.inputs[0] is None or len(node.inputs) < 4:
        return None
    table = node.inputs[0].const_value
    steps = whole_numbers(node.inputs[4]) if len(node.inputs) > 4 else [1]
    axes = whole_numbers(node.inputs[3])
    if table is None or axis >= len(table.shape) or axes != [axis] or steps != [1] or whole_numbers(node.inputs[1]) != [0]:
        return None
    end = sizes.parts(node.inputs[2])
    return end[0] if end else None
