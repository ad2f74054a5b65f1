"""From the folders of finished steps to the report of a run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from monograph.export.parity import ParityProof
from monograph.pipelines.config import PipelineConfig
from monograph.pipelines.records import read_record
from monograph.pipelines.report import Contender, FusionSummary, MemberWeight, Proof, Ratio, Report, Role, TrainingCurve
from monograph.pipelines.run import FusedRecord
from monograph.pipelines.training import Training
from monograph.runtime.compare import Comparison
from monograph.runtime.results import Measurement

_BASELINE_NOTES = {
    "sessions + numpy": "one ONNX Runtime session a member in one process, outputs combined by numpy",
    "PyTorch eager": "the members as PyTorch modules in inference mode",
}


def summarise_run(config: PipelineConfig, folders: Mapping[str, Path], yaml_text: str, command: str, duration_s: float) -> Report:
    """Collect what the steps in ``folders`` (by step name) found out."""
    fused = read_record(folders["fuse"] / "fused.json", FusedRecord)
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
        ratios=tuple(_ratios(folders, fused)),
        commands=(command,),
        pipeline_yaml=yaml_text,
        duration_s=duration_s,
        notes=tuple(dict.fromkeys([*notes, *(note for note in fused.notes if note != f"weights {fused.fit_note}")])),
    )


def _contenders(config: PipelineConfig, folders: Mapping[str, Path]) -> list[Contender]:
    contenders = []
    for key, folder in folders.items():
        if key.startswith("measure-"):
            measurement = read_record(folder / "measurement.json", Measurement)
            name = measurement.model
            note = next((text for ending, text in _BASELINE_NOTES.items() if name.endswith(ending)), "")
            contenders.append(Contender(name, role_of(name, config), measurement, note))
    return contenders


def _proofs(config: PipelineConfig, folders: Mapping[str, Path], fused: FusedRecord) -> list[Proof]:
    proofs = []
    for name in config.models:
        proof = read_record(folders[f"export-{name}"] / "proof.json", ParityProof)
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
        size_bytes=(folders["fuse"] / "fused.onnx").stat().st_size,
    )


def _curves(config: PipelineConfig, folders: Mapping[str, Path]) -> list[TrainingCurve]:
    curves = []
    for name in config.models:
        if f"train-{name}" in folders:
            training = read_record(folders[f"train-{name}"] / "training.json", Training)
            epochs = training.epochs
            curves.append(
                TrainingCurve(
                    name,
                    tuple(epoch.train_loss for epoch in epochs),
                    tuple(epoch.validation_loss for epoch in epochs),
                    tuple(epoch.validation_top1 for epoch in epochs),
                    kept_epoch=training.best_epoch,
                )
            )
    return curves


def _ratios(folders: Mapping[str, Path], fused: FusedRecord) -> list[Ratio]:
    """Speed of the fused graph against each other way to get the same outputs."""
    comparison = read_record(folders["compare"] / "comparison.json", Comparison)
    running = [name for name, weight in fused.weights.items() if weight > 0]
    blocks = len(next(iter(comparison.p50_s.values())))
    note = f"median call at batch 1 on cpu, {blocks} interleaved blocks of fresh processes"
    others = {"the sum of its members, each alone": running}
    others |= {name: [name] for name in comparison.p50_s if name not in fused.weights and name != "fused"}
    ratios = []
    for label, names in others.items():
        interval = comparison.ratio(["fused"], names)
        ratios.append(Ratio(f"fused / {label}", interval.estimate, interval.low, interval.high, note))
    return ratios


def role_of(name: str, config: PipelineConfig) -> Role:
    """Return what part a contender plays."""
    return "member" if name in config.models else "fused" if name == "fused" else "baseline"
