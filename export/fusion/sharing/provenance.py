"""Which members a merged node or weight belongs to; names begin with ``member/``, the first member's name is kept."""

from __future__ import annotations

import onnx_ir as ir

MEMBERS_KEY = "monograph.members"


def members_of(item: ir.Node | ir.Value) -> list[str]:
    """Return the members that a node or weight serves, the one that its name tells first."""
    recorded = item.metadata_props.get(MEMBERS_KEY)
    return recorded.split(",") if recorded else [(item.name or "").split("/")[0]]


def record_merge(kept: ir.Node | ir.Value, dropped: ir.Node | ir.Value) -> None:
    """Note on ``kept`` that it serves the members of ``dropped`` too."""
    members = list(dict.fromkeys([*members_of(kept), *members_of(dropped)]))
    if len(members) > 1:
        kept.metadata_props[MEMBERS_KEY] = ",".join(members)
