"""The plan of a fused file, made again from its record and the members' files, so that it can be proven afresh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnx import numpy_helper

from monograph.errors import FusionError, SourceError
from monograph.export.fusion.cascade import CascadePlan, plan_cascade
from monograph.export.fusion.forms import FORMS, Stacking
from monograph.export.fusion.fuse import FUSION_KEY
from monograph.export.fusion.plan import FusionPlan, check_temperatures, plan_fusion
from monograph.export.fusion.teaching import with_member_outputs
from monograph.export.fusion.weights import WeightFit
from monograph.models.bounded import parse_json
from monograph.models.contract import Kind
from monograph.models.onnx_file import OnnxFile
from monograph.models.onnx_lazy import load_proto

_CASCADE = "cascade"


@dataclass(frozen=True)
class RecordedMember:
    """What a fused file says of one of its members."""

    name: str
    file: str
    sha256: str
    weight: float | None
    """None in a cascade."""
    class_weights: tuple[float, ...] | None
    """One a class, where the form has them."""
    output: str | None
    """What it gives by itself, in a teaching graph; None elsewhere."""
    kind: Kind | None
    """Of that output."""


@dataclass(frozen=True)
class MemberOutput:
    """What one member gives by itself in a teaching graph, and how it counts in the fusion."""

    output: str
    """Name of the output, float32, classes in the fused order, before temperature and weight."""
    kind: Kind
    weight: float | None
    """None where members are not mixed by weights, but by a fitted combiner."""
    temperature: float
    """By which its logits are divided before they are mixed."""
    class_weights: tuple[float, ...] | None = None
    """One a class, where the form has them; ``weight`` is then their mean."""


@dataclass(frozen=True)
class FusionRecord:
    """What a fused file says of how it was made: the metadata ``monograph.fusion``."""

    form: str
    members: tuple[RecordedMember, ...]
    temperatures: tuple[float, ...]
    thresholds: tuple[float, ...]
    gate: str | None
    fit: Mapping[str, Any] | None
    """Fields of :class:`WeightFit` but the combiner, whose weights stand in the graph."""
    stacking_sha256: str | None


def read_record(file: OnnxFile) -> FusionRecord | None:
    """Return what ``file`` says of its members; None for a file that is no fusion.

    Raises:
        SourceError: the record is damaged.
    """
    if FUSION_KEY not in file.metadata:
        return None
    try:
        record = parse_json(file.metadata[FUSION_KEY])
        members = tuple(
            RecordedMember(
                str(item["name"]),
                str(item["file"]),
                str(item["sha256"]),
                _number(item.get("weight")),
                tuple(map(float, item["class_weights"])) if "class_weights" in item else None,
                str(item["output"]) if "output" in item else None,
                Kind(item["kind"]) if "kind" in item else None,
            )
            for item in record["members"]
        )
        temperatures = record.get("temperatures") or [item.get("temperature", 1.0) for item in record["members"]]
        return FusionRecord(
            form=str(record["form"]),
            members=members,
            temperatures=tuple(map(float, temperatures)),
            thresholds=tuple(map(float, record.get("thresholds") or ())),
            gate=record.get("gate"),
            fit=record.get("fit"),
            stacking_sha256=record.get("stacking_sha256"),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(file, error) from error


def member_outputs(file: OnnxFile) -> tuple[MemberOutput, ...]:
    """Return what each member of a teaching graph gives by itself, in the members' order; nothing for other files.

    Members of weight 0 are not in the graph.

    Raises:
        SourceError: the record is damaged, or speaks of an output that the contract does not name.
    """
    record = read_record(file)
    if record is None:
        return ()
    promised = {spec.name for spec in file.contract.outputs}
    given = []
    for member, temperature in zip(record.members, record.temperatures, strict=False):
        if member.output is None or member.kind is None:
            continue
        if member.output not in promised:
            raise SourceError(
                f"{file.path}: its metadata {FUSION_KEY!r} name the output {member.output!r}, its contract "
                f"{', '.join(sorted(promised))}: fuse again with --member-outputs"
            )
        weight = None if record.stacking_sha256 else member.weight
        given.append(MemberOutput(member.output, member.kind, weight, temperature, member.class_weights))
    return tuple(given)


def _damaged(file: OnnxFile, error: Exception) -> SourceError:
    reason = " ".join(str(error).split())[:80]
    return SourceError(f"{file.path}: metadata {FUSION_KEY!r} is damaged ({type(error).__name__} {reason}): fuse again")


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def match_members(record: FusionRecord, files: Sequence[OnnxFile]) -> list[OnnxFile]:
    """Return the file of each recorded member, found by its SHA-256, in whatever order they are given.

    Raises:
        FusionError: a member's file is not among ``files``, or one of them is no member's.
    """
    by_digest = {file.sha256: file for file in files}
    known = {member.sha256 for member in record.members}
    strangers = [file for file in files if file.sha256 not in known]
    missing = [member for member in record.members if member.sha256 not in by_digest]
    if strangers:
        told = ", ".join(
            f"{member.name} is {member.file} with SHA-256 {member.sha256[:12]}…" for member in missing or record.members
        )
        raise FusionError(
            f"{strangers[0].path} has SHA-256 {strangers[0].sha256[:12]}…, which no member had when they were fused ({told}): "
            "give the files that were fused, or fuse again"
        )
    if missing:
        raise FusionError(
            f"member {missing[0].name} ({missing[0].file}, SHA-256 {missing[0].sha256[:12]}…) is not given: give all "
            f"{len(record.members)} members"
        )
    return [by_digest[member.sha256] for member in record.members]


def plan_again(record: FusionRecord, fused: OnnxFile, members: Sequence[OnnxFile]) -> FusionPlan | CascadePlan:
    """Return the plan by which ``fused`` was made; ``members`` in the record's order.

    Raises:
        FusionError: the members cannot be fused so.
        SourceError: ``fused`` lacks the fitted combiner that its record speaks of, or has another one; or its record holds
            something else than numbers.
    """
    try:
        return _plan_again(record, fused, members)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise _damaged(fused, error) from error


def _plan_again(record: FusionRecord, fused: OnnxFile, members: Sequence[OnnxFile]) -> FusionPlan | CascadePlan:
    names = [member.name for member in record.members]
    if record.form == _CASCADE:
        cascade = plan_cascade(members, names=names, gate=record.gate, thresholds=record.thresholds)
        contracts = [file.contract for file in members]
        return replace(cascade, temperatures=check_temperatures(record.temperatures, contracts, names))
    if record.form not in FORMS:
        raise FusionError(f"{fused.path.name} is a fusion of the form {record.form!r}, which has no members to run apart")
    weights = None if FORMS[record.form].joins_features else [member.weight or 0.0 for member in record.members]
    fit = _fit_with_combiner(record, fused) if record.stacking_sha256 else None
    by_class = [member.class_weights for member in record.members if member.class_weights is not None]
    plan = plan_fusion(
        members,
        names=names,
        weights=None if fit or by_class else weights,
        class_weights=by_class or None,
        combine=record.form,
        temperatures=None if fit else record.temperatures,
        fit=fit,
    )
    return with_member_outputs(plan) if any(member.output for member in record.members) else plan


def _fit_with_combiner(record: FusionRecord, fused: OnnxFile) -> WeightFit:
    """Return the fit that was recorded, with the combiner's weights as the graph holds them."""
    stacking = _read_stacking(fused)
    if stacking.sha256() != record.stacking_sha256:
        raise SourceError(f"{fused.path}: the combiner in the graph is not the one that was fitted: fuse again")
    return WeightFit(**(dict(record.fit or {}) | {"stacking": stacking, "gain": None}))


def _read_stacking(fused: OnnxFile) -> Stacking:
    """Return the weights of the Gemm that gives the output."""
    proto = load_proto(fused.path)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    output = fused.contract.output.name
    gemm = next((node for node in proto.graph.node if output in node.output and node.op_type == "Gemm"), None)
    names = list(gemm.input[1:]) if gemm else []
    if len(names) != 2 or not set(names) <= set(tensors):
        raise SourceError(f"{fused.path}: the graph does not end in the combiner that was fitted: fuse again")
    folder = str(fused.path.absolute().parent)
    matrix, bias = (numpy_helper.to_array(tensors[name], base_dir=folder) for name in names)
    return Stacking(tuple(map(tuple, matrix.tolist())), tuple(bias.tolist()))
