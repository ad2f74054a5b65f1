"""A contract for a model that states none: read off the graph, every guess told to the user."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from monograph.errors import SourceError
from monograph.models.contract import Contract, Dim, Kind, TensorSpec

_KINDS_BY_OP = {"Softmax": Kind.PROBABILITIES, "LogSoftmax": Kind.LOGITS, "Sigmoid": Kind.SCORES}
_KNOWN_TYPES = frozenset(helper.get_all_tensor_dtypes())
_KINDS_BY_WORD = {
    "log_prob": Kind.LOGITS,
    "logprob": Kind.LOGITS,
    "log_softmax": Kind.LOGITS,
    "logit": Kind.LOGITS,
    "prob": Kind.PROBABILITIES,
    "softmax": Kind.PROBABILITIES,
    "score": Kind.SCORES,
    "embed": Kind.EMBEDDING,
    "hidden": Kind.EMBEDDING,
    "pool": Kind.EMBEDDING,
}


def infer_contract(proto: onnx.ModelProto, name: str) -> Contract:
    """Infer the contract of the model file called ``name``; ``assumed`` says what was guessed.

    Raises:
        SourceError: an input or output is no tensor (a sequence, a map), or has no known type.
    """
    graph = proto.graph
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = tuple(
        _spec(value, name, _vocabulary_size(graph, value.name)) for value in graph.input if value.name not in initializers
    )
    outputs = tuple(_spec(value, name, None) for value in graph.output)
    if not inputs:
        raise SourceError(f"{name} has no inputs: it computes a constant")
    kind, reason = _kind(graph, outputs[0])
    assumed = [f"{name} carries no contract: its output {outputs[0].name!r} is taken for {kind.value}, {reason}"]
    if kind.has_classes:
        assumed.append(f"{name} names no classes: they are matched by position")
    return Contract(inputs, outputs, kind, None, tuple(assumed))


def _spec(value: onnx.ValueInfoProto, model: str, upper_bound: int | None) -> TensorSpec:
    if not value.type.HasField("tensor_type") or value.type.tensor_type.elem_type not in _KNOWN_TYPES:
        raise SourceError(f"{model}: {value.name!r} is not a tensor of known type; only tensors can cross a contract")
    tensor = value.type.tensor_type
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    shape = tuple(_dim(dim, value.name, axis) for axis, dim in enumerate(tensor.shape.dim))
    return TensorSpec(value.name, "str" if dtype.kind in "OU" else dtype.name, shape, upper_bound=upper_bound)


def _dim(dim: onnx.TensorShapeProto.Dimension, name: str, axis: int) -> Dim:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return str(dim.dim_param) or ("batch" if axis == 0 else f"{name}_dim_{axis}")


def _vocabulary_size(graph: onnx.GraphProto, input_name: str) -> int | None:
    """Ids that index an embedding table stay below its length."""
    lengths = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    bounds = [
        lengths[node.input[0]]
        for node in graph.node
        if node.op_type == "Gather" and len(node.input) == 2 and node.input[1] == input_name and node.input[0] in lengths
    ]
    return min(bounds, default=None)


def _kind(graph: onnx.GraphProto, output: TensorSpec) -> tuple[Kind, str]:
    producer = next((node for node in graph.node if output.name in node.output), None)
    if producer is not None and producer.op_type in _KINDS_BY_OP:
        return _KINDS_BY_OP[producer.op_type], f"because a {producer.op_type} makes it"
    for word, kind in _KINDS_BY_WORD.items():
        if word in output.name.lower():
            return kind, "because of its name"
    if len(output.shape) == 2 and output.shape[1] == 1:
        return Kind.REGRESSION, "because it is one number a row"
    if len(output.shape) == 2:
        return Kind.LOGITS, "because it is one row of numbers a row of input"
    return Kind.EMBEDDING, f"because it has {len(output.shape)} dimensions"
