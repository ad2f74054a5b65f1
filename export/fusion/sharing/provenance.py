"""Which members a node belongs to: in its name, which begins with ``member/``, and where that does not say, in its metadata.

What joins the members is named ``fusion/…`` and belongs to those whose numbers reach it; what prepares a shared input, to
those that it feeds. A merged node keeps the first member's name and belongs to all that it was merged of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from monograph.errors import SourceError
from monograph.models.bounded import parse_json
from monograph.models.onnx_lazy import load_proto

MEMBERS_KEY = "monograph.members"
_FUSION_KEY = "monograph.fusion"
_SOUP = "soup"
"""Every node of one serves all members, whose weights were averaged."""


def members_of(item: ir.Node | ir.Value) -> list[str]:
    """Return the members that a node or weight serves, the one that its name tells first."""
    recorded = item.metadata_props.get(MEMBERS_KEY)
    return recorded.split(",") if recorded else [(item.name or "").split("/")[0]]


def record_merge(kept: ir.Node | ir.Value, dropped: ir.Node | ir.Value) -> None:
    """Note on ``kept`` that it serves the members of ``dropped`` too."""
    members = list(dict.fromkeys([*members_of(kept), *members_of(dropped)]))
    if len(members) > 1:
        kept.metadata_props[MEMBERS_KEY] = ",".join(members)


def record_members(model: ir.Model, names: Sequence[str]) -> None:
    """Note on every node of the finished graph whose name does not tell it which of the members ``names`` it serves."""
    served: dict[ir.Node, set[str]] = {}
    _follow_forward(model.graph, set(names), served)
    for node in reversed(served):  # users after what they use
        if not served[node]:
            users = {user for value in node.outputs for user in value.consumers()}
            served[node] = set().union(*(served.get(user, set()) for user in users)) or set(names)
    for node, members in served.items():
        told = [name for name in names if name in members]
        if told != [(node.name or "").split("/")[0]]:
            node.metadata_props[MEMBERS_KEY] = ",".join(told)


def _follow_forward(graph: ir.Graph, names: set[str], served: dict[ir.Node, set[str]]) -> None:
    """Enter for each node, in order, the members that it is told to serve, and, for what joins them, all that reach it."""
    for node in graph:
        served[node] = set()  # entered before its branches, so that those come after it
        branches = list(_subgraphs(node))
        for branch in branches:
            _follow_forward(branch, names, served)
        told = set(members_of(node))
        if not told <= names:
            sources = {value.producer() for value in node.inputs if value is not None}
            sources |= {inner for branch in branches for inner in branch.all_nodes()}
            reached = set().union(*(served.get(source, set()) for source in sources if source is not None))
            told = reached | (told & names) if reached else set()
        served[node] = told


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type is ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def members_by_node(path: Path) -> dict[str, tuple[str, ...]]:
    """Return, for every node of a fused file, those of its branches included, the names of the members that it serves.

    Raises:
        SourceError: the file cannot be read, or is no fusion.
    """
    return {node.name: members for node, members in _read_members(path)}


def members_by_output(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the same for every value that a node gives: ONNX Runtime calls nodes that it fuses after what they give.

    Raises:
        SourceError: the file cannot be read, or is no fusion.
    """
    return {name: members for node, members in _read_members(path) for name in node.output if name}


def _read_members(path: Path) -> Iterator[tuple[onnx.NodeProto, tuple[str, ...]]]:
    try:
        proto = load_proto(path)
    except (DecodeError, OSError) as error:
        raise SourceError(f"{path} is missing or is not an ONNX file: give a file that `monograph fuse` wrote") from error
    form, names = _read_record(proto, path)
    for node in _all_nodes(proto.graph.node):
        recorded = next((entry.value for entry in node.metadata_props if entry.key == MEMBERS_KEY), None)
        told = recorded.split(",") if recorded else names if form == _SOUP else [node.name.split("/")[0]]
        yield node, tuple(name for name in names if name in told)


def _read_record(proto: onnx.ModelProto, path: Path) -> tuple[str, list[str]]:
    """Return the form of the fusion and the names of its members."""
    text = next((entry.value for entry in proto.metadata_props if entry.key == _FUSION_KEY), None)
    if text is None:
        raise SourceError(f"{path} is no fusion: it says nothing of members under {_FUSION_KEY!r}")
    try:
        record = parse_json(text)
        return str(record["form"]), [str(member["name"]) for member in record["members"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceError(f"{path}: metadata {_FUSION_KEY!r} is damaged: fuse again") from error


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _all_nodes(graph.node)
