"""What a fusion costs beside its members run apart, known before it is written."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from monograph.export.fusion.build import build_graph
from monograph.export.fusion.macs import SEQUENCE_LENGTH, count_macs
from monograph.export.fusion.plan import FusionPlan
from monograph.export.fusion.sharing import Sharing


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of one row, and what sharing saves."""

    member_macs: int | None
    """All members added up; None where they cannot be counted."""
    fused_macs: int | None
    sequence_length: int | None
    """At which free dimensions other than the batch were counted; None where there are none."""
    sharing: Sharing | None
    """None where the plan does not share."""

    @property
    def saved_macs(self) -> int | None:
        """What the fused graph saves of the members' multiply-accumulates."""
        return None if self.member_macs is None or self.fused_macs is None else self.member_macs - self.fused_macs

    def describe(self) -> str:
        """Return one line for people, two with sharing."""
        at = f" of {self.sequence_length} tokens" if self.sequence_length else ""
        line = f"  cost     multiply-accumulates a row{at}: {_millions(self.fused_macs)}"
        line += f", of the members apart {_millions(self.member_macs)}"
        line += f" ({_millions(self.saved_macs)} saved)" if self.saved_macs else ""
        return "\n".join([line] + ([f"  {self.sharing.describe()}"] if self.sharing else []))


def estimate_cost(plan: FusionPlan) -> Cost:
    """Build the graph of ``plan`` in memory, and count what it will cost; nothing is written.

    Raises:
        FusionError: the members' graphs cannot be joined.
    """
    graph, sharing = build_graph(plan)
    return cost_of(plan, graph, sharing)


def cost_of(plan: FusionPlan, graph: ir.Model, sharing: Sharing | None) -> Cost:
    """Count the cost of ``graph``, which was built by ``plan``."""
    members = [count_macs(member.path) for member in plan.running]
    known = [count for count in members if count is not None]
    free = any(isinstance(dim, str) for spec in plan.contract.inputs for dim in spec.shape[1:])
    return Cost(sum(known) if len(known) == len(members) else None, count_macs(graph), SEQUENCE_LENGTH if free else None, sharing)


def _millions(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e6:.4g} M"
