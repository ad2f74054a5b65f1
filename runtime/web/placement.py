"""Where ONNX Runtime Web ran the nodes, read from its verbose log: no function of its interface tells it.

The lines come from ``VerifyEachNodeIsAssignedToAnEp`` in onnxruntime/core/framework/session_state.cc. Nodes are named only
where more than one provider took some.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from monograph.runtime.results import Placed

_ALL = re.compile(r"VerifyEachNodeIsAssignedToAnEp\]\s+All nodes placed on \[(\w+)\]\. Number of nodes: (\d+)")
_SOME = re.compile(r"VerifyEachNodeIsAssignedToAnEp\]\s+Node\(s\) placed on \[(\w+)\]\. Number of nodes: (\d+)")
_NODE = re.compile(r"VerifyEachNodeIsAssignedToAnEp\]\s+(\w+) \((.*)\)\s*$")
_TO_DEVICE = "MemcpyFromHost"
UNNAMED = "?"
"""The name and operator of a node that is counted but not named."""


def read_placement(log_lines: Sequence[str]) -> tuple[Placed, ...]:
    """Return what each provider ran; empty where the log does not tell.

    The parts of a provider beside the processor are counted by the copies to it, and so may be fewer.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] | None = None
    for line in log_lines:
        if match := _ALL.search(line):
            found.setdefault(match[1], []).extend([(UNNAMED, UNNAMED)] * int(match[2]))
        elif match := _SOME.search(line):
            current = found.setdefault(match[1], [])
        elif current is not None and (match := _NODE.search(line)):
            current.append((match[2] or match[1], match[1]))
    copies = sum(op_type == _TO_DEVICE for nodes in found.values() for _, op_type in nodes)
    return tuple(
        Placed(
            provider,
            tuple(name for name, _ in nodes),
            tuple(op_type for _, op_type in nodes),
            1 if provider == "CPUExecutionProvider" else 1 + copies,
        )
        for provider, nodes in found.items()
    )
