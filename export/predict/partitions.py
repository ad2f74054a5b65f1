"""How ONNX Runtime cuts a graph into parts for a provider.

The supported nodes of one part depend on each other only through supported nodes, so that the part can run as a whole. Formed
in one pass in topological order, as CreateSupportedPartitionNodeGroups does:
https://github.com/microsoft/onnxruntime/blob/v1.22.0/onnxruntime/core/providers/partitioning_utils.cc
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from monograph.export.predict.graph import Node


def partition(nodes: Sequence[Node], supported: Mapping[str, bool]) -> list[list[str]]:
    """Return the names of the supported nodes of one graph, part by part.

    A part grows while nodes are ready; an unsupported node that waits for it closes it.
    """
    users, waiting = _edges(nodes)
    ready = deque(node.name for node in nodes if waiting[node.name] == 0)
    later: deque[str] = deque()
    parts: list[list[str]] = []
    part: list[str] = []
    border: set[str] = set()
    """Nodes that use a result of the part."""
    while ready or later:
        if not ready:
            parts.append(part)
            part, border, ready, later = [], set(), later, deque()
            continue
        name = ready.popleft()
        if supported[name]:
            part.append(name)
            border.update(users[name])
        elif name in border:
            later.append(name)
            continue
        for user in users[name]:
            waiting[user] -= 1
            if waiting[user] == 0:
                ready.append(user)
    return [part for part in [*parts, part] if part]


def _edges(nodes: Sequence[Node]) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Return the users of each node, in their order, and how many nodes each waits for."""
    maker = {output.name: node.name for node in nodes for output in node.outputs}
    users: dict[str, list[str]] = {node.name: [] for node in nodes}
    for node in nodes:
        used = {tensor.name for tensor in node.inputs if tensor is not None} | node.captured
        for before in {maker[name] for name in used if name in maker}:
            users[before].append(node.name)
    waiting = dict.fromkeys(users, 0)
    for using in users.values():
        for user in using:
            waiting[user] += 1
    return users, waiting
