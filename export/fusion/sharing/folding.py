"""What one exporter has folded and another left to run time, folded for both."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter import RewriteRuleSet
from onnxscript.rewriter.rules.common import fuse_pad_into_conv_rule

_LARGEST_ELEMENTS = 1024
"""Shapes, pads and scales are small; larger tensors are weights, which stay in their files."""


_GIVE_BOOL = frozenset({"And", "Equal", "Greater", "GreaterOrEqual", "IsNaN", "Less", "LessOrEqual", "Not", "Or"})
_KEEP_TYPE = frozenset(
    {
        "Add", "Concat", "Conv", "CumSum", "Div", "Dropout", "Erf", "Expand", "Flatten", "Gather", "Gelu", "Gemm", "Identity",
        "LayerNormalization", "MatMul", "Mul", "Neg", "Pow", "Relu", "Reshape", "Sigmoid", "Slice", "Softmax", "Sqrt",
        "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""They give the type of their first input."""


def fold_small_constants(model: ir.Model, *, infer_shapes: bool = False) -> None:
    """Compute what depends on small constants only, and infer the shapes of the rest if ``infer_shapes``.

    Raises:
        RuntimeError: The folder's own evaluation of a node fails.
    """
    with _quiet():
        fold_constants(
            model,
            onnx_shape_inference=infer_shapes,
            input_size_limit=_LARGEST_ELEMENTS,
            output_size_limit=_LARGEST_ELEMENTS,
        )


def fuse_padding(model: ir.Model) -> None:
    """Let a Conv pad by zeros what a Pad before it pads."""
    lent: list[ir.Value] = []
    for node in model.graph.all_nodes():
        data, widths = (node.inputs[0], node.inputs[1]) if node.op_type == "Pad" and len(node.inputs) > 1 else (None, None)
        if data is not None and data.shape is None and widths is not None and widths.const_value is not None:
            # The rule wants to know the rank, and a Pad of all axes tells it.
            all_axes = len(node.inputs) < 4 or node.inputs[3] is None
            data.shape = ir.Shape([None] * (widths.const_value.size // 2)) if all_axes else None
            lent.append(data)
    with _quiet():
        RewriteRuleSet([fuse_pad_into_conv_rule]).apply_to_model(model)
    for value in lent:
        value.shape = None


def remove_useless_casts(model: ir.Model) -> None:
    """Let users of a Cast to the type that is there read what it casts, and count a CumSum of int32 in int32.

    One exporter sums int32 as int64 and casts the sum back, which gives the same 32 bits.
    """
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in list(graph):
            if node.domain != "" or node.op_type != "Cast" or node.outputs[0].is_graph_output():
                continue
            source, target = node.inputs[0], node.attributes.get_int("to", 0)
            if source is not None and source.const_value is None and _dtype(source) == target:
                node.outputs[0].replace_all_uses_with(source)
            elif target == ir.DataType.INT32 and (narrow := _narrow_sum(source)) is not None:
                graph.insert_before(node, narrow)
                narrow.outputs[0].name = node.outputs[0].name
                node.outputs[0].replace_all_uses_with(narrow.outputs[0])
                graph.remove(node, safe=True)


def widen_axes(model: ir.Model) -> None:
    """Let the axis of a CumSum be int64, as other operators' axes are."""
    graph = model.graph
    for node in graph.all_nodes():
        axis = node.inputs[1] if node.op_type == "CumSum" and node.domain == "" else None
        if axis is None or axis.const_value is None or axis.const_value.dtype is not ir.DataType.INT32:
            continue
        name = f"{axis.name}/int64"
        if name not in graph.initializers:
            tensor = ir.tensor(axis.const_value.numpy().astype(np.int64), name=name)
            shape = ir.Shape(tensor.shape.numpy())
            graph.register_initializer(
                ir.Value(name=name, const_value=tensor, type=ir.TensorType(ir.DataType.INT64), shape=shape)
            )
        node.replace_input_with(1, graph.initializers[name])


def _narrow_sum(value: ir.Value | None) -> ir.Node | None:
    node = None if value is None else value.producer()
    cast = None if node is None or node.op_type != "CumSum" or node.inputs[0] is None else node.inputs[0].producer()
    if node is None or cast is None or cast.op_type != "Cast" or cast.inputs[0] is None:
        return None
    if cast.attributes.get_int("to", 0) != ir.DataType.INT64 or _dtype(cast.inputs[0]) != ir.DataType.INT32:
        return None
    return ir.node("CumSum", [cast.inputs[0], node.inputs[1]], dict(node.attributes), name=node.name)


def _dtype(value: ir.Value) -> ir.DataType | None:
    """Return the type of ``value``, followed back where the file does not tell it."""
    while value.dtype is None:
        node = value.producer()
        if node is None or node.domain != "":
            return None
        if node.op_type == "Cast":
            return ir.DataType(node.attributes.get_int("to", 0))
        if node.op_type in _GIVE_BOOL:
            return ir.DataType.BOOL
        if node.op_type not in _KEEP_TYPE or node.inputs[0] is None:
            return None
        value = node.inputs[0]
    return value.dtype


@contextmanager
def _quiet() -> Iterator[None]:
    """Both tell their developers of every node that they leave as it is."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
