"""Nodes that stay in float among quantised ones: named beforehand, and kept from being quantised after all.

When ONNX Runtime loads a graph in which DequantizeLinear, a convolution or Gemm with weights in float, and QuantizeLinear follow
each other, it quantises those weights itself, with one scale for all channels. A layer of digits that was left in float because
8 bits break it then lost 77 points of top-1; without optimisations it lost none. The rewrite asks for an input that is
dequantised by a single scale, so such a node here takes its input by the same scale written once a channel: equal numbers, a
pattern that does not match. Source: ``WeightBiasQuantization`` in
https://github.com/microsoft/onnxruntime/blob/01112314cc770c15db297b8a37b31ea9110dcb04/onnxruntime/core/optimizer/qdq_transformer/weight_bias_quantization.cc
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from monograph.errors import ExportError
from monograph.export.lowering.lowering import LoweringJob

_REWRITTEN = ("Conv", "ConvTranspose", "Gemm")
_MOVING = frozenset({"MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Expand"})
"""Operators that only move values: ONNX Runtime pushes DequantizeLinear through them."""


def name_nodes(path: Path) -> Path:
    """Give every node without a name, or with another's, a name of its own; return ``path``."""
    model = onnx.load(path)
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
            while node.name in taken:
                node.name += "_"
        taken.add(node.name)
    onnx.save(model, path)
    return path


def kept_nodes(job: LoweringJob, prepared: Path) -> list[str]:
    """Return the nodes that stay in float.

    Raises:
        ExportError: the prepared graph has no node of such a name.
    """
    names = {node.name for node in onnx.load(prepared, load_external_data=False).graph.node}
    if unknown := sorted(job.keep_float - names):
        raise ExportError(f"{job.source.path.name} has no node {unknown[0]!r} to keep in float: plan again")
    return sorted(job.keep_float)


def guard_float_nodes(path: Path, names: frozenset[str]) -> Path:
    """Rewrite the inputs of the nodes ``names`` in place so that nothing quantises their weights later; return ``path``."""
    if not names:
        return path
    model = onnx.load(path)
    makers = {name: node for node in model.graph.node for name in node.output}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in list(model.graph.node):
        if node.name in names and node.op_type in _REWRITTEN and node.input[1] in weights:
            dequantise = _dequantised_by(node.input[0], makers)
            if dequantise is not None:
                _take_by_channel(model.graph, node, dequantise, weights)
    _sort(model.graph)
    onnx.save(model, path)
    return path


def _dequantised_by(name: str, makers: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """Return the DequantizeLinear that a tensor comes from, through nodes that only move values."""
    maker = makers.get(name)
    while maker is not None and maker.op_type in _MOVING:
        maker = makers.get(maker.input[0])
    return maker if maker is not None and maker.op_type == "DequantizeLinear" else None


def _take_by_channel(
    graph: onnx.GraphProto, node: onnx.NodeProto, dequantise: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]
) -> None:
    """Let ``node`` take its input by a DequantizeLinear of its own, with the scale of ``dequantise`` for each channel."""
    channel_count = _input_channels(node, weights[node.input[1]])
    quantised = dequantise.input[0]
    if node.input[0] != dequantise.output[0]:
        # What moved the values stands between: they are quantised again to what they were.
        quantised = f"{node.name}_input_quantised"
        graph.node.append(
            onnx.helper.make_node(
                "QuantizeLinear",
                [node.input[0], *dequantise.input[1:]],
                [quantised],
                name=f"{node.name}_input_QuantizeLinear",
                domain=dequantise.domain,
            )
        )
    parameters = []
    for role, name in zip(("scale", "zero_point"), dequantise.input[1:], strict=False):
        values = np.full(channel_count, numpy_helper.to_array(weights[name]).reshape(-1)[0])
        parameters.append(f"{node.name}_input_{role}")
        graph.initializer.append(numpy_helper.from_array(values, parameters[-1]))
    own = copy.deepcopy(dequantise)
    own.name, own.input[:] = f"{node.name}_input_DequantizeLinear", [quantised, *parameters]
    own.output[0] = f"{node.name}_input"
    del own.attribute[:]
    own.attribute.append(onnx.helper.make_attribute("axis", 1))
    graph.node.append(own)
    node.input[0] = own.output[0]


def _input_channels(node: onnx.NodeProto, weight: onnx.TensorProto) -> int:
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "Conv":
        return int(weight.dims[1] * attributes.get("group", 1))
    if node.op_type == "ConvTranspose":
        return int(weight.dims[0])
    return int(weight.dims[1] if attributes.get("transB", 0) else weight.dims[0])


def _sort(graph: onnx.GraphProto) -> None:
    """Put each node after those whose outputs it takes."""
    known = {"", *(tensor.name for tensor in graph.initializer), *(value.name for value in graph.input)}
    waiting, done = list(graph.node), list[onnx.NodeProto]()
    made = {name for node in waiting for name in node.output}
    while waiting:
        ready = [node for node in waiting if all(name in known or name not in made for name in node.input)]
        if not ready:
            raise ExportError("the quantised graph has a cycle")
        for node in ready:
            known.update(node.output)
        done += ready
        waiting = [node for node in waiting if not set(node.output) <= known]
    del graph.node[:]
    graph.node.extend(done)
