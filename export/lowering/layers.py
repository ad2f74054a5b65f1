"""The layers of a float graph that a lowering quantises: each a node with weights, with what is computed on its way out.

Left in float, a layer goes back as a whole: the activation that is folded into a convolution has no range of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from monograph.errors import ExportError
from monograph.export.fusion.macs import macs_by_node

_WITH_OPERANDS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "Gather": 0}
"""Operators with weights, and which input holds them."""
_FOLLOWING = frozenset({
    "Relu", "Clip", "LeakyRelu", "Sigmoid", "MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Transpose", "Squeeze",
    "Unsqueeze", "Flatten", "Slice", "Split", "Pad", "Resize", "DepthToSpace",
})  # fmt: skip
"""Operators that are quantised because what they take is."""
_COMPUTING = frozenset({
    *_WITH_OPERANDS, "Add", "Mul", "Softmax", "LayerNormalization", "InstanceNormalization", "BatchNormalization", "Concat",
    "Where", "Sigmoid", "GlobalAveragePool", "EmbedLayerNormalization",
})  # fmt: skip
"""Operators that a lowering of whole graphs quantises, with weights or without."""
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


@dataclass(frozen=True)
class Layer:
    """What is quantised or left in float as one."""

    name: str
    """Of its first node."""
    operator: str
    nodes: tuple[str, ...]
    """Names of all its nodes."""
    outputs: tuple[str, ...]
    """First outputs of all its nodes; the last of them leaves it."""
    macs: int | None
    """Multiply-accumulates of a row; None where they cannot be counted."""
    weight_bytes: int
    """In float."""


def find_layers(prepared: Path, quantised: Path, operators: Sequence[str], name: str) -> tuple[Layer, ...]:
    """Return the layers of the float graph ``prepared`` that were quantised in ``quantised``, in their order.

    Args:
        prepared: whose nodes all have names of their own.
        quantised: what all of it became.
        operators: whose weights are quantised; any that can be, with weights or without, where there are none.
        name: what to call the model.

    Raises:
        ExportError: there is no such layer.
    """
    graph = onnx.load(prepared).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    changed = _changed_nodes(graph, onnx.load(quantised, load_external_data=False).graph)
    owners = _owners(graph, weights, changed, operators)
    members: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.name in owners:
            members.setdefault(owners[node.name], []).append(node)
    if not members:
        raise ExportError(f"{name} has no layer that can be quantised: leave it in float")
    macs = macs_by_node(prepared) or {}
    return tuple(_layer(nodes, weights, macs) for nodes in members.values())


def _changed_nodes(graph: onnx.GraphProto, quantised: onnx.GraphProto) -> set[str]:
    """Return the nodes that quantising replaced, or whose inputs it replaced."""
    same = {(node.name, node.op_type, tuple(node.input)) for node in quantised.node}
    return {node.name for node in graph.node if (node.name, node.op_type, tuple(node.input)) not in same}


def _owners(
    graph: onnx.GraphProto, weights: Mapping[str, onnx.TensorProto], changed: set[str], operators: Sequence[str]
) -> dict[str, str]:
    """Return the layer of each node that belongs to one, by the name of the layer's first node."""
    uses: dict[str, int] = {}
    for node in graph.node:
        for value in node.input:
            uses[value] = uses.get(value, 0) + 1
    made_by: dict[str, str] = {}
    owners: dict[str, str] = {}
    for node in graph.node:
        if _begins_layer(node, weights, operators) and node.name in changed:
            owners[node.name] = node.name
        elif node.op_type in _FOLLOWING and node.input[0] in made_by and uses[node.input[0]] == 1:
            owners[node.name] = made_by[node.input[0]]
        if node.name in owners:
            made_by |= dict.fromkeys(node.output, owners[node.name])
    return owners


def _begins_layer(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto], operators: Sequence[str]) -> bool:
    if not operators:
        return node.op_type in _COMPUTING
    return node.op_type in operators and _weights_of(node, weights) is not None


def _weights_of(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> onnx.TensorProto | None:
    place = _WITH_OPERANDS.get(node.op_type)
    tensor = None if place is None or place >= len(node.input) else weights.get(node.input[place])
    return tensor if tensor is not None and tensor.data_type in _FLOATS else None


def _layer(nodes: list[onnx.NodeProto], weights: Mapping[str, onnx.TensorProto], macs: Mapping[str, int | None]) -> Layer:
    counts = [macs.get(node.name) for node in nodes if node.op_type in _WITH_OPERANDS]
    tensors = [tensor for node in nodes if (tensor := _weights_of(node, weights)) is not None]
    return Layer(
        name=nodes[0].name,
        operator=" + ".join(dict.fromkeys(node.op_type for node in nodes)),
        nodes=tuple(node.name for node in nodes),
        outputs=tuple(node.output[0] for node in nodes),
        macs=None if None in counts else sum(count or 0 for count in counts),
        weight_bytes=sum(4 * math.prod(tensor.dims) for tensor in tensors),
    )
