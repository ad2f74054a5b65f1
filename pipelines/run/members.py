"""The steps that make a member's ONNX file: training and export, or adaptation, which exports by itself."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from monograph.errors import ConfigError
from monograph.models.data.rows import Rows
from monograph.models.seen import mark_seen, seen
from monograph.models.sources import Scheme, parse_source
from monograph.pipelines.config import AdaptConfig, ModelConfig
from monograph.pipelines.identity import identity_of
from monograph.pipelines.records import write_record
from monograph.pipelines.run.step import TEST, TRAIN, VALIDATION, Run

ADAPTED, CURVE, PROOF = "adapted.json", "curve.json", "proof.json"
"""What the steps tell beside their files."""


def train_member(run: Run, name: str, data: Path) -> Path:
    """Train a member; its weights and curves lie in the folder."""
    model = run.config.models[name]
    parameters = {"model": model.model_dump(mode="json"), "data": data.name, "seed": run.config.seed}
    return run.workspace.step(f"train-{name}", parameters, lambda folder: _train_into(folder, run, name, model, data))


def _train_into(folder: Path, run: Run, name: str, model: ModelConfig, data: Path) -> None:
    from monograph.models.torch_model import save_weights
    from monograph.pipelines.members import load_member
    from monograph.pipelines.report import TrainingCurve
    from monograph.pipelines.training import Epoch, TrainingSettings, train

    assert model.train is not None
    settings = TrainingSettings(**model.train.model_dump(), seed=run.config.seed)

    def show(number: int, epoch: Epoch) -> None:
        is_share = not math.isnan(epoch.validation_top1)
        validated = f"{epoch.validation_top1:.1%}" if is_share else f"loss {epoch.validation_loss:.4g}"
        run.workspace.progress.update(number + 1, settings.epochs, f"loss {epoch.train_loss:.3f}, validation {validated}")

    torch_model = load_member(model, seed=run.config.seed)
    training = train(torch_model, Rows.load(data / TRAIN), Rows.load(data / VALIDATION), settings, show)
    save_weights(torch_model.module, folder / "model.safetensors")
    epochs, kind = training.epochs, torch_model.contract.kind
    curve = TrainingCurve(
        name,
        tuple(epoch.train_loss for epoch in epochs),
        tuple(epoch.validation_loss for epoch in epochs),
        tuple(epoch.validation_top1 for epoch in epochs) if kind.has_classes else (),
        kept_epoch=training.best_epoch,
        validation_unit="nats" if kind.has_classes else "as trained",
    )
    write_record(folder / CURVE, curve)


def export_member(run: Run, name: str, data: Path, weights: Path | None) -> Path:
    """Export a member, proven on rows of its own; ``weights`` is the folder of its training."""
    model = run.config.models[name]
    parameters = {
        "model": model.model_dump(mode="json"),
        "identity": identity_of(model.source),
        "weights": weights and weights.name,
        "data": data.name,
    }

    def work(folder: Path) -> None:
        from monograph.pipelines.export import export_model

        is_python = parse_source(model.source).scheme is Scheme.PYTHON
        class_names = Rows.load(data / VALIDATION).class_names
        exported = export_model(
            model.source,
            folder / f"{name}.onnx",
            task=model.task,
            arguments=model.arguments if is_python else None,
            weights=weights / "model.safetensors" if weights else model.weights,
            class_names=class_names,
            data=str(data / VALIDATION),
        )
        if weights is not None:
            parts = [Rows.load(data / part) for part in (TRAIN, VALIDATION)]
            mark_seen(folder / f"{name}.onnx", seen("training", parts[0]) | seen("validation", parts[1]))
        write_record(folder / PROOF, exported.proof)
        run.tell(f"max abs error {exported.proof.worst.max_abs_error:.1e}")

    return run.workspace.step(f"export-{name}", parameters, work)


def adapt_member(run: Run, name: str, data: Path) -> Path:
    """Adapt a pretrained member, which the verb exports and proves; its own report lies in the folder."""
    model = run.config.models[name]
    parameters = {
        "model": model.model_dump(mode="json"),
        "identity": identity_of(model.source),
        "data": data.name,
        "seed": run.config.seed,
    }

    def work(folder: Path) -> None:
        from monograph.pipelines.adapt import adapt_model
        from monograph.pipelines.report.adapted_member import adaptation_summary

        choice = model.adapt
        assert choice is not None
        is_python = parse_source(model.source).scheme is Scheme.PYTHON
        adapted = adapt_model(
            model.source,
            str(data / TRAIN),
            folder,
            validation=str(data / VALIDATION),
            test=str(data / TEST),
            method=choice.method,
            task=choice.task,
            features=choice.features,
            arguments=model.arguments if is_python else None,
            settings=_given(choice),
            options=choice.options,
            class_weights=choice.class_weights,
            allow=choice.allow,
            on=(),
            seed=run.config.seed,
            on_progress=run.workspace.progress.update,
        )
        # What lies beside it, external weights or a list of seen rows, is named in the file and stays where it is.
        shutil.copyfile(adapted.onnx, folder / f"{name}.onnx")
        summary = adaptation_summary(name, adapted)
        # That its rows were prepared beforehand is no news of a run.
        news = tuple(note for note in summary.notes if not note.startswith(f"{data}/"))
        write_record(folder / ADAPTED, replace(summary, notes=news))
        run.tell(f"by {adapted.method}, {adapted.quality} {adapted.model.quality:.4g}")

    return run.workspace.step(f"adapt-{name}", parameters, work)


def _given(choice: AdaptConfig) -> dict[str, Any]:
    """Return the settings that the file states: what it leaves out is the method's to choose."""
    stated = {"epochs", "batch_size", "learning_rate", "weight_decay", "label_smoothing", "mixed_precision"}
    return choice.model_dump(include=stated, exclude_none=True)


def check_members(models: Mapping[str, ModelConfig]) -> None:
    """Refuse before anything is learned, not after, what the steps would refuse.

    Raises:
        ConfigError: there is no such method of adaptation, or it has no such option.
    """
    adapted = {name: model.adapt for name, model in models.items() if model.adapt is not None}
    if not adapted:
        return
    from monograph.pipelines.adapt import METHODS

    for name, choice in adapted.items():
        if choice.method != "auto" and choice.method not in METHODS:
            raise ConfigError(f"models.{name}.adapt.method is {choice.method!r}: choose from {', '.join(METHODS)}, auto")
        known = METHODS[choice.method].options if choice.method != "auto" else {}
        unknown = [option for option in choice.options if option not in known]
        if unknown:
            raise ConfigError(
                f"models.{name}.adapt.options: {choice.method} has no {unknown[0]!r}; it has {', '.join(known) or 'none'}"
            )
