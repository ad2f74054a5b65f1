"""Linear heads on one trunk under a weighted sum are one linear layer: Σ αᵢ(x·Wᵢ + bᵢ) = x·(Σ αᵢWᵢ) + Σ αᵢbᵢ.

Shape letters: ``h`` features of the trunk, ``c`` classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from monograph.export.fusion.sharing.provenance import MEMBERS_KEY, members_of

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Head:
    """What one operand of the sum computes: ``x·matrix + bias``, in float64; and the nodes that compute it."""

    x: ir.Value
    matrix: Array
    """``[h, c]``"""
    bias: Array
    """``[c]``, or one number."""
    nodes: tuple[ir.Node, ...]


def fold_linear_heads(model: ir.Model) -> int:
    """Replace each Sum of float32 linear heads that read one value by one linear layer; return how many heads went."""
    return sum(_fold(node, model.graph) for node in list(model.graph) if node.op_type == "Sum" and node.domain == "")


def _fold(total: ir.Node, graph: ir.Graph) -> int:
    trunks = {id(_trunk(value)) for value in total.inputs}
    if len(trunks) > 1 or _trunk(total.inputs[0]) is None:
        return 0  # told before any weight is read
    heads = [head for value in total.inputs if value is not None and (head := _read_head(value)) is not None]
    if len(heads) < len(total.inputs) or len(heads) < 2:
        return 0
    x = heads[0].x
    classes = heads[0].matrix.shape[1]
    if any(head.x is not x or head.matrix.shape != heads[0].matrix.shape for head in heads):
        return 0
    nodes = {node: None for head in heads for node in head.nodes}
    if any(user not in nodes and user is not total for node in nodes for user in node.outputs[0].consumers()):
        return 0  # something else reads a head's output, so the head has to run anyway
    if any(node.outputs[0].is_graph_output() for node in nodes):
        return 0
    matrix = np.sum([head.matrix for head in heads], axis=0)
    bias = np.sum([np.broadcast_to(head.bias, classes) for head in heads], axis=0)
    _emit_layer(total, graph, x, matrix.astype(np.float32), bias.astype(np.float32), list(nodes))
    return len(heads)


def _emit_layer(total: ir.Node, graph: ir.Graph, x: ir.Value, matrix: Array, bias: Array, heads: list[ir.Node]) -> None:
    weights = [_new_weight(graph, name, array) for name, array in (("matrix", matrix), ("bias", bias))]
    out = total.outputs[0]
    members = ",".join(dict.fromkeys(name for node in heads for name in members_of(node) if name != "fusion"))
    if any(node.op_type == "Gemm" for node in heads):  # so the trunk gives rows, not sequences of them
        nodes = [ir.node("Gemm", [x, *weights], name=f"{total.name}/heads")]
    else:
        product = ir.node("MatMul", [x, weights[0]], name=f"{total.name}/heads")
        product.outputs[0].name = f"{out.name}/heads_product"
        nodes = [product, ir.node("Add", [product.outputs[0], weights[1]], name=f"{total.name}/heads_bias")]
    for node in nodes:
        node.metadata_props[MEMBERS_KEY] = members
    new = nodes[-1].outputs[0]
    new.type, new.shape = out.type, out.shape
    graph.insert_before(total, nodes)
    name = out.name
    out.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(total, safe=True)
    new.name = name


def _new_weight(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    number = 0
    while f"fusion/heads_{number}/{name}" in graph.initializers:
        number += 1
    full = f"fusion/heads_{number}/{name}"
    value = ir.Value(name=full, const_value=ir.tensor(array, name=full), type=ir.TensorType(ir.DataType.FLOAT))
    value.shape = ir.Shape(array.shape)
    graph.register_initializer(value)
    return value


def _trunk(value: ir.Value | None) -> ir.Value | None:
    """Return what the linear layer behind ``value`` reads, whatever scales or shifts its output; None where there is none."""
    node = None if value is None else value.producer()
    if node is None or node.domain != "":
        return None
    if node.op_type in ("Gemm", "MatMul"):
        return node.inputs[0]
    sources = [source for source in node.inputs if source is not None and source.const_value is None]
    return _trunk(sources[0]) if node.op_type in ("Add", "Mul", "Div") and len(sources) == 1 else None


def _read_head(value: ir.Value) -> _Head | None:
    """Follow ``value`` back through scalings and class orders to a linear layer; None where something else is met."""
    node = value.producer()
    if node is None or node.domain != "" or value.is_graph_output():
        return None
    if node.op_type in ("Gemm", "MatMul"):
        return _read_layer(node)
    operands = [(source, _constant(source)) for source in node.inputs if source is not None]
    if len(operands) != 2:
        return None
    if operands[0][1] is not None and node.op_type in ("Add", "Mul"):
        operands.reverse()
    (source, array), (_, constant) = operands
    if source is None or array is not None or constant is None:
        return None
    head = _read_head(source)
    return None if head is None else _apply(node, head, constant)


def _apply(node: ir.Node, head: _Head, constant: Array) -> _Head | None:
    """Return ``head`` after one more node, where that keeps it linear."""
    nodes = (*head.nodes, node)
    classes = head.matrix.shape[1]
    if node.op_type == "Add" and _is_row(constant, classes):
        return replace(head, bias=head.bias + constant.reshape(-1), nodes=nodes)
    if node.op_type == "Mul" and constant.ndim == 0:
        return replace(head, matrix=head.matrix * constant, bias=head.bias * constant, nodes=nodes)
    if node.op_type == "Div" and constant.ndim == 0 and constant != 0:
        return replace(head, matrix=head.matrix / constant, bias=head.bias / constant, nodes=nodes)
    return None


def _read_layer(node: ir.Node) -> _Head | None:
    x, weight = node.inputs[0], node.inputs[1]
    matrix = _constant(weight)
    if x is None or matrix is None or matrix.ndim != 2 or _constant(x) is not None:
        return None
    if node.op_type == "MatMul":
        return _Head(x, matrix, np.zeros(1), (node,))
    alpha, beta = (_setting(node, name, 1.0) for name in ("alpha", "beta"))
    if _setting(node, "transA", 0):
        return None
    matrix = matrix.T if _setting(node, "transB", 0) else matrix
    bias = np.zeros(1)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        added = _constant(node.inputs[2])
        if added is None or not _is_row(added, matrix.shape[1]):
            return None
        bias = added.reshape(-1)
    return _Head(x, alpha * matrix, beta * bias, (node,))


def _setting(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)


def _is_row(array: Array, classes: int) -> bool:
    return array.ndim <= 2 and array.size in (1, classes) and array.shape[-1:] in ((), (1,), (classes,))


def _constant(value: ir.Value | None) -> Array | None:
    """Return a float32 weight in float64; None for everything else."""
    if value is None or value.const_value is None or not value.is_initializer() or value.is_graph_input():
        return None
    tensor = value.const_value
    return tensor.numpy().astype(np.float64) if tensor.dtype == ir.DataType.FLOAT else None
