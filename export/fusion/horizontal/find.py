"""Which nodes of several members correspond: their graphs are walked side by side, from the outputs to the inputs.

Members are of one architecture where the walk meets the same operators with the same settings and with weights of the same
types and shapes, down to inputs, and parts that sharing has made one. It needs the form that sharing leaves behind: settings
that are defaults are gone, constants are initializers, equal ones of them are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import onnx_ir as ir

from monograph.export.fusion.sharing.canonical import attribute_key

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

    What all members share is in no group, nor is what lies before a part that some of them share and others do not.
    """
    groups: list[Group] = []
    differences: list[tuple[tuple[ir.Node, ...], Difference]] = []
    seen: set[tuple[ir.Node, ...]] = set()
    start, difference = _producers(tuple(outputs), tuple(outputs))
    if difference is not None:
        return difference
    pending = [(start, False)] if start is not None else []
    while pending:
        nodes, is_walked = pending.pop()
        if is_walked:
            groups.append(Group(nodes))
            continue
        if nodes in seen:
            continue
        seen.add(nodes)
        if (difference := _compare(nodes)) is not None:
            differences.append((nodes, difference))
            continue
        pending.append((nodes, True))
        for values in reversed(Group(nodes).inputs):
            before, difference = _producers(values, nodes)
            if difference is not None:
                differences.append((nodes, difference))
            elif before is not None:
                pending.append((before, False))
    return _first(differences) if differences else groups


def _producers(
    values: Counterparts, readers: Sequence[ir.Node | ir.Value]
) -> tuple[tuple[ir.Node, ...] | None, Difference | None]:
    """Return the nodes to walk on to, if any, or how the values differ."""
    if all(value is values[0] for value in values):
        return None, None
    given = [value for value in values if value is not None]
    nodes = tuple(node for value in given if (node := value.producer()) is not None)
    if len(nodes) == len(values):
        if len(set(nodes)) < len(nodes):
            return None, None  # some members share it and others do not
        places = [value.index() for value in given]
        odd = next((position for position, place in enumerate(places) if place != places[0]), None)
        return (nodes, None) if odd is None else (None, _difference(readers, odd, "the output that they read"))
    kinds = [_kind(value) for value in values]
    odd = next((position for position, kind in enumerate(kinds) if kind != kinds[0]), None)
    if odd is not None:
        return None, _difference(readers, odd, f"an input: {kinds[0]} and {kinds[odd]}")
    if given[0].dtype not in _WEIGHT_TYPES:
        odd = next(position for position, value in enumerate(given) if value is not given[0])
        return None, _difference(readers, odd, f"an input: {given[0].name!r} and {given[odd].name!r} are not the same")
    return None, None


def _kind(value: ir.Value | None) -> str:
    if value is None:
        return "none"
    if value.producer() is not None:
        return "a computed value"
    if value.const_value is None or value.is_graph_input():
        return f"the input {value.name!r}"
    return f"a weight {value.const_value.dtype} {list(value.const_value.shape.numpy())}"


def _compare(nodes: Sequence[ir.Node]) -> Difference | None:
    first = nodes[0]
    for position, node in enumerate(nodes):
        if (node.domain, node.op_type, node.overload) != (first.domain, first.op_type, first.overload):
            return _difference(nodes, position, f"the operator: {first.op_type} and {node.op_type}")
        if attribute_key(node) != attribute_key(first):
            return _difference(nodes, position, f"settings of {first.op_type}: {_settings(first)} and {_settings(node)}")
        if len(node.outputs) != len(first.outputs):
            return _difference(nodes, position, f"outputs of {first.op_type}: {len(first.outputs)} and {len(node.outputs)}")
    return None


def _settings(node: ir.Node) -> str:
    parts = [f"{name} {attribute.value}" for name, attribute in sorted(node.attributes.items())]
    return ", ".join(part if len(part) < 60 else f"{part[:57]}..." for part in parts) or "none"


def _difference(items: Sequence[ir.Node | ir.Value], position: int, what: str) -> Difference:
    return Difference(items[0].name or "", items[position].name or "", what)


def _first(differences: Sequence[tuple[tuple[ir.Node, ...], Difference]]) -> Difference:
    """Return the one that comes first in the first member's graph."""
    graph = differences[0][0][0].graph
    order = {node: position for position, node in enumerate(graph or ())}
    return min(differences, key=lambda found: order.get(found[0][0], 0))[1]
