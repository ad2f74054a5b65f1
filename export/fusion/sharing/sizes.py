"""Where the sizes of values come from: each axis followed back, through the operators, to an input or to a number.

What value infos claim is not read, only what operators do to the inputs of the graph and to constants. ONNX's own shape
inference gives up at a size that was read at run time and put together again, which is what exporters of transformers write.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from monograph.export.fusion.sharing.shape_values import PARTS, whole_numbers

Origin = tuple[ir.Value, int]
"""An input of the graph and an axis of it."""
Size = Origin | int
Parts = list[Size | None]
"""What a shape ``int64 [rank]`` is put together from; None for a number that is not known."""
_MAX_DEPTH = 200
"""A long chain of layers is told from its start on, since what was found is kept; this bounds one step of it."""
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


class Sizes:
    """The sizes of the values of one graph, and for each shape that is needed at run time the one value that holds it."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._vectors: dict[tuple[Size, ...], ir.Value] = {}
        self._parts: dict[ir.Value, Parts | None] = {}
        self._head: ir.Node | None = None
        self._taken = {value.name for node in graph.all_nodes() for value in node.outputs} | set(graph.initializers)
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

    def vector(self, parts: Sequence[Size]) -> ir.Value:
        """Return the value ``int64 [n]`` that holds ``parts``: a constant, or nodes at the head of the graph, made once."""
        key = tuple(parts)
        if key not in self._vectors:
            self._vectors[key] = self._emit_vector(key)
            self._parts[self._vectors[key]] = list(parts)
        return self._vectors[key]

    def _emit_vector(self, parts: tuple[Size, ...]) -> ir.Value:
        if all(isinstance(part, int) for part in parts):
            name = self._free_name("fusion/shape")
            tensor = ir.tensor(np.array(parts, np.int64), name=name)
            value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([len(parts)]))
            self.graph.register_initializer(value)
            return value
        if len(parts) == 1:
            source, axis = parts[0]  # type: ignore[misc]  # the one part is no number
            name = self._free_name(f"fusion/size/{source.name}/{axis}")
            node = ir.node("Shape", [source], {"start": axis, "end": axis + 1}, name=name)
        else:
            node = ir.node("Concat", [self.vector([part]) for part in parts], {"axis": 0}, name=self._free_name("fusion/shape"))
        out = node.outputs[0]
        out.name, out.shape, out.type = node.name, ir.Shape([len(parts)]), ir.TensorType(ir.DataType.INT64)
        if self._head is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(self._head, node)
        self._head = node
        return out

    def _free_name(self, stem: str) -> str:
        name, number = stem, 2
        while name in self._taken:
            name, number = f"{stem}_{number}", number + 1
        self._taken.add(name)
        return name

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

    def parts(self, value: ir.Value | None) -> Parts | None:
        """Return what an ``int64`` vector or number is put together from; None where not even its length is known."""
        if value is None:
            return None
        if (numbers := whole_numbers(value)) is not None:
            return list(numbers)
        if value not in self._parts:
            node = value.producer()
            handler = PARTS.get(node.op_type) if node is not None and node.domain == "" else None
            self._parts[value] = handler(self, node) if handler and node is not None else None
        return self._parts[value]

    def known_parts(self, value: ir.Value | None) -> list[Size] | None:
        """Return the parts where all of them are known."""
        parts = self.parts(value)
        return None if parts is None or None in parts else [part for part in parts if part is not None]

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
        if node.op_type == "Shape":
            return 1
        if node.op_type == "Expand":
            parts, inner = self.parts(node.inputs[1]), self.rank(source, depth)
            return claimed if parts is None or inner is None else max(len(parts), inner)
        if node.op_type == "Reshape":
            parts = self.parts(node.inputs[1])
            return claimed if parts is None else len(parts)
        if node.op_type in _BROADCASTING or node.op_type == "MatMul":
            ranks = [self.rank(operand, depth) for operand in node.inputs]
            return claimed if None in ranks else max(rank or 0 for rank in ranks)
        if node.op_type == "Gather":
            table, index = self.rank(source, depth), self.rank(node.inputs[1], depth)
            return claimed if table is None or index is None else table + index - 1
        if node.op_type in ("Flatten", "Gemm"):
            return 2
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
    parts = sizes.known_parts(node.inputs[1])
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


def _squeeze(sizes: Sizes, node: ir.Node, axis: int, depth: int) -> Size | None:
    axes = whole_numbers(node.inputs[1]) if len(node.inputs) > 1 else None
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
    parts, rank = sizes.parts(node.inputs[1]), sizes.rank(node.inputs[0], depth)
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
    return whole_numbers(node.inputs[1]) if len(node.inputs) > 1 else None


def _slice(sizes: Sizes, node: ir.Node, axis: int, depth: int) -> Size | None:
    axes = whole_numbers(node.inputs[3]) if len(node.inputs) > 3 else None
    return None if axes is None or min(axes) < 0 or axis in axes else sizes.size(node.inputs[0], axis, depth)


def _windowed(sizes: Sizes, node: ir.Node, axis: int, depth: int) -> Size | None:
    """Rows stay, a convolution has as many channels as its weight has rows, and windows are counted where sizes are numbers."""
    if axis == 0:
        return sizes.size(node.inputs[0], 0, depth)
    if axis == 1:
        return sizes.size(node.inputs[1], 0, depth) if node.op_type == "Conv" else sizes.size(node.inputs[0], 1, depth)
    if node.op_type.startswith("Global"):
        return 1
    size = sizes.size(node.inputs[0], axis, depth)
    return _window_count(sizes, node, axis - 2, size) if isinstance(size, int) else None


def _window_count(sizes: Sizes, node: ir.Node, position: int, size: int) -> int | None:
    """Return ``⌊(size + pads - dilation·(kernel - 1) - 1) / stride⌋ + 1``, as the operators of ONNX say."""
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or node.attributes.get_int("ceil_mode", 0) != 0:
        return None
    kernel: Size | None = _numbers(node, "kernel_shape", position)
    if kernel is None and node.op_type == "Conv":
        kernel = sizes.size(node.inputs[1], position + 2)
    if not isinstance(kernel, int):
        return None
    stride, dilation = (_numbers(node, name, position) or 1 for name in ("strides", "dilations"))
    pads = list(node.attributes["pads"].as_ints()) if "pads" in node.attributes else []
    padding = pads[position] + pads[position + len(pads) // 2] if pads else 0
    return (size + padding - dilation * (kernel - 1) - 1) // stride + 1


def _numbers(node: ir.Node, name: str, position: int) -> int | None:
    return int(node.attributes[name].as_ints()[position]) if name in node.attributes else None


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
    return end[0] if end and end[0] is not None else None
