"""The plan of a cascade: everything that is decided, and what it will cost, before a graph is touched."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from monograph.errors import FusionError
from monograph.export.fusion.align import MISSING
from monograph.export.fusion.cascade.fit import CascadeFit, find_gate
from monograph.export.fusion.cascade.gates import GATES
from monograph.export.fusion.cascade.lint import RowFinding, lint_rows
from monograph.export.fusion.macs import count_macs
from monograph.export.fusion.plan import Member, plan_fusion
from monograph.models.contract import Contract, Kind
from monograph.models.onnx_file import OnnxFile

DEFAULT_GATE = "max-probability"


@dataclass(frozen=True)
class CascadeCost:
    """What a row costs, in multiply-accumulates, as a share of the last member alone."""

    member_macs: tuple[int | None, ...]
    """None where a member's cannot be counted."""
    expected: float | None
    """By the shares of rows that reached each member where the thresholds were fitted."""
    worst: float | None
    """Where every row goes through all members."""

    def describe(self) -> str:
        """Return one line for people."""
        macs = ", ".join("unknown" if count is None else f"{count / 1e6:.4g} M" for count in self.member_macs)
        if self.worst is None:
            return f"multiply-accumulates a row: {macs}; relative cost unknown"
        expected = "unknown without a fit" if self.expected is None else f"{self.expected:.3f}"
        return (
            f"multiply-accumulates a row: {macs}; against the last member alone: expected {expected}, worst case {self.worst:.3f}"
        )


@dataclass(frozen=True)
class CascadePlan:
    """What will be built: members from small to large, the gate, a threshold a stage, a temperature a member."""

    gate: str
    thresholds: tuple[float, ...]
    """A row goes on to the next member where its score is below; one a member but the last."""
    temperatures: tuple[float, ...]
    members: tuple[Member, ...]
    contract: Contract
    opset: int
    rounding: float
    """Share of the output's scale that the members' own outputs do not resolve: 0 unless one gives float16."""
    class_count: int
    cost: CascadeCost
    findings: tuple[tuple[str, RowFinding], ...]
    """Operators that may keep a member from taking a part of the rows, each with the member's name."""
    fit: CascadeFit | None
    tokenizer_json: str | None
    notes: tuple[str, ...]
    """What was assumed or decided, each a sentence for the user."""
    share: bool = True
    """Take from an earlier member what a later one computes as it does."""

    def describe(self) -> str:
        """Return the plan as text for people."""
        lines = [f"cascade of {len(self.members)} members by {self.gate} ({GATES[self.gate].formula}), opset {self.opset}"]
        lines += [f"  inputs   {', '.join(spec.describe() for spec in self.contract.inputs)}"]
        lines += [f"  output   {self.contract.output.describe()}, {self.contract.kind.value}"]
        for stage, (member, temperature) in enumerate(zip(self.members, self.temperatures, strict=True)):
            takes = "all rows" if stage == 0 else f"rows of which {self.members[stage - 1].name} is less sure than"
            bound = "" if stage == 0 else f" {self.thresholds[stage - 1]:.4g}"
            reach = f", {self.fit.shares[stage]:.1%} of rows in the fit" if self.fit else ""
            lines.append(f"  {member.name}: {takes}{bound}{reach}; temperature {temperature:.4g}")
        lines.append(f"  cost     {self.cost.describe()}")
        lines += [f"  note: {name}: {finding.describe()}; the proof decides" for name, finding in self.findings]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    def to_json(self) -> str:
        """Return what goes under the metadata key ``monograph.fusion``."""
        members = [{"name": member.name, "file": member.path.name, "sha256": member.sha256} for member in self.members]
        record = {
            "form": "cascade",
            "gate": self.gate,
            "thresholds": self.thresholds,
            "temperatures": self.temperatures,
            "members": members,
            "fit": asdict(self.fit) if self.fit else None,
        }
        return json.dumps(record)


def plan_cascade(
    files: Sequence[OnnxFile],
    *,
    names: Sequence[str] | None = None,
    gate: str | None = None,
    thresholds: Sequence[float] | None = None,
    fit: CascadeFit | None = None,
    share: bool = True,
) -> CascadePlan:
    """Decide how ``files``, from small to large, become a cascade; with thresholds or with a fit.

    The gate is the fit's, else max-probability; without a fit every temperature is 1. The output is logits where all
    members give logits, each divided by its temperature, else probabilities.

    Raises:
        FusionError: they cannot become a cascade: no common inputs or classes, no classes at all, a batch size fixed above
            one, an operator that works on the batch as a whole; or thresholds or gate cannot be used.
    """
    for file in files:
        if not file.contract.kind.has_classes:
            raise FusionError(
                f"{file.path.name} gives {file.contract.kind.value}: "
                "a cascade takes classifiers, whose output tells how sure they are"
            )
    all_logits = all(file.contract.kind is Kind.LOGITS for file in files)
    fusion = plan_fusion(files, names=names, combine="logits" if all_logits else "probs")
    gate = _checked_gate(gate, fit)
    members = fusion.members
    class_count = _class_count(fusion.contract)
    _check_rows_are_free(fusion.contract, files, members)
    for member in members:
        if member.class_positions is not None and MISSING in member.class_positions:
            raise FusionError(f"{member.name} does not know all classes: in a cascade every member must, for it may answer alone")
    chosen = _checked_thresholds(thresholds, fit, len(members))
    findings = _find_row_mixing(files, members) if fusion.contract.batch_is_dynamic else ()
    return CascadePlan(
        gate=gate,
        thresholds=chosen,
        temperatures=fit.temperatures if fit else (1.0,) * len(members),
        members=members,
        contract=fusion.contract,
        opset=fusion.opset,
        rounding=fusion.rounding,
        class_count=class_count,
        cost=_cost(files, fit),
        findings=findings,
        fit=fit,
        tokenizer_json=fusion.tokenizer_json,
        notes=fusion.notes + ((fit.describe(),) if fit else ("thresholds are as given, not fitted",)),
        share=share,
    )


def _checked_gate(gate: str | None, fit: CascadeFit | None) -> str:
    if gate is not None and fit is not None and gate != fit.gate:
        raise FusionError(f"gate {gate!r} is not {fit.gate!r}, for which the thresholds were fitted: fit again for {gate!r}")
    return find_gate(gate or (fit.gate if fit else DEFAULT_GATE)).name


def _checked_thresholds(thresholds: Sequence[float] | None, fit: CascadeFit | None, member_count: int) -> tuple[float, ...]:
    if (thresholds is None) == (fit is None):
        got = "neither" if fit is None else "both"
        raise FusionError(f"{got} of thresholds and a fit given: a cascade needs one of them, --threshold T or --fit DATA")
    chosen = tuple(float(threshold) for threshold in (fit.thresholds if fit else thresholds or ()))
    written = ", ".join(f"{threshold:g}" for threshold in chosen)
    if len(chosen) != member_count - 1:
        raise FusionError(
            f"{len(chosen)} thresholds ({written}) for {member_count} members: give {member_count - 1}, one a member but the last"
        )
    if not all(math.isfinite(threshold) and threshold >= 0 for threshold in chosen):
        raise FusionError(f"thresholds {written} are not all 0 or more: scores run from 0, unsure, to 1, sure")
    return chosen


def _class_count(contract: Contract) -> int:
    if len(contract.output.shape) != 2:
        raise FusionError(f"members give {contract.output.describe()}: a cascade takes one row of classes for each row of input")
    if (contract.class_count or 0) < 2:
        raise FusionError(
            f"members give {contract.output.describe()}: a cascade needs to know how many classes there are, two or more; "
            "export them again with class names"
        )
    return contract.class_count or 0


def _check_rows_are_free(contract: Contract, files: Sequence[OnnxFile], members: Sequence[Member]) -> None:
    """A part of the rows can be taken of a free batch; a batch fixed at one row is sent on as a whole."""
    for spec in contract.inputs:
        if not spec.shape:
            raise FusionError(f"input {spec.describe()} has no rows, so none can be sent on: export the members again")
        if spec.batch_is_dynamic or spec.shape[0] == 1:
            continue
        fixed = [
            member.name
            for member, file in zip(members, files, strict=True)
            if any(not own.batch_is_dynamic for own in file.contract.inputs)
        ]
        raise FusionError(
            f"{' and '.join(fixed)} takes {spec.describe()}, a fixed batch, of which no part can be sent on: "
            "export it again with a free batch size"
        )
    if len({spec.batch_is_dynamic for spec in contract.inputs}) > 1:
        specs = ", ".join(spec.describe() for spec in contract.inputs)
        raise FusionError(f"inputs {specs} differ in whether the batch is free: export the members again with a free batch size")


def _find_row_mixing(files: Sequence[OnnxFile], members: Sequence[Member]) -> tuple[tuple[str, RowFinding], ...]:
    """The first member always gets all rows; the others get a part of them."""
    findings = [
        (member.name, finding) for member, file in zip(members[1:], files[1:], strict=True) for finding in lint_rows(file.path)
    ]
    for name, finding in findings:
        if finding.certain:
            raise FusionError(f"{name} cannot take a part of the rows: {finding.describe()}; export it again in eval mode")
    return tuple(findings)


def _cost(files: Sequence[OnnxFile], fit: CascadeFit | None) -> CascadeCost:
    macs = tuple(count_macs(file.path) for file in files)
    known = [count for count in macs if count is not None]
    if len(known) < len(macs) or not known[-1]:
        return CascadeCost(macs, None, None)
    expected = sum(share * count for share, count in zip(fit.shares, known, strict=True)) / known[-1] if fit else None
    return CascadeCost(macs, expected, sum(known) / known[-1])
