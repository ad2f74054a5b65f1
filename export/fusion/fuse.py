"""Fuse: plan, build, prove, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from monograph.errors import FusionError, WorkerError
from monograph.export.fusion.align import MISSING, missing_value
from monograph.export.fusion.build import build_graph
from monograph.export.fusion.forms import FORMS
from monograph.export.fusion.horizontal import Batching, batching_of
from monograph.export.fusion.macs import count_macs
from monograph.export.fusion.plan import FusionPlan, Member
from monograph.export.fusion.sharing import Sharing
from monograph.export.parity import TOLERANCE, ParityProof
from monograph.export.trace import write_proven
from monograph.models.contract import Kind
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import LARGEST_INLINE_BYTES, OnnxFile, read_onnx
from monograph.runtime.session import Session, open_session

Array = npt.NDArray[Any]
FUSION_KEY = "monograph.fusion"
FUSION_BATCH_SIZES = (1, 2, 5, 16)
"""A cascade is proven at the same ones."""


@dataclass(frozen=True)
class Fused:
    """One graph of all members, proven equal to the members run apart."""

    file: OnnxFile
    plan: FusionPlan
    proof: ParityProof
    node_count: int
    sharing: Sharing | None
    """What sharing saved; None where the plan does not share."""
    batching: Batching | None = None
    """What runs as one batch; None where members run apart."""


def fuse(
    plan: FusionPlan,
    path: Path,
    *,
    rows: Rows | None = None,
    batch_sizes: Sequence[int] = FUSION_BATCH_SIZES,
    tolerance: float = TOLERANCE,
) -> Fused:
    """Build the graph of ``plan``, prove it equal to the members run apart, and only then write ``path``.

    Raises:
        FusionError: the members' graphs cannot be joined.
        ParityError: the fused graph does not compute what the members do; nothing is written.
    """
    graph, sharing = build_graph(plan)
    node_count = sum(1 for _ in graph.graph.all_nodes())
    proof = write_proven(
        graph,
        path,
        plan.contract,
        MembersApart(plan),
        names=("the members run apart", path.name),
        rows=rows,
        batch_sizes=batch_sizes,
        tolerance=max(tolerance, plan.rounding),
        tokenizer_json=plan.tokenizer_json,
        metadata={FUSION_KEY: plan.to_json()},
    )
    return Fused(read_onnx(path), plan, proof, node_count, sharing, batching_of(graph))


@dataclass(frozen=True)
class Cost:
    """What a fusion will cost, known before it is written."""

    member_macs: int | None
    """Multiply-accumulates of one row, all members added up; None where they cannot be counted."""
    fused_macs: int | None
    """Of the fused graph."""
    sharing: Sharing | None
    """What sharing saves; None where the plan does not share."""

    def describe(self) -> str:
        """Return one line for people, two with sharing."""
        counts = [f"{count / 1e6:.4g} M" if count is not None else "unknown" for count in (self.member_macs, self.fused_macs)]
        line = f"  cost     multiply-accumulates a row: {counts[1]}, of the members apart {counts[0]}"
        return "\n".join([line] + ([f"  {self.sharing.describe()}"] if self.sharing else []))


def estimate_cost(plan: FusionPlan) -> Cost:
    """Build the graph of ``plan`` in memory, and count what it will cost; nothing is written.

    Raises:
        FusionError: the members' graphs cannot be joined.
    """
    graph, sharing = build_graph(plan)
    members = [count_macs(member.path) for member in plan.running]
    size_bytes = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value is not None)
    fused = count_macs(ir.to_proto(graph)) if size_bytes <= LARGEST_INLINE_BYTES else None
    return Cost(sum(count for count in members if count is not None) if None not in members else None, fused, sharing)


class MembersApart:
    """The reference of the proof: each member's own file in a session of its own, combined in numpy in float64.

    Raises:
        SourceError: ONNX Runtime cannot load a member.
    """

    def __init__(self, plan: FusionPlan) -> None:
        self.plan = plan
        self.sessions = [open_session(member.path, spinning=False) for member in plan.running]

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute one batch.

        Raises:
            FusionError: a member cannot be run on these inputs, or members' outputs differ in shape.
        """
        form = FORMS[self.plan.form]
        arrays: list[Array] = []
        for member, session in zip(self.plan.running, self.sessions, strict=True):
            output = run_member(member, session, inputs)
            if arrays and not form.joins_features and output.shape != arrays[0].shape:
                raise FusionError(
                    f"{member.name} gives an array of shape {output.shape} where {self.plan.running[0].name} gives "
                    f"{arrays[0].shape}: only outputs of one shape can be fused"
                )
            arrays.append(form.convert(output, member.kind))
        return {self.plan.contract.output.name: form.combine(arrays, self.plan.mixing)}


def run_member(member: Member, session: Session, inputs: Mapping[str, Array]) -> Array:
    """Run one member on the shared inputs; its classes come back in the fused order."""
    feed = {link.member_input: link.apply(inputs[link.shared_input]) for link in member.input_links}
    try:
        output = session(feed)[member.output]
    except WorkerError as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
        raise FusionError(
            f"{member.name} does not run on {shapes}, which its contract allows: {error}; "
            "export it again, or, where it takes certain values only, give real rows by --data"
        ) from error
    if member.temperature != 1:
        output = output.astype(np.float64) / member.temperature
    return in_fused_order(output, member.class_positions, member.name, member.kind)


def in_fused_order(output: Array, class_positions: Sequence[int] | None, name: str, kind: Kind) -> Array:
    """Return a member's output ``[..., c]`` with its classes in the fused order; those it lacks have probability 0."""
    if class_positions is None:
        return output
    known_count = sum(position != MISSING for position in class_positions)
    if output.shape[-1:] != (known_count,):
        raise FusionError(f"{name} gives an array of shape {output.shape}, but its contract names {known_count} classes")
    if known_count < len(class_positions):
        padding = [(0, 0)] * (output.ndim - 1) + [(0, 1)]
        output = np.pad(output, padding, constant_values=missing_value(kind))  # which MISSING, the last column, then reads
    return output[..., list(class_positions)]
