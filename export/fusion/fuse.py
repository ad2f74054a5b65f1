"""Fuse: plan, build, prove, write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import FusionError, WorkerError
from monograph.export.fusion.align import MISSING, missing_output, missing_value
from monograph.export.fusion.build import build_graph
from monograph.export.fusion.cost import Cost, cost_of
from monograph.export.fusion.forms import FORMS
from monograph.export.fusion.horizontal import Batching, batching_of
from monograph.export.fusion.plan import FusionPlan, Member
from monograph.export.parity import TOLERANCE, Computation, ParityProof, open_when_run, run_each
from monograph.export.trace import write_proven
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile, read_onnx, size_on_disk
from monograph.models.seen import NOTHING_SEEN, SeenRows, seen_metadata
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
    teaching: Fused | None = None
    """The teaching graph that was written beside it."""


def fuse(
    plan: FusionPlan,
    path: Path,
    *,
    rows: Rows | None = None,
    batch_sizes: Sequence[int] = FUSION_BATCH_SIZES,
    tolerance: float = TOLERANCE,
    shipped: Path | None = None,
    seen: SeenRows = NOTHING_SEEN,
) -> Fused:
    """Build the graph of ``plan``, prove it equal to the members run apart, and only then write ``path``.

    A teaching graph stands beside the graph ``shipped``, written before: its fused output is proven equal to what that gives,
    the others to what each member gives alone. What its members have ``seen``, and the fit of their weights, it says too.

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
        members if shipped is None else _BesideShipped(shipped, members),
        names=("the members run apart" if shipped is None else f"{shipped.name} and the members run apart", path.name),
        rows=rows,
        batch_sizes=batch_sizes,
        tolerance=max(tolerance, plan.rounding),
        tokenizer_json=plan.tokenizer_json,
        metadata={FUSION_KEY: plan.to_json()} | seen_metadata(seen, path),
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
        return self._combine([_outputs_over(member, session, [inputs])[0] for member, session in members])

    def over(self, batches: Sequence[Mapping[str, Array]]) -> Iterable[dict[str, Array]]:
        """Compute batch by batch, or, where members run apart, all batches member by member; raises what a call raises."""
        if not self.too_large:
            return map(self, batches)
        members = zip(self.plan.running, self.sessions, strict=True)
        outputs = [_outputs_over(member, session, batches) for member, session in members]
        return [self._combine(of_one_batch) for of_one_batch in zip(*outputs, strict=True)]

    def _combine(self, outputs: Sequence[Array]) -> dict[str, Array]:
        form, running = FORMS[self.plan.form], self.plan.running
        arrays: list[Array] = []
        for member, raw in zip(running, outputs, strict=True):
            output = _tempered(member, raw)
            if arrays and not form.joins_features and output.shape != arrays[0].shape:
                raise FusionError(
                    f"{member.name} gives an array of shape {output.shape} where {running[0].name} gives "
                    f"{arrays[0].shape}: only outputs of one shape can be fused"
                )
            arrays.append(form.convert(output, member.kind))
        fused = {self.plan.contract.output.name: form.combine(arrays, self.plan.mixing)}
        return fused | {
            spec.name: in_fused_order(raw, member.class_positions, member.name, missing_output(member.kind))
            for spec, member, raw in zip(self.plan.member_specs, running, outputs, strict=False)
        }


class _BesideShipped:
    """The reference of a teaching graph: the fused output as the shipped graph gives it, each member's own run apart."""

    def __init__(self, shipped: Path, members: MembersApart) -> None:
        self.members = members
        self.shipped: Computation = ApartSession(shipped) if members.too_large else open_when_run(shipped)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute one batch."""
        return next(iter(self.over([inputs])))

    def over(self, batches: Sequence[Mapping[str, Array]]) -> Iterable[dict[str, Array]]:
        """Compute all batches, by the members first: what they refuse, they tell better."""
        apart = list(self.members.over(batches))
        for own, fused in zip(apart, run_each(self.shipped, batches), strict=True):
            yield own | {name: array for name, array in fused.items() if name in own}


def run_member(member: Member, session: Session | ApartSession, inputs: Mapping[str, Array]) -> Array:
    """Run one member on the shared inputs; its output comes back at its temperature, classes in the fused order.

    Raises:
        FusionError: it cannot be run on them.
    """
    return _tempered(member, _outputs_over(member, session, [inputs])[0])


def _outputs_over(member: Member, session: Session | ApartSession, batches: Sequence[Mapping[str, Array]]) -> list[Array]:
    """Return what one member gives for batches of the shared inputs, loaded once, as it gives it."""
    feeds = [{link.member_input: link.apply(inputs[link.shared_input]) for link in member.input_links} for inputs in batches]
    try:
        return [output[member.output] for output in session.over(feeds)]
    except WorkerError as error:
        shapes = " or ".join(", ".join(f"{name} {list(array.shape)}" for name, array in feed.items()) for feed in feeds)
        raise FusionError(
            f"{member.name} does not run on {shapes}, which its contract allows: {error}; "
            "export it again, or, where it takes certain values only, give real rows by --data"
        ) from error


def _tempered(member: Member, output: Array) -> Array:
    """Return what goes into the mixture: the output at the member's temperature, classes in the fused order."""
    if member.temperature != 1:
        output = output.astype(np.float64) / member.temperature
    return in_fused_order(output, member.class_positions, member.name, missing_value(member.kind))


def in_fused_order(output: Array, class_positions: Sequence[int] | None, name: str, missing: float) -> Array:
    """Return a member's output ``[..., c]`` with its classes in the fused order; those it lacks are given as ``missing``."""
    if class_positions is None:
        return output
    known_count = sum(position != MISSING for position in class_positions)
    if output.shape[-1:] != (known_count,):
        raise FusionError(f"{name} gives an array of shape {output.shape}, but its contract names {known_count} classes")
    if known_count < len(class_positions):
        padding = [(0, 0)] * (output.ndim - 1) + [(0, 1)]
        output = np.pad(output, padding, constant_values=missing)  # which MISSING, the last column, then reads
    return output[..., list(class_positions)]
