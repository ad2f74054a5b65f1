"""What a soup is proven against: the members' own files averaged a second time, by plain onnx protobufs and numpy.

Nothing of the way the soup was built is used but which weight belongs to which, and the BatchNorm statistics, which are checked
by what they claim: that each BatchNorm of the network sees just them.

Shape letters: ``b`` batch, ``k`` channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.external_data_helper import load_external_data_for_model
from onnx.numpy_helper import from_array, to_array

from monograph.errors import ParityError
from monograph.export.fusion.plan import Member
from monograph.export.fusion.soup.batchnorm import Statistics, whole_batches
from monograph.export.fusion.soup.networks import Networks, load_comparable
from monograph.models.contract import Contract
from monograph.models.data.rows import Rows
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
_TOLERANCE = {np.dtype(np.float16): 2e-2}
_TOLERANCE_FLOAT32 = 1e-3
"""Of what a BatchNorm sees, mean and variance both as shares of the standard deviation and of the variance."""
_EPSILON = 1e-5
"""What BatchNorm by default adds to the variance: a channel that never varies is divided by no less."""
_INLINE_BYTES = 1024
"""Shapes must stand in the file itself: ONNX Runtime infers from them before it reads what lies beside it."""


def write_reference(
    networks: Networks, members: Sequence[Member], opset: int, statistics: Mapping[str, Statistics], path: Path
) -> None:
    """Write the first member's file to ``path``, its weights averaged with the others' in float64, its statistics as given."""
    aligned = networks.weights
    mixed = [(position, member) for position, member in enumerate(members) if member.weight]
    sources = {
        position: _tensors(_plain_proto(member, [weight.member_names[position] for weight in aligned], (), opset))
        for position, member in mixed
    }
    proto = _plain_proto(members[0], [weight.name for weight in aligned], tuple(statistics), opset)
    load_external_data_for_model(proto, str(members[0].path.parent))
    tensors = _tensors(proto)
    for weight in aligned:
        average: Array = np.zeros(())
        for position, member in mixed:
            array = to_array(sources[position][weight.member_names[position]], base_dir=str(member.path.parent))
            average = average + member.weight * array.astype(np.float64)
        tensors[weight.name].CopyFrom(from_array(average.astype(array.dtype), tensors[weight.name].name))
    for node in proto.graph.node:
        if node.output and node.output[0] in statistics:
            _set_statistics(proto.graph, node, statistics[node.output[0]], tensors)
    onnx.save(proto, str(path), save_as_external_data=True, location=f"{path.name}.data", size_threshold=_INLINE_BYTES)


def check_statistics(path: Path, contract: Contract, rows: Rows, statistics: Mapping[str, Statistics]) -> None:
    """Run the network of ``path`` once on ``rows``, and see whether each BatchNorm sees the statistics that it is given.

    Raises:
        ParityError: one does not.
    """
    proto = onnx.load(str(path), load_external_data=False)
    seen = {node.output[0]: node.input[0] for node in proto.graph.node if node.output and node.output[0] in statistics}
    present = {value.name for value in (*proto.graph.output, *proto.graph.input)}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(seen.values()) if name not in present)
    watched = path.with_name("watched.onnx")
    watched.write_bytes(proto.SerializeToString())
    session = open_session(watched)
    counts: Counter[str] = Counter()
    sums: dict[str, Array] = {}
    squares: dict[str, Array] = {}
    for batch in whole_batches(contract, rows):
        outputs = session(batch.inputs) | dict(batch.inputs)
        for node, name in seen.items():
            centred = np.moveaxis(outputs[name], 1, 0).reshape(outputs[name].shape[1], -1).astype(np.float64)  # [k, values]
            centred -= statistics[node].mean[:, None]
            counts[node] += centred.shape[1]
            sums[node] = sums.get(node, np.float64(0)) + centred.sum(1)
            squares[node] = squares.get(node, np.float64(0)) + (centred**2).sum(1)
            tolerance = _TOLERANCE.get(outputs[name].dtype, _TOLERANCE_FLOAT32)
    for node in seen:
        offset = sums[node] / counts[node]
        variance = (squares[node] - counts[node] * offset**2) / (counts[node] - 1)
        scale = statistics[node].variance + _EPSILON
        errors = np.abs(offset) / np.sqrt(scale), np.abs(variance - statistics[node].variance) / scale
        if not max(error.max() for error in errors) <= tolerance:
            raise ParityError(
                f"BatchNorm {node!r} of the soup does not see the statistics that it was given: mean off by "
                f"{errors[0].max():.2g} standard deviations, variance by {errors[1].max():.2%}; nothing was written"
            )


def _plain_proto(member: Member, names: Sequence[str], outputs: Sequence[str], opset: int) -> onnx.ModelProto:
    """Return a member's file as it is; external data stay where they are.

    One in which the weights are not told apart by name (functions, copies, equal names in branches) is brought into the
    comparable form that the soup was made from.
    """
    proto = onnx.load(str(member.path), load_external_data=False)
    graphs = list(_graphs(proto.graph))
    counts = Counter(name for graph in graphs for name, _ in _graph_tensors(graph))
    copied = {node.input[0] for graph in graphs for node in graph.node if node.op_type == "Identity"}
    made = {name for node in proto.graph.node for name in node.output}
    if all(counts[name] == 1 and name not in copied for name in names) and set(outputs) <= made:
        return proto
    return ir.to_proto(load_comparable(member, opset))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for subgraph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(subgraph)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Yield initializers, and what Constant nodes give, by name."""
    yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            yield node.output[0], node.attribute[0].t


def _tensors(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {name: tensor for graph in _graphs(proto.graph) for name, tensor in _graph_tensors(graph)}


def _set_statistics(
    graph: onnx.GraphProto, node: onnx.NodeProto, statistics: Statistics, tensors: Mapping[str, onnx.TensorProto]
) -> None:
    for position, array in ((3, statistics.mean), (4, statistics.variance)):
        name = f"reference/{node.output[0]}/{position}"
        old = tensors.get(node.input[position])
        dtype = np.dtype(np.float32) if old is None else to_array(old).dtype
        graph.initializer.append(from_array(array.astype(dtype), name))
        node.input[position] = name
