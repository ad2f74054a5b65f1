"""The verb ``verify``: whether a file still is, and still computes, what was proven when it was written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from monograph.errors import ConfigError, SourceError
from monograph.export.fusion import FUSION_BATCH_SIZES, FusionPlan, MembersApart
from monograph.export.fusion.cascade import CascadeApart, CascadePlan, draw_cases
from monograph.export.fusion.record import match_members, plan_again, read_record
from monograph.export.lowering import LOWERINGS, lowering_of
from monograph.export.parity import TOLERANCE, draw_batches, run_each
from monograph.models.contract import Contract
from monograph.models.data.rows import Rows
from monograph.models.digest import file_sha256, graph_sha256
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.pipelines.data import DataSpec
from monograph.pipelines.export import rows_for
from monograph.runtime.coverage import require_coverage
from monograph.runtime.golden import Check, Golden, GoldenBatch, LeftOut, check_batch, check_golden, read_golden
from monograph.runtime.on_target import SentSession, check_runs_here, open_on_target
from monograph.runtime.results import Evidence
from monograph.runtime.targets import Target, find_target

_SEED = 1
"""Another one than the proofs': members are compared on rows that no proof has seen."""


@dataclass(frozen=True)
class Verification:
    """What was found, on one target."""

    path: Path
    target: str
    evidence: Evidence
    changes: tuple[str, ...]
    """What is not as it was when the file was proven, each a sentence; the outputs may agree all the same."""
    golden: tuple[Check, ...]
    """The proof's batches run again; empty where the file holds none."""
    left_out: tuple[LeftOut, ...]
    """Batches of the proof that the file does not hold."""
    members: tuple[str, ...]
    """The members that were run apart, each by its name."""
    fresh: tuple[Check, ...]
    """The file beside the members run apart."""
    warnings: tuple[str, ...] = ()
    """What the target said while it ran."""

    @property
    def passed(self) -> bool:
        """True where nothing changed and every output is equal."""
        return not self.changes and all(check.passed for check in (*self.golden, *self.fresh))

    def describe(self) -> str:
        """Return the findings as text for people, the verdict last."""
        lines = [check.describe() for check in self.golden]
        for item in self.left_out:
            case = f", {item.case}" if item.case else ""
            lines.append(f"batch {item.batch_size}, {item.rows} rows{case}: not run again, {item.reason}")
        lines += [f"against {', '.join(self.members)} run apart: {check.describe()}" for check in self.fresh]
        lines += [f"{self.target}: {warning}" for warning in self.warnings]
        lines += self.changes
        checks = (*self.golden, *self.fresh)
        failed = sum(not check.passed for check in checks)
        count = f"{len(checks)} comparison{'s' if len(checks) != 1 else ''}"
        found = f"{failed} of {count} differ" if failed else f"{count} equal"
        changed = "the file was changed" if self.changes else "the file is as it was proven" if self.golden else ""
        verdict = "verified" if self.passed else "FAILED"
        where = f"{self.path} on {self.target} ({self.evidence.value})"
        return "\n".join([*lines, f"{verdict}: {where}: {found}{f', {changed}' if changed else ''}"])


def verify_model(
    model: str | Path,
    *,
    on: str = "cpu",
    members: Sequence[str | Path] = (),
    data: str | DataSpec | None = None,
    tolerance: float | None = None,
) -> Verification:
    """Run the proof that ``model`` holds again, on a target, and compare with the members' own files where they are given.

    Args:
        model: an ONNX file that monograph wrote.
        on: a target, see ``monograph targets``.
        members: the files that were fused, in any order: their SHA-256 is checked, then the fused graph is compared with
            them afresh at batch 1, 2, 5 and 16.
        data: DATA whose rows the comparison with members runs on; fresh random ones by default.
        tolerance: largest absolute error allowed, as a share of the largest absolute reference value; the proof's own by
            default.

    Raises:
        InputError: the file cannot be read, holds no proof that can be run again, or a member is not what was fused; or the
            target is not here, takes only what the file has yet to be lowered to, or has an instruction set that the proof does
            not cover.
        PlacementError: something else than the target would run the model.
    """
    path = Path(model)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, expected an .onnx file that monograph wrote, or a bundle with its manifest.json")
    if data is not None and not members:
        raise ConfigError("--data gives the rows on which members are compared: give the members by --members")
    if tolerance is not None and not tolerance >= 0:
        raise ConfigError(f"tolerance {tolerance:g}: give 0 or more")
    target = find_target(on)
    check_runs_here(target)
    file = read_onnx(path)
    _check_lowered(file, target)
    require_coverage(file, target)
    golden = read_golden(file.metadata, str(path))
    if not members and (golden is None or not golden.batches):
        raise SourceError(
            f"{path} holds no golden batches to run again: write it again with this monograph, "
            "or compare it with the files that were fused by --members"
        )
    session = open_on_target(path, file.contract, target)
    sent = session if isinstance(session, SentSession) else None
    if golden is not None and sent is not None:
        golden = _primary_only(golden, sent)
    allowed = tolerance if tolerance is not None else golden.tolerance if golden else None
    names, fresh, fresh_tolerance = _against_members(file, members, data, allowed)
    if sent is not None:
        sent.prepare([batch.inputs for batch in (*(golden.batches if golden else ()), *fresh)])
    return Verification(
        path=path,
        target=target.name,
        # The checks run the model: only then is known what a target like a GPU under WebGPU really was.
        golden=() if golden is None else check_golden(golden, session, tolerance),
        fresh=tuple(check for batch in fresh for check in check_batch(batch, session, fresh_tolerance)),
        evidence=(sent and sent.evidence) or target.evidence_here,
        changes=() if golden is None else changes_since_proof(golden, path),
        left_out=() if golden is None else golden.left_out,
        members=names,
        warnings=() if sent is None else sent.warnings,
    )


def verify_golden(path: Path, contract: Contract, golden: Golden, target: Target, tolerance: float) -> Verification:
    """Run golden batches that came beside the file ``path``, which is known to be as it was proven.

    Raises:
        SourceError: the target cannot load the file, or the batches are not for it.
        PlacementError: something else than the target would run it.
    """
    session = open_on_target(path, contract, target)
    sent = session if isinstance(session, SentSession) else None
    if sent is not None:
        golden = _primary_only(golden, sent)
        sent.prepare([batch.inputs for batch in golden.batches])
    return Verification(
        path=path,
        target=target.name,
        golden=check_golden(golden, session, tolerance),
        evidence=(sent and sent.evidence) or target.evidence_here,
        changes=(),
        left_out=golden.left_out,
        members=(),
        fresh=(),
        warnings=() if sent is None else sent.warnings,
    )


def _check_lowered(file: OnnxFile, target: Target) -> None:
    """Refuse a target that takes another form of the model, and a model that was compiled for another target."""
    lowered_by = lowering_of(file)
    compiled_for = LOWERINGS[lowered_by].target if lowered_by in LOWERINGS else None
    if compiled_for not in (None, target.name):
        raise ConfigError(f"{file.path.name} was compiled for {compiled_for}, which alone runs it: give --on {compiled_for}")
    if target.lowering is not None and lowered_by is None:
        raise ConfigError(
            f"{target.name} takes another form of {file.path.name}: monograph lower {file.path} --to {target.lowering} "
            "-o LOWERED.onnx, which is proven beside it; then verify that"
        )


def _primary_only(golden: Golden, session: SentSession) -> Golden:
    """Leave out what a target that is sent its rows does not give back."""
    name = session.contract.output.name
    others = {other for batch in golden.batches for other in batch.expected} - {name}
    left_out = [
        LeftOut(batch.batch_size, batch.rows, batch.case, f"{session.target.name} gives {name} only, not {', '.join(others)}")
        for batch in golden.batches
        if others
    ]
    batches = [replace(batch, expected={name: batch.expected[name]}) for batch in golden.batches if name in batch.expected]
    return replace(golden, batches=tuple(batches), left_out=(*golden.left_out, *left_out))


def changes_since_proof(golden: Golden, path: Path) -> tuple[str, ...]:
    """Return what was changed since the proof: a change may be too small, or too rare, for any output to show it."""
    changes = []
    if (found := graph_sha256(path)) != golden.graph_sha256:
        changes.append(
            f"the graph is not the one that was proven: SHA-256 {found[:12]}…, then {golden.graph_sha256[:12]}…: build it again"
        )
    for name, expected in golden.data_files.items():
        data_file = path.parent / name
        if not data_file.is_file():
            changes.append(f"the data file {name} is missing: copy it beside the model")
        elif (found := file_sha256(data_file)) != expected:
            changes.append(f"the data file {name} was changed: SHA-256 {found[:12]}…, then {expected[:12]}…: copy it again")
    return tuple(changes)


def _against_members(
    file: OnnxFile, members: Sequence[str | Path], data: str | DataSpec | None, tolerance: float | None
) -> tuple[tuple[str, ...], list[GoldenBatch], float]:
    """Run the members apart: their names, batches with what they give together, and the error allowed; no batches without."""
    if not members:
        return (), [], TOLERANCE
    record = read_record(file)
    if record is None:
        raise ConfigError(f"{file.path} is no fusion, so it has no members: leave --members out")
    plan = plan_again(record, file, match_members(record, [read_onnx(Path(member)) for member in members]))
    rows = rows_for(data, plan.contract, plan.tokenizer_json)
    allowed = max(TOLERANCE, plan.rounding) if tolerance is None else tolerance
    names = tuple(member.name for member in record.members)
    batches = _cascade_batches(plan, rows) if isinstance(plan, CascadePlan) else _fusion_batches(plan, rows)
    return names, batches, allowed


def _fusion_batches(plan: FusionPlan, rows: Rows | None) -> list[GoldenBatch]:
    batches = list(draw_batches(plan.contract, rows, FUSION_BATCH_SIZES, _SEED))
    outputs = run_each(MembersApart(plan), [batch.inputs for batch in batches])
    return [replace(batch, expected=expected) for batch, expected in zip(batches, outputs, strict=True)]


def _cascade_batches(plan: CascadePlan, rows: Rows | None) -> list[GoldenBatch]:
    apart = CascadeApart(plan)
    reference = apart.with_thresholds(plan.thresholds)
    cases = draw_cases(plan, apart, rows, FUSION_BATCH_SIZES, own_thresholds=True, seed=_SEED)
    return [replace(batch, expected=reference(batch.inputs)) for _, batch in cases]
