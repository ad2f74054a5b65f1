"""From the folders of finished steps to the report of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from monograph.export.parity import ParityProof
from monograph.models.data.rows import Rows
from monograph.pipelines.config import PipelineConfig
from monograph.pipelines.records import read_record
from monograph.pipelines.report import (
    AdaptationSummary,
    BundleSummary,
    Contender,
    FusionSummary,
    MemberWeight,
    Proof,
    RankingGain,
    Ratio,
    Report,
    Role,
    StudentSummary,
    TrainingCurve,
)
from monograph.pipelines.report.gate import verdict_summary
from monograph.pipelines.run.fusion import FUSED, RECORD, FusedRecord
from monograph.pipelines.run.measuring import MEASUREMENT, OUTPUTS, groups_of, some_rows
from monograph.pipelines.run.members import ADAPTED, CURVE, PROOF
from monograph.pipelines.run.shipping import BUNDLED, read_verdict
from monograph.pipelines.run.step import TEST
from monograph.pipelines.run.student import STUDENT, STUDENT_INT8
from monograph.pipelines.run.student import SUMMARY as STUDENT_SUMMARY
from monograph.runtime.compare import Comparison
from monograph.runtime.results import Measurement

_BASELINE_NOTES = {
    "sessions + numpy": "one ONNX Runtime session a member in one process, outputs combined by numpy",
    "PyTorch eager": "the members as PyTorch modules in inference mode",
}


def summarise_run(
    config: PipelineConfig,
    folders: Mapping[str, Path],
    yaml_text: str,
    command: str,
    duration_s: float,
    more_notes: Sequence[str] = (),
) -> Report:
    """Collect what the steps in ``folders`` (by step name) found out; ``more_notes`` are of the run as a whole."""
    fused = read_record(folders["fuse"] / RECORD, FusedRecord)
    notes = read_record(folders["data"] / "notes.json", list[str])
    split = ", ".join(f"{size:g} {part}" for part, size in config.data.split.items())
    return Report(
        title=config.title or config.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        version=version("monograph"),
        data=f"{config.data.source}, {split} rows, seed {config.seed}; weights fitted on validation, figures from test rows",
        contenders=tuple(_contenders(config, folders)),
        proofs=tuple(_proofs(config, folders, fused)),
        fusion=_fusion(config, folders, fused),
        curves=tuple(_curves(config, folders)),
        ratios=tuple(_ratios(config, folders, fused)),
        commands=(command,),
        pipeline_yaml=yaml_text,
        duration_s=duration_s,
        notes=tuple(dict.fromkeys([*more_notes, *notes, *(note for note in fused.notes if note != f"weights {fused.fit_note}")])),
        adaptations=tuple(_adaptation(folders[f"adapt-{name}"]) for name in config.models if f"adapt-{name}" in folders),
        student=_student(folders["distill"]) if "distill" in folders else None,
        ranking=_ranking(config, folders),
        verdict=verdict_summary(read_verdict(folders["gate"])) if "gate" in folders else None,
        bundle=_bundle(config, folders, more_notes),
    )


def _contenders(config: PipelineConfig, folders: Mapping[str, Path]) -> list[Contender]:
    contenders = []
    for key, folder in folders.items():
        if key.startswith("measure-"):
            measurement = read_record(folder / MEASUREMENT, Measurement)
            name = measurement.model
            note = next((text for ending, text in _BASELINE_NOTES.items() if name.endswith(ending)), "")
            contenders.append(Contender(name, role_of(name, config), measurement, note))
    return contenders


def _proofs(config: PipelineConfig, folders: Mapping[str, Path], fused: FusedRecord) -> list[Proof]:
    proofs = []
    for name in config.models:
        if f"export-{name}" in folders:
            proof = read_record(folders[f"export-{name}"] / PROOF, ParityProof)
            proofs.append(Proof(name, proof.reference, proof))
    return [*proofs, Proof("fused", fused.proof.reference, fused.proof)]


def _fusion(config: PipelineConfig, folders: Mapping[str, Path], fused: FusedRecord) -> FusionSummary:
    return FusionSummary(
        form=fused.form,
        formula=fused.formula,
        members=tuple(MemberWeight(name, weight) for name, weight in fused.weights.items()),
        fitted=fused.fit_note is not None,
        note=fused.fit_note or f"weights: {config.fuse.weights if isinstance(config.fuse.weights, str) else 'given'}",
        node_count=fused.node_count,
        size_bytes=(folders["fuse"] / FUSED).stat().st_size,
    )


def _curves(config: PipelineConfig, folders: Mapping[str, Path]) -> list[TrainingCurve]:
    trained = [folders[f"train-{name}"] for name in config.models if f"train-{name}" in folders]
    return [read_record(folder / CURVE, TrainingCurve) for folder in trained]


def _adaptation(folder: Path) -> AdaptationSummary:
    return replace(read_record(folder / ADAPTED, AdaptationSummary), page=_page(folder))


def _ranking(config: PipelineConfig, folders: Mapping[str, Path]) -> tuple[RankingGain, ...]:
    """Return what fusing gained, by what members and fused graph gave for the rows of each group on one target."""
    from monograph.runtime.metrics.ranking_gain import ranking_gain

    group = config.data.group
    for target in config.measure.targets if group is not None else ():
        paths = {
            name: folders[key] / OUTPUTS for name in (*config.models, "fused") if (key := f"measure-{name}@{target}") in folders
        }
        scores = {name: np.load(path, allow_pickle=False) for name, path in paths.items() if path.exists()}
        rows = some_rows(Rows.load(folders["data"] / TEST), config.measure.rows.get(target))
        fused, groups = scores.pop("fused", None), groups_of(rows, group)
        if fused is None or groups is None or len(scores) < len(config.models):
            continue
        found = ranking_gain(fused, scores, rows.required_labels(), groups, config.seed)
        return tuple(
            RankingGain(one.metric, one.group_count, one.fused, dict(one.members), one.best_member, one.gain)
            for one in found.metrics
        )
    return ()


def _student(folder: Path) -> StudentSummary:
    return replace(read_record(folder / STUDENT_SUMMARY, StudentSummary), page=_page(folder))


def _page(folder: Path) -> str:
    """Return the address of a step's own report beside that of the run."""
    return f"steps/{folder.name}/report.html"


def _bundle(config: PipelineConfig, folders: Mapping[str, Path], notes: Sequence[str]) -> BundleSummary | None:
    if config.bundle is None:
        return None
    if "bundle" not in folders:
        told = next(note for note in notes if note.startswith("nothing was bundled"))
        return BundleSummary(None, f"{told[0].upper()}{told[1:]}.")
    record = json.loads((folders["bundle"] / BUNDLED).read_bytes())
    told = (
        f"The student ships as the folder bundle: {len(record['files'])} files, {record['size_bytes']:,} bytes, manifest SHA-256 "
        f"{record['manifest_sha256'][:12]}…. Prove it again anywhere by monograph verify bundle."
    )
    return BundleSummary("bundle", told, record["manifest_sha256"], tuple(record["files"]), tuple(record["notes"]))


def _ratios(config: PipelineConfig, folders: Mapping[str, Path], fused: FusedRecord) -> list[Ratio]:
    """Speed of the fused graph against each other way to get the same outputs, and of the student against it."""
    if "compare" not in folders:
        return []
    comparison = read_record(folders["compare"] / "comparison.json", Comparison)
    running = [name for name, weight in fused.weights.items() if weight > 0]
    blocks = len(next(iter(comparison.p50_s.values())))
    note = f"median call at batch 1 on cpu, {blocks} interleaved blocks of fresh processes"
    pairs = {}
    if all(name in comparison.p50_s for name in running):
        pairs["fused / the sum of its members, each alone"] = (["fused"], running)
    for name in comparison.p50_s:
        role = role_of(name, config)
        if role == "baseline":
            pairs[f"fused / {name}"] = (["fused"], [name])
        elif role == "student":
            pairs[f"{name} / fused"] = ([name], ["fused"])
    ratios = []
    for label, names in pairs.items():
        interval = comparison.ratio(*names)
        ratios.append(Ratio(label, interval.estimate, interval.low, interval.high, note))
    return ratios


def role_of(name: str, config: PipelineConfig) -> Role:
    """Return what part a contender plays."""
    if name in config.models:
        return "member"
    return "fused" if name == "fused" else "student" if name in (STUDENT, STUDENT_INT8) else "baseline"
