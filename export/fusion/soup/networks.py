"""The members of a soup as one network with several sets of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from monograph.errors import FusionError
from monograph.export.fusion.members import load_member
from monograph.export.fusion.plan import Member
from monograph.export.fusion.sharing.canonical import remove_copies, remove_default_attributes
from monograph.export.fusion.sharing.tensors import lift_constants
from monograph.export.fusion.soup.match import (
    WeightPair,
    describe_node,
    in_pieces,
    match_networks,
    refuse_quantised,
    same_tensor,
)

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_MULTIPLYING = frozenset({"Conv", "ConvTranspose", "Gather", "Gemm", "GRU", "LSTM", "MatMul", "RNN", "Transpose"})


@dataclass(frozen=True)
class AlignedWeight:
    """One weight of the network, in which members differ."""

    name: str
    """In the soup, which has the first member's graph."""
    member_names: tuple[str, ...]
    """What each member calls it."""
    tensors: tuple[ir.TensorProtocol, ...]
    """Each member's, of one dtype and shape; those in external data stay on disk until they are needed."""

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return int(self.tensors[0].size)


@dataclass(frozen=True)
class Networks:
    """The graph of the first member, and all members' weights for it where they differ."""

    model: ir.Model
    weights: tuple[AlignedWeight, ...]
    names: tuple[str, ...]
    """Of the members."""
    matrices: tuple[tuple[ir.TensorProtocol, ...], ...]
    """Each member's tensor of every matrix or kernel that multiplies something, whether members differ in it or not."""

    @property
    def parameter_count(self) -> int:
        """How many numbers are averaged."""
        return sum(weight.size for weight in self.weights)

    def only(self, members: Sequence[int]) -> Networks:
        """Return the same with some of the members."""

        def pick(values: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(values[member] for member in members)

        weights = tuple(AlignedWeight(weight.name, pick(weight.member_names), pick(weight.tensors)) for weight in self.weights)
        return Networks(self.model, weights, pick(self.names), tuple(pick(tensors) for tensors in self.matrices))


def align_networks(members: Sequence[Member], opset: int) -> Networks:
    """Load the members and find for each weight of the first the same one of the others.

    Raises:
        FusionError: a member is quantised, is another network than the first, or has a weight of another shape or dtype, or
            another whole number in it; node or weight are named.
    """
    models = [load_comparable(member, opset) for member in members]
    first, names = models[0], tuple(member.name for member in members)
    given = [{link.shared_input: link.member_input for link in member.input_links} for member in members]
    pairs: list[dict[str, WeightPair]] = []
    for model, inputs, name in zip(models[1:], given[1:], names[1:], strict=True):
        by_shared = {own: inputs[shared] for shared, own in given[0].items()}
        pairs.append(_checked(match_networks(first.graph, model.graph, by_shared, (names[0], name)), names[0], name))
    weights, matrices = [], []
    for key, value in first.graph.initializers.items():
        matched = [value, *(found[key].other for found in pairs if key in found)]
        tensors = tuple(other.const_value for other in matched if other.const_value is not None)
        if len(tensors) < len(models) or tensors[0].dtype not in _FLOATS:
            continue
        if not all(same_tensor(tensors[0], other) for other in tensors[1:]):
            weights.append(AlignedWeight(key, tuple(other.name or "" for other in matched), tensors))
        if len(tensors[0].shape) > 1 and any(node.op_type in _MULTIPLYING for node, _ in value.uses()):
            matrices.append(tensors)
    return Networks(first, tuple(weights), names, tuple(matrices))


def mix(networks: Networks, weights: Sequence[float]) -> ir.Model:
    """Return the network whose weights are Σ αᵢWᵢ, summed in float64 and rounded once; tensors are made when they are read.

    Weights in which members do not differ are the first member's own, bit for bit.
    """
    model = networks.model.clone()
    for weight in networks.weights:
        tensor = weight.tensors[0]
        model.graph.initializers[weight.name].const_value = ir.LazyTensor(
            partial(_weighted_sum, weight.tensors, tuple(weights), weight.name),
            tensor.dtype,
            ir.Shape(tensor.shape.numpy()),
            name=weight.name,
        )
    return model


def _weighted_sum(tensors: Sequence[ir.TensorProtocol], weights: Sequence[float], name: str) -> ir.TensorProtocol:
    arrays = [tensor.numpy() for tensor in tensors]
    mixed = np.empty_like(arrays[0], order="C")
    for out, *pieces in in_pieces(mixed.reshape(-1), *(array.reshape(-1) for array in arrays)):
        total = np.zeros(out.shape, np.float64)
        for piece, weight in zip(pieces, weights, strict=True):
            if weight:
                total += weight * piece.astype(np.float64)
        out[...] = total.astype(out.dtype)
    return ir.tensor(mixed, dtype=tensors[0].dtype, name=name)


def load_comparable(member: Member, opset: int) -> ir.Model:
    """Load a member's graph, and write in one way what can be written in several.

    Raises:
        FusionError: it is quantised, or cannot be brought to that opset.
    """
    model = load_member(member, opset)
    refuse_quantised(model, member.name)
    lift_constants(model)
    _untie_copies(model)
    remove_copies(model)
    remove_default_attributes(model)
    RemoveUnusedNodesPass()(model)
    return model


def _untie_copies(model: ir.Model) -> None:
    """Make a copy of a weight a weight of its own.

    PyTorch's older exporter stores weights once that are equal at the time, such as those of new normalisation layers, and
    copies them by Identity to where they belong; in another member, or in the soup, they differ.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type != "Identity" or node.domain != "":
            continue
        source, copy = node.inputs[0], node.outputs[0]
        if source is None or source.const_value is None or not source.is_initializer() or copy.is_graph_output():
            continue
        own = ir.Value(name=copy.name, shape=source.shape, type=source.type, const_value=source.const_value)
        copy.replace_all_uses_with(own)
        graph.remove(node, safe=True)
        graph.register_initializer(own)


def _checked(pairs: Sequence[WeightPair], first: str, other: str) -> dict[str, WeightPair]:
    """Return the pairs by the first member's name of the weight."""
    found: dict[str, WeightPair] = {}
    for pair in pairs:
        _check_weight(pair, first, other)
        key = pair.first.name or ""
        known = found.setdefault(key, pair)
        a, b = known.other.const_value, pair.other.const_value
        if known.other is not pair.other and a is not None and b is not None and not same_tensor(a, b):
            raise FusionError(
                f"{first} uses its weight {key!r} in several places, where {other} has different weights "
                f"({known.other.name!r} and {pair.other.name!r}): a soup needs members of one architecture"
            )
    return found


def _check_weight(pair: WeightPair, first: str, other: str) -> None:
    a, b = pair.first.const_value, pair.other.const_value
    if a is None or b is None:
        return
    both = f"weight {pair.other.name!r} of {other} is {_described(b)}, {pair.first.name!r} of {first} is {_described(a)}"
    if tuple(a.shape.numpy()) != tuple(b.shape.numpy()):
        raise FusionError(f"{both}: a soup needs members of one architecture")
    if a.dtype != b.dtype:
        raise FusionError(f"{both}: export them again in one precision")
    if a.dtype in _FLOATS and pair.setting_of is None:
        return
    if not same_tensor(a, b):
        setting = f", a setting of node {describe_node(pair.setting_of)}" if pair.setting_of else ""
        raise FusionError(f"{both}, but they hold other values{setting}: only float weights have a mean, all else must be equal")


def _described(tensor: ir.TensorProtocol) -> str:
    return f"{tensor.dtype.name.lower()} [{' x '.join(map(str, tensor.shape.numpy()))}]"
