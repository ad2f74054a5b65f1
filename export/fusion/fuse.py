"""Fuse: plan, build, prove, write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import FusionError, WorkerError
from monograph.export.fusion.align import MISSING, missing_value
from monograph.export.fusion.build import build_graph
from monograph.export.fusion.cost import Cost, cost_of
from monograph.export.fusion.forms import FORMS
from monograph.export.fusion.horizontal import Batching, batching_of
from monograph.export.fusion.plan import FusionPlan, Member
from monograph.export.parity import TOLERANCE, ParityProof, open_when_run
from monograph.export.trace import write_proven
from monograph.models.contract import Kind
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile, read_onnx, size_on_disk
from monograph.runtime.apart import ApartSession, open_sessions, too_large
from monograph.runtime.session import Session

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
    cost: Cost
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
    cost = cost_of(plan, graph, sharing)
    members = MembersApart(plan)
    proof = write_proven(
        graph,
        path,
        plan.contract,
        members,
        names=("the members run apart", path.name),
        rows=rows,
        batch_sizes=batch_sizes,
        tolerance=max(tolerance, plan.rounding),
        tokenizer_json=plan.tokenizer_json,
        metadata={FUSION_KEY: plan.to_json()},
        candidate=ApartSession if members.too_large else open_when_run,
    )
    return Fused(read_onnx(path), plan, proof, node_count, cost, batching_of(graph))


class MembersApart:
    """The reference of the proof: each member's own file in a session of its own, combined in numpy in float64.

    Raises:
        SourceError: ONNX Runtime cannot load a member.
    """

    def __init__(self, plan: FusionPlan) -> None:
        self.plan = plan
        paths = [member.path for member in plan.running]
        size_bytes = sum(map(size_on_disk, paths))
        self.too_large = too_large(size_bytes)
        self.sessions = open_sessions(paths, size_bytes)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute one batch.

        Raises:
            FusionError: a member cannot be run on these inputs, or members' outputs differ in shape.
        """
        members = zip(self.plan.running, self.sessions, strict=True)
        return self._combine([run_member(member, session, inputs) for member, session in members])

    def over(self, batches: Sequence[Mapping[str, Array]]) -> Iterable[dict[str, Array]]:
        """Compute batch by batch, or, where members run apart, all batches member by member; raises what a call raises."""
        if not self.too_large:
            return map(self, batches)
        members = zip(self.plan.running, self.sessions, strict=True)
        outputs = [run_member_over(member, session, batches) for member, session in members]
        return [self._combine(of_one_batch) for of_one_batch in zip(*outputs, strict=True)]

    def _combine(self, outputs: Sequence[Array]) -> dict[str, Array]:
        form = FORMS[self.plan.form]
        arrays: list[Array] = []
        for member, output in zip(self.plan.running, outputs, strict=True):
            if arrays and not form.joins_features and output.shape != arrays[0].shape:
                raise FusionError(
                    f"{member.name} gives an array of shape {output.shape} where {self.plan.running[0].name} gives "
                    f"{arrays[0].shape}: only outputs of one shape can be fused"
                )
            arrays.append(form.convert(output, member.kind))
        return {self.plan.contract.output.name: form.combine(arrays, self.plan.mixing)}


def run_member(member: Member, session: Session | ApartSession, inputs: Mapping[str, Array]) -> Array:
    """Run one member on the shared inputs; its classes come back in the fused order.

    Raises:
        FusionError: it cannot be run on them.
    """
    return run_member_over(member, session, [inputs])[0]


def run_member_over(member: Member, session: Session | ApartSession, batches: Sequence[Mapping[str, Array]]) -> list[Array]:
    """Run one member on batches of the shared inputs, loaded once; raises what :func:`run_member` raises."""
    feeds = [{link.member_input: link.apply(inputs[link.shared_input]) for link in member.input_links} for inputs in batches]
    try:
        outputs = [output[member.output] for output in session.over(feeds)]
    except WorkerError as error:
        shapes = " or ".join(", ".join(f"{name} {list(array.shape)}" for name, array in feed.items()) for feed in feeds)
        raise FusionError(
            f"{member.name} does not run on {shapes}, which its contract allows: {error}; "
            "export it again, or, where it takes certain values only, give real rows by --data"
        ) from error
    if member.temperature != 1:
        outputs = [output.astype(np.float64) / member.temperature for output in outputs]
    return [in_fused_order(output, member.class_positions, member.name, member.kind) for output in outputs]


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
