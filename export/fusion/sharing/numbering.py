"""Value numbering: a node that computes what an earlier one computed is replaced by it.

Equal means the same operator, settings and inputs; inputs are equal where they are the same value, so equal chains merge
from their inputs on. An If, Loop or Scan may read what its outer graph computed before it, never the other way round.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Hashable

import onnx_ir as ir

from monograph.export.fusion.sharing.canonical import attribute_key, is_commutative
from monograph.export.fusion.sharing.provenance import record_merge

_KNOWN_DOMAINS = frozenset({"", "ai.onnx.ml"})
"""Of operators of other domains it is not known whether two runs give the same."""
_RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"})
Key = tuple[Hashable, ...]


def merge_equal_nodes(graph: ir.Graph, outer: ChainMap[Key, ir.Node] | None = None) -> None:
    """Merge equal nodes of ``graph``, which must be sorted, and of its subgraphs; outputs of a graph keep their node."""
    seen: ChainMap[Key, ir.Node] = ChainMap() if outer is None else outer.new_child()
    for node in list(graph):
        subgraphs = subgraphs_of(node)
        for subgraph in subgraphs:
            merge_equal_nodes(subgraph, seen)
        key = node_key(node)
        if subgraphs or key is None:
            continue
        kept = seen.setdefault(key, node)
        if kept is not node and not any(value.is_graph_output() for value in node.outputs):
            _replace(node, kept)


def subgraphs_of(node: ir.Node) -> list[ir.Graph]:
    """Return the branches of an If, or the body of a Loop or Scan."""
    graphs: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            graphs.append(attribute.as_graph())
        elif attribute.type is ir.AttributeType.GRAPHS:
            graphs += attribute.as_graphs()
    return graphs


def node_key(node: ir.Node) -> Key | None:
    """Return what two nodes have in common that compute the same; None for one that must stay by itself."""
    if node.domain not in _KNOWN_DOMAINS or node.op_type in _RANDOM:
        return None
    if node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
        return None  # it may drop at random
    attributes = attribute_key(node)
    if attributes is None:
        return None
    inputs = [0 if value is None else id(value) for value in node.inputs]
    while inputs and inputs[-1] == 0:
        inputs.pop()
    if is_commutative(node):
        inputs.sort()
    return (node.domain, node.op_type, node.overload, attributes, tuple(inputs), len(node.outputs))


def _replace(node: ir.Node, kept: ir.Node) -> None:
    for value, other in zip(node.outputs, kept.outputs, strict=True):
        if other.shape is None:
            other.shape = value.shape
        other.type = other.type or value.type  # a shape without a type cannot be written
        if not other.name:
            other.name = value.name
        value.replace_all_uses_with(other)
    record_merge(kept, node)
    if node.graph is not None:
        node.graph.remove(node, safe=True)
