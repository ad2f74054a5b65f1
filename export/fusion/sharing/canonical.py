"""One way to write what can be written in several: settings equal to their defaults, copies, the order of operands."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import onnx_ir as ir

_BIASED = ("Gemm", "Conv", "ConvTranspose")
_LARGEST_BIAS = 1 << 16
_WINDOWED = {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"}
_ONES = ("dilations", "strides")
_DEFAULTS: dict[str, dict[str, Hashable]] = {
    "Conv": {"group": 1, "auto_pad": "NOTSET"},
    "ConvTranspose": {"group": 1, "auto_pad": "NOTSET"},
    "MaxPool": {"auto_pad": "NOTSET", "ceil_mode": 0, "storage_order": 0},
    "AveragePool": {"auto_pad": "NOTSET", "ceil_mode": 0, "count_include_pad": 0},
    "LpPool": {"auto_pad": "NOTSET", "ceil_mode": 0, "p": 2},
    "Gemm": {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0},
    "Softmax": {"axis": -1},
    "LogSoftmax": {"axis": -1},
    "Gather": {"axis": 0},
    "Flatten": {"axis": 1},
    "Reshape": {"allowzero": 0},
    "Shape": {"start": 0},
    "LayerNormalization": {"axis": -1, "stash_type": 1},
    "Gelu": {"approximate": "none"},
    "Cast": {"saturate": 1},
    "CumSum": {"exclusive": 0, "reverse": 0},
    "BatchNormalization": {"training_mode": 0},
    "ReduceMean": {"keepdims": 1, "noop_with_empty_axes": 0},
    "ReduceSum": {"keepdims": 1, "noop_with_empty_axes": 0},
    "ReduceMax": {"keepdims": 1, "noop_with_empty_axes": 0},
    "ReduceMin": {"keepdims": 1, "noop_with_empty_axes": 0},
}
"""Defaults that have been the same since opset 13; the oldest of a fused graph is 15."""

COMMUTATIVE = frozenset({"Add", "Mul", "And", "Or", "Xor", "Equal", "BitwiseAnd", "BitwiseOr", "BitwiseXor"})
"""Of two operands, bit for bit equal in either order. Sum, Max and Min of more round, or choose, by order."""
_TWO_OPERANDS = frozenset({"Sum", "Max", "Min"})


def remove_copies(model: ir.Model) -> None:
    """Let users of an Identity read what it copies; one that gives an output of a graph stays."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in list(graph):
            source = node.inputs[0] if node.op_type == "Identity" and node.domain == "" else None
            if source is not None and not node.outputs[0].is_graph_output():
                if source.shape is None and source.const_value is None:
                    source.shape = node.outputs[0].shape
                source.type = source.type or node.outputs[0].type
                node.outputs[0].replace_all_uses_with(source)
                graph.remove(node, safe=True)


def remove_default_attributes(model: ir.Model) -> None:
    """Drop settings that say what holds without them."""
    for node in model.graph.all_nodes():
        if node.domain != "":
            continue
        for name, attribute in list(node.attributes.items()):
            if _is_default(node, name, attribute):
                node.attributes.pop(name)


def remove_zero_biases(model: ir.Model) -> None:
    """Drop the bias of a Gemm or Conv that adds nothing: one exporter writes it, another leaves it out."""
    for node in model.graph.all_nodes():
        if node.domain == "" and node.op_type in _BIASED and len(node.inputs) == 3 and _is_zero(node.inputs[2]):
            node.resize_inputs(2)


def _is_zero(value: ir.Value | None) -> bool:
    tensor = None if value is None or value.is_graph_input() else value.const_value
    return tensor is not None and 0 < tensor.size <= _LARGEST_BIAS and not np.any(tensor.numpy())


def _is_default(node: ir.Node, name: str, attribute: ir.Attr) -> bool:
    if attribute.is_ref():
        return False
    value = attribute.value
    if node.op_type in _WINDOWED:
        if name in _ONES:
            return all(size == 1 for size in attribute.as_ints())
        if name == "pads":
            # With auto_pad they are not allowed anyway; without it, zeros are what no pads means.
            return all(size == 0 for size in attribute.as_ints())
        if name == "kernel_shape" and node.op_type in ("Conv", "ConvTranspose"):
            return _kernel_shape(node) == tuple(attribute.as_ints())
    defaults = _DEFAULTS.get(node.op_type, {})
    return name in defaults and bool(value == defaults[name])


def _kernel_shape(node: ir.Node) -> tuple[int, ...] | None:
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return None
    return tuple(weight.const_value.shape.numpy())[2:]


def attribute_key(node: ir.Node) -> tuple[Hashable, ...] | None:
    """Return the attributes as something to compare; None where one holds a graph or refers to a function's."""
    parts: list[Hashable] = []
    for name, attribute in sorted(node.attributes.items()):
        if attribute.is_ref():
            return None
        value = attribute.value
        if attribute.type is ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            if tensor.dtype == ir.DataType.STRING:
                return None
            parts.append((name, tensor.dtype, tuple(tensor.shape.numpy()), tensor.tobytes()))
        elif attribute.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
            parts.append((name, attribute.type, tuple(value)))
        elif attribute.type in (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING):
            parts.append((name, attribute.type, value))
        else:
            return None
    return tuple(parts)


def is_commutative(node: ir.Node) -> bool:
    """True where the operands may be put in any order without a bit of the result changing."""
    return node.op_type in COMMUTATIVE or (node.op_type in _TWO_OPERANDS and len(node.inputs) == 2)
