"""Count a model's multiply-accumulates: what a row costs, known before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from onnx.inliner import inline_local_functions

from monograph.models.onnx_lazy import load_proto

_LARGEST_KEPT_ELEMENTS = 1024
"""Shape inference reads the values of small tensors only (shapes, axes); the others are emptied, which saves time."""
_UNCOUNTED = ("LSTM", "GRU", "RNN", "Einsum", "Attention", "MultiHeadAttention", "ConvTranspose", "If", "Loop", "Scan")
"""These cost much, and how much is not counted here."""
_WEIGHT_POSITION = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}
_FIRST_FACTOR = ("MatMul", "MatMulInteger", "QLinearMatMul", "Gemm")


def count_macs(source: Path | onnx.ModelProto, *, sequence_length: int = 64) -> int | None:
    """Return the multiply-accumulates of one row in convolutions and matrix products.

    Other free dimensions than the batch are taken to be ``sequence_length``. None where a shape cannot be inferred or the
    model has operators whose cost is not counted, such as LSTM.
    """
    model = onnx.ModelProto()
    if isinstance(source, Path):
        model = load_proto(source)
    else:
        model.CopyFrom(source)
    model = inline_local_functions(model) if model.functions else model
    _fix_free_dimensions(model.graph, sequence_length)
    _empty_large_tensors(model.graph)
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes: dict[str, Sequence[int] | None] = {value.name: _shape(value) for value in (*graph.input, *graph.value_info)}
    shapes |= {value.name: _shape(value) for value in graph.output}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    total = 0
    for node in graph.node:
        macs = _node_macs(node, shapes)
        if macs is None:
            return None
        total += macs
    return total


def _fix_free_dimensions(graph: onnx.GraphProto, sequence_length: int) -> None:
    for value in graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                dim.dim_value = 1 if axis == 0 else sequence_length
    # What was inferred for a free batch would stand in the way of what holds for one row.
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")


def _empty_large_tensors(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        if math.prod(tensor.dims) > _LARGEST_KEPT_ELEMENTS:
            for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
                tensor.ClearField(field)


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value for dim in dims) if all(dim.HasField("dim_value") for dim in dims) else None


def _node_macs(node: onnx.NodeProto, shapes: Mapping[str, Sequence[int] | None]) -> int | None:
    if node.op_type in _UNCOUNTED:
        return None
    if node.op_type in _WEIGHT_POSITION:
        output, weight = shapes.get(node.output[0]), shapes.get(node.input[_WEIGHT_POSITION[node.op_type]])
        # A weight is [out channels, in channels of a group, kernel...].
        return None if output is None or weight is None else math.prod(output) * math.prod(weight[1:])
    if node.op_type in _FIRST_FACTOR:
        output, factor = shapes.get(node.output[0]), shapes.get(node.input[0])
        if output is None or not factor:
            return None
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return math.prod(output) * factor[-2 if transposed else -1]
    return 0
