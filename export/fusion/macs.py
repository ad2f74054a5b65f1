"""Count a model's multiply-accumulates: what a row costs, known before anything runs.

Shape letters: ``b`` batch, ``s`` sequence, ``h`` hidden units, ``d`` directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from monograph.export.fusion.sharing import fold_small_constants, lift_constants, unify_shapes
from monograph.models.onnx_file import load_graph

SEQUENCE_LENGTH = 64
"""What free dimensions other than the batch are counted at."""
_UNCOUNTED = frozenset({"GroupQueryAttention", "Loop", "Scan"})
"""These cost much, and how much is not counted here."""


def count_macs(source: Path | ir.Model, *, sequence_length: int = SEQUENCE_LENGTH) -> int | None:
    """Return the multiply-accumulates of one row in convolutions, matrix products and recurrent layers.

    Other free dimensions than the batch are taken to be ``sequence_length``; of the branches of an If the dearer one
    counts. None where a shape cannot be inferred or the model has operators whose cost is not counted, such as Loop.
    """
    graph = _with_shapes(source, sequence_length)
    return None if graph is None else _graph_macs(graph)


def macs_by_node(source: Path | ir.Model, *, sequence_length: int = SEQUENCE_LENGTH) -> dict[str, int | None] | None:
    """Return the multiply-accumulates of one row by the name of the node, those inside of branches included.

    An If has no entry of its own. None for a node that cannot be counted, and instead of all where shapes cannot be inferred.
    """
    graph = _with_shapes(source, sequence_length)
    return None if graph is None else {node.name or "": _node_macs(node) for node in graph.all_nodes() if node.op_type != "If"}


def _with_shapes(source: Path | ir.Model, sequence_length: int) -> ir.Graph | None:
    """Return the graph of one row with all shapes that can be inferred."""
    model = load_graph(source) if isinstance(source, Path) else source.clone()
    InlinePass()(model)
    _fix_dimensions(model.graph, sequence_length)
    _cast_in_place_of_quantising(model.graph)
    lift_constants(model)
    unify_shapes(model)  # knows shapes that the folding below does not
    try:
        # With all sizes fixed, what is computed from them is constant: folding it is what tells every shape.
        fold_small_constants(model, infer_shapes=True)
    except RuntimeError:  # a node of which the folder's own evaluation fails
        return None
    return model.graph


def _fix_dimensions(graph: ir.Graph, sequence_length: int) -> None:
    """Give every input the shape of one row, and forget what was inferred for a free batch."""
    for value in graph.inputs:
        if value.shape is not None:
            free = [1 if axis == 0 else sequence_length for axis in range(len(value.shape))]
            value.shape = ir.Shape([dim if isinstance(dim, int) else free[axis] for axis, dim in enumerate(value.shape)])
    for node in graph.all_nodes():
        for output in node.outputs:
            output.shape = None


def _cast_in_place_of_quantising(graph: ir.Graph) -> None:
    """Replace QuantizeLinear and DequantizeLinear: those of ONNX Runtime's own domain tell no shape, a Cast of each does."""
    for node in list(graph.all_nodes()):
        if node.domain == "com.microsoft" and node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.graph is not None:
            to = ir.DataType.FLOAT if node.op_type == "DequantizeLinear" else ir.DataType.INT32
            cast = ir.node("Cast", [node.inputs[0]], {"to": to.value}, name=node.name)
            cast.outputs[0].name = node.outputs[0].name
            ir.convenience.replace_nodes_and_values(node.graph, node, [node], [cast], node.outputs, cast.outputs)


def _graph_macs(graph: ir.Graph) -> int | None:
    total = 0
    for node in graph:
        macs = _node_macs(node)
        if macs is None:
            return None
        total += macs
    return total


def _node_macs(node: ir.Node) -> int | None:
    if node.op_type in _UNCOUNTED:
        return None
    counter = _COUNTERS.get(node.op_type)
    return counter(node) if counter else 0


def _shape(value: ir.Value | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    if value.const_value is not None:
        return tuple(value.const_value.shape.numpy())
    return tuple(value.shape.numpy()) if value.shape is not None and value.shape.is_static() else None


def _convolution(weight_position: int) -> Callable[[ir.Node], int | None]:
    """A weight is ``[out channels, in channels of a group, kernel…]``: each output element takes all but the first."""

    def count(node: ir.Node) -> int | None:
        output, weight = _shape(node.outputs[0]), _shape(node.inputs[weight_position])
        return None if output is None or weight is None else math.prod(output) * math.prod(weight[1:])

    return count


def _transposed_convolution(node: ir.Node) -> int | None:
    data, weight = _shape(node.inputs[0]), _shape(node.inputs[1])
    return None if data is None or weight is None else math.prod(data) * math.prod(weight[1:])


def _product(node: ir.Node) -> int | None:
    output, factor = _shape(node.outputs[0]), _shape(node.inputs[0])
    if output is None or not factor:
        return None
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transA", 0) != 0
    return math.prod(output) * factor[-2 if transposed else -1]


def _recurrent(gate_count: int) -> Callable[[ir.Node], int | None]:
    """Each step multiplies the input and the hidden state by the weights of all gates, ``[d, gates·h, …]`` each."""

    def count(node: ir.Node) -> int | None:
        data, weight = _shape(node.inputs[0]), _shape(node.inputs[1])
        if data is None or weight is None:
            return None
        directions, hidden = weight[0], weight[1] // gate_count
        return data[0] * data[1] * directions * gate_count * hidden * (weight[2] + hidden)

    return count


def _einsum(node: ir.Node) -> int | None:
    """One multiply-accumulate for each combination of all indices, which is what a direct evaluation takes."""
    terms = node.attributes["equation"].as_string().replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, value in zip(terms, node.inputs, strict=True):
        shape = _shape(value)
        if shape is None or len(shape) != len(term):  # an ellipsis
            return None
        sizes |= dict(zip(term, shape, strict=True))
    return math.prod(sizes.values())


def _attention(node: ir.Node) -> int | None:
    """Queries with keys, and their weights with values; ONNX Runtime's own Attention projects its input first.

    Sources: https://onnx.ai/onnx/operators/onnx__Attention.html, and com.microsoft.Attention and MultiHeadAttention in
    https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
    """
    query, second = _shape(node.inputs[0]), _shape(node.inputs[1])
    if query is None or second is None:
        return None
    if node.domain == "com.microsoft" and node.op_type == "Attention":
        hidden = second[1] // 3
        return math.prod(query) * second[1] + 2 * query[0] * query[1] ** 2 * hidden if not _has(node, 4) else None
    if len(query) not in (3, 4) or len(second) not in (3, 4) or _has(node, 4 if node.domain == "" else 6):
        return None  # packed, or with keys of earlier calls
    output = _shape(node.outputs[0]) or query
    return (math.prod(query) + math.prod(output)) * second[-2]


def _has(node: ir.Node, position: int) -> bool:
    return position < len(node.inputs) and node.inputs[position] is not None


def _dearer_branch(node: ir.Node) -> int | None:
    counts = [_graph_macs(attribute.as_graph()) for attribute in node.attributes.values()]
    return None if None in counts else max(count or 0 for count in counts)


_COUNTERS: dict[str, Callable[[ir.Node], int | None]] = {
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed_convolution,
    **dict.fromkeys(("MatMul", "MatMulInteger", "QLinearMatMul", "Gemm"), _product),
    "RNN": _recurrent(1),
    "GRU": _recurrent(3),
    "LSTM": _recurrent(4),
    "Einsum": _einsum,
    **dict.fromkeys(("Attention", "MultiHeadAttention"), _attention),
    "If": _dearer_branch,
}
