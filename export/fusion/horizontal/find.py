"""Which nodes of several members correspond: each member's graph is walked in the same order, and the walks are compared.

Members are of one architecture where the walks meet the same operators with the same settings, that read the same of what was
met before, and weights of the same types and shapes. That needs the form that sharing leaves behind: settings that are defaults
are gone, constants are initializers, equal ones are one, and what all members compute alike is one node.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import zip_longest

import onnx_ir as ir

from monograph.export.fusion.sharing.canonical import attribute_key
from monograph.export.fusion.sharing.numbering import subgraphs_of

Counterparts = tuple[ir.Value | None, ...]
"""One value a member, or None where the members leave an input out."""
_WEIGHT_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
"""Integers are sizes, axes and zero points: members of one architecture have the same."""


@dataclass(frozen=True)
class Group:
    """Nodes that correspond, one a member, no two of them the same."""

    nodes: tuple[ir.Node, ...]

    @property
    def inputs(self) -> list[Counterparts]:
        """The inputs, by position."""
        return list(zip_longest(*(node.inputs for node in self.nodes)))

    @property
    def outputs(self) -> list[tuple[ir.Value, ...]]:
        """The outputs, by position."""
        return list(zip(*(node.outputs for node in self.nodes), strict=True))


@dataclass(frozen=True)
class Difference:
    """The first place, from the inputs on, at which a member is not built as the first one is."""

    first: str
    """Node of the first member."""
    other: str
    what: str

    def describe(self) -> str:
        """Return one clause for people."""
        return f"node {self.first!r} and node {self.other!r} differ in {self.what}"


def find_counterparts(outputs: Sequence[ir.Value]) -> list[Group] | Difference:
    """Return the groups of nodes that lead to ``outputs``, one output a member, in the order in which they can run.

    What all members share is in no group, nor is what some of them share and others do not.
    """
    reached = [set(_walk(output, frozenset())) for output in outputs]
    common = frozenset.intersection(*map(frozenset, reached))
    walks = [_walk(output, common) for output in outputs]
    places = [{node: place for place, node in enumerate(walk)} for walk in walks]
    rows = list(zip(*walks, strict=False))  # walks of different lengths are told apart below
    for nodes in rows:
        if (difference := _compare(nodes, places)) is not None:
            return difference
    for output, walk, reach in zip(outputs, walks, reached, strict=True):
        if len(walk) != len(walks[0]) or output.index() != outputs[0].index():
            return Difference(outputs[0].name or "", output.name or "", f"length: {len(reached[0])} and {len(reach)} nodes")
    return [Group(nodes) for nodes in rows if len(set(nodes)) == len(nodes)]


def _walk(output: ir.Value, common: AbstractSet[ir.Node]) -> list[ir.Node]:
    """Return the nodes that lead to ``output``, each behind what it reads; those in ``common`` and before them left out."""
    walk: dict[ir.Node, None] = {}
    pending = [(output.producer(), False)]
    while pending:
        node, is_behind = pending.pop()
        if node is None or node in walk or node in common:
            continue
        if is_behind:
            walk[node] = None
            continue
        pending.append((node, True))
        pending += [(value.producer(), False) for value in reversed(_read_by(node)) if value is not None]
    return list(walk)


def _read_by(node: ir.Node) -> list[ir.Value | None]:
    """Return the inputs, and what an If or a Loop reads of the graph around it."""
    read: list[ir.Value | None] = list(node.inputs)
    for graph in subgraphs_of(node):
        for inner in graph.all_nodes():
            read += [value for value in inner.inputs if value is not None and value.graph is node.graph]
    return read


def _compare(nodes: Sequence[ir.Node], places: Sequence[Mapping[ir.Node, int]]) -> Difference | None:
    first = nodes[0]
    for node, own in zip(nodes, places, strict=True):
        what = None
        if (node.domain, node.op_type, node.overload) != (first.domain, first.op_type, first.overload):
            what = f"the operator: {first.op_type} and {node.op_type}"
        elif attribute_key(node) != attribute_key(first):
            what = f"settings of {first.op_type}: {_settings(first)} and {_settings(node)}"
        elif len(node.outputs) != len(first.outputs):
            what = f"outputs of {first.op_type}: {len(first.outputs)} and {len(node.outputs)}"
        else:
            for one, other in zip_longest(first.inputs, node.inputs):
                (key, text), (other_key, other_text) = _described(one, places[0]), _described(other, own)
                if key != other_key:
                    what = f"an input of {first.op_type}: {text} and {other_text}"
                    break
        if what is not None:
            return Difference(first.name or "", node.name or "", what)
    return None


def _described(value: ir.Value | None, places: Mapping[ir.Node, int]) -> tuple[Hashable, str]:
    """Return what counterparts have in common, and how to say it."""
    if value is None:
        return None, "none"
    node = value.producer()
    if node is not None and node in places:
        return (places[node], value.index()), f"what {node.name!r} gives"
    if value.const_value is not None and node is None and not value.is_graph_input() and value.dtype in _WEIGHT_TYPES:
        key = (value.dtype, tuple(value.const_value.shape.numpy()))
        return key, f"a weight {value.dtype} {list(key[1])}"
    return id(value), f"{value.name!r}"


def _settings(node: ir.Node) -> str:
    parts = [f"{name} {attribute.value}" for name, attribute in sorted(node.attributes.items())]
    return ", ".join(part if len(part) < 60 else f"{part[:57]}..." for part in parts) or "none"
