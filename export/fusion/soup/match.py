"""Whether two graphs are one network, and which weight of one is which of the other.

Graphs are walked from their outputs to their inputs, side by side. Nodes are told by what they do and where they stand, not
by their names, so that members whose exporters named things differently are one network too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from monograph.errors import FusionError
from monograph.export.fusion.sharing.canonical import is_commutative

_QUANTISED = re.compile(r"[Qq]uantize|^QLinear|^QGemm$|^QAttention$|^QMoE$|Integer|NBits")
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_SETTINGS = frozenset({"Clip", "Dropout", "NonMaxSuppression", "OneHot", "Pad", "Range", "Resize", "Upsample"})
"""Their inputs behind the first are settings, floats or not: the mean of two of them means nothing."""
_PIECE = 1 << 22
Array = npt.NDArray[Any]
Pair = tuple[ir.Value | None, ir.Value | None]


@dataclass(frozen=True)
class WeightPair:
    """A weight of the first network, and what stands in its place in the other."""

    first: ir.Value
    other: ir.Value
    setting_of: ir.Node | None
    """The first network's node to which it is a setting, such as the bounds of a Clip."""


def match_networks(first: ir.Graph, other: ir.Graph, inputs: Mapping[str, str], names: tuple[str, str]) -> tuple[WeightPair, ...]:
    """Return every weight of ``first`` with the weight that stands in its place in ``other``.

    Args:
        first: the graph whose structure the soup will have; constants lifted to initializers.
        other: another member's graph, made ready likewise.
        inputs: the names of the inputs of ``first`` to those of ``other``.
        names: of the two members, for messages.

    Raises:
        FusionError: the graphs differ in an operator, a setting, or what is connected to what; the node is named.
    """
    seen: set[Pair] = {(value, _named(other.inputs, inputs[value.name or ""])) for value in first.inputs}
    weights: dict[tuple[ir.Value, ir.Value], WeightPair] = {}
    stack: list[tuple[Pair, ir.Node | None, int]] = [(pair, None, 0) for pair in _output_pairs(first, other, names)]
    while stack:
        (a, b), reader, position = stack.pop()
        if (a, b) in seen or (a is None and b is None):
            continue
        if a is None or b is None or _role(a) != _role(b):
            raise FusionError(_other_network(names, f"{_reader(reader, position)} reads {_what(b)}, expected {_what(a)}"))
        producers = a.producer(), b.producer()
        if producers[0] is not None and producers[1] is not None:
            seen.add((a, b))
            stack += _match_nodes(producers[0], producers[1], (a, b), names, seen)
        elif a.is_initializer():
            setting = reader if reader is not None and _is_setting(reader, position) else None
            if (a, b) not in weights or setting is not None:
                weights[a, b] = WeightPair(a, b, setting)
        else:
            raise FusionError(_other_network(names, f"{_reader(reader, position)} reads {_what(b)} where {_what(a)} is read"))
    return tuple(weights.values())


def refuse_quantised(model: ir.Model, name: str) -> None:
    """Refuse integers for weights, which have no mean.

    Raises:
        FusionError: a node works on quantised numbers.
    """
    for node in model.graph.all_nodes():
        if _QUANTISED.search(node.op_type):
            raise FusionError(
                f"{name} is quantised (node {describe_node(node)}): int8 weights have no mean; "
                "make the soup of the float models, and quantise that"
            )


def describe_node(node: ir.Node) -> str:
    """Return ``'name' (OpType)``."""
    return f"{(node.name or node.outputs[0].name or '')!r} ({node.op_type})"


def _named(values: Sequence[ir.Value], name: str) -> ir.Value:
    return next(value for value in values if value.name == name)


def _output_pairs(first: ir.Graph, other: ir.Graph, names: tuple[str, str]) -> list[Pair]:
    """By name where both have the same names, else in order."""
    if len(first.outputs) != len(other.outputs):
        raise FusionError(
            f"{names[0]} gives {len(first.outputs)} outputs but {names[1]} gives {len(other.outputs)}: "
            "a soup needs members of one architecture"
        )
    if {value.name for value in first.outputs} == {value.name for value in other.outputs}:
        return [(value, _named(other.outputs, value.name or "")) for value in first.outputs]
    return list(zip(first.outputs, other.outputs, strict=True))


def _match_nodes(
    a: ir.Node, b: ir.Node, values: tuple[ir.Value, ir.Value], names: tuple[str, str], seen: set[Pair]
) -> list[tuple[Pair, ir.Node | None, int]]:
    """Check two nodes against each other, and return the pairs of what they read; inputs of their subgraphs become ``seen``."""
    if (a.domain, a.op_type, a.overload) != (b.domain, b.op_type, b.overload):
        raise FusionError(_other_network(names, f"node {describe_node(b)} stands where {names[0]} has {describe_node(a)}"))
    if values[0].index() != values[1].index() or len(a.outputs) != len(b.outputs):
        raise FusionError(_other_network(names, f"another output of node {describe_node(b)} is read"))
    _check_attributes(a, b, names)
    pairs: list[tuple[Pair, ir.Node | None, int]] = []
    for mine, theirs in zip(_subgraphs(a), _subgraphs(b), strict=True):
        if (len(mine.inputs), len(mine.outputs)) != (len(theirs.inputs), len(theirs.outputs)):
            raise FusionError(_other_network(names, f"a branch of node {describe_node(b)} has other inputs or outputs"))
        seen.update(zip(mine.inputs, theirs.inputs, strict=True))
        pairs += [(pair, b, position) for position, pair in enumerate(zip(mine.outputs, theirs.outputs, strict=True))]
    return pairs + [(pair, b, position) for position, pair in enumerate(_input_pairs(a, b))]


def _input_pairs(a: ir.Node, b: ir.Node) -> list[Pair]:
    """In order; operands that may be swapped are, where that pairs like with like."""
    own, theirs = list(a.inputs), list(b.inputs)
    if is_commutative(a) and len(own) == len(theirs) == 2 and _likeness(own, theirs[::-1]) > _likeness(own, theirs):
        theirs.reverse()
    return list(zip_longest(own, theirs))


def _likeness(own: Sequence[ir.Value | None], theirs: Sequence[ir.Value | None]) -> int:
    pairs = list(zip(own, theirs, strict=True))
    roles = sum(_role(a) == _role(b) for a, b in pairs)
    return 10 * roles + sum(a is not None and b is not None and a.name == b.name for a, b in pairs)


def _check_attributes(a: ir.Node, b: ir.Node, names: tuple[str, str]) -> None:
    for key in sorted({*a.attributes, *b.attributes}):
        mine, theirs = a.attributes.get(key), b.attributes.get(key)
        if mine is None or theirs is None or not _same_attribute(mine, theirs):
            got, expected = (_written(attribute) for attribute in (theirs, mine))
            raise FusionError(
                _other_network(names, f"node {describe_node(b)} has {key} = {got} where {names[0]}'s has {expected}")
            )


def _same_attribute(mine: ir.Attr, theirs: ir.Attr) -> bool:
    if mine.type != theirs.type or mine.is_ref() or theirs.is_ref():
        return False
    if mine.type is ir.AttributeType.GRAPH:
        return True  # walked as part of the graph that they stand in
    if mine.type is ir.AttributeType.GRAPHS:
        return len(mine.as_graphs()) == len(theirs.as_graphs())
    if mine.type is ir.AttributeType.TENSOR:
        return same_tensor(mine.as_tensor(), theirs.as_tensor())
    return bool(mine.value == theirs.value)


def same_tensor(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    """True where dtype, shape and every byte are equal."""
    if a.dtype != b.dtype or tuple(a.shape.numpy()) != tuple(b.shape.numpy()):
        return False
    if a.dtype is ir.DataType.STRING:
        return bool((a.numpy() == b.numpy()).all())
    if a.dtype.bitwidth < 8:
        return a.tobytes() == b.tobytes()
    flat = (np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8) for tensor in (a, b))
    return all(np.array_equal(mine, theirs) for mine, theirs in in_pieces(*flat))


def in_pieces(*flat: Array) -> Iterator[tuple[Array, ...]]:
    """Yield arrays of one length a piece at a time, so that work on large weights takes little memory."""
    for start in range(0, flat[0].size, _PIECE):
        yield tuple(array[start : start + _PIECE] for array in flat)


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for _, attribute in sorted(node.attributes.items()):
        if attribute.type in _GRAPHS:
            yield from [attribute.as_graph()] if attribute.type is ir.AttributeType.GRAPH else attribute.as_graphs()


def _is_setting(reader: ir.Node, position: int) -> bool:
    return reader.op_type in _SETTINGS and reader.domain == "" and (position > 0 or reader.op_type == "Range")


def _role(value: ir.Value | None) -> str:
    if value is None:
        return "nothing"
    if (node := value.producer()) is not None:
        return f"the output of a {node.op_type}"
    return "a weight" if value.is_initializer() else "an input"


def _what(value: ir.Value | None) -> str:
    return f"{_role(value)}{f' ({value.name!r})' if value is not None and value.name else ''}"


def _reader(reader: ir.Node | None, position: int) -> str:
    return "the output" if reader is None else f"input {position} of node {describe_node(reader)}"


def _written(attribute: ir.Attr | None) -> str:
    if attribute is None:
        return "none"
    return "another tensor" if attribute.type is ir.AttributeType.TENSOR else str(attribute.value)


def _other_network(names: tuple[str, str], reason: str) -> str:
    return f"{names[1]} is another network than {names[0]}: {reason}; a soup needs members of one architecture"
