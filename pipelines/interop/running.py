"""Each model runs once over the rows, which are read a part at a time; all else is told from what it gave."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from monograph.errors import ConfigError, InputError, WorkerError
from monograph.export.fusion.align import class_leader
from monograph.models.contract import Kind
from monograph.models.data.rows import Array
from monograph.models.seen import read_seen
from monograph.pipelines.data import DataSpec
from monograph.pipelines.interop.members import Model, checked_labels, fails_on, reading_contract
from monograph.pipelines.interop.study import Told
from monograph.pipelines.interop.taps import ask


def run_all(
    models: Sequence[Model],
    spec: DataSpec,
    folder: Path,
    layers: Mapping[str, Sequence[str]],
    group: str | None,
    on_progress: Told,
) -> tuple[list[Model], str, Array | None]:
    """Run each model over the rows, one at a time and a part of the rows at a time.

    Returns the models with what they gave, a digest of the rows, and their groups.
    """
    known = {name for model in models for name in (model.name, model.source)}
    if unknown := [name for name in layers if name not in known]:
        raise ConfigError(f"--layer names {unknown[0]!r}, which is no model: choose from {', '.join(m.name for m in models)}")
    leader = leader_of(models)
    ran: list[Model] = []
    sha256, groups = "", None
    for model in models:
        if reason := _other_task(model, leader):
            ran.append(replace(model, reason=reason))
            continue
        taps = layers.get(model.name, layers.get(model.source, ()))
        try:
            with spec.open(reading_contract(model, leader.file), model.file.tokenizer_json, group=group) as stream:
                labels, digests = checked_labels(stream, model.kind), stream.digests()
                own_sha256 = hashlib.sha256(digests.tobytes() + labels.tobytes()).hexdigest()
                answers = ask(model.file, stream, own_sha256, folder, taps, partial(_told_rows, on_progress, model.name))
                groups = stream.groups
                # Class numbers are each model's own, digests those of the columns that it reads: the first stands for all.
                sha256 = sha256 or own_sha256
            seen_count = int(read_seen(model.file).among(digests).sum())
        except ConfigError:
            raise
        except (InputError, WorkerError) as error:
            if not ran and "not enough evidence" in str(error):
                raise
            ran.append(fails_on(model, error))
            continue
        ran.append(replace(model, answers=answers, labels=labels, seen_count=seen_count))
    if not any(model.answers is not None for model in ran):
        reasons = list(dict.fromkeys(one.reason for one in ran))
        told = reasons[0] if len(reasons) == 1 else "; ".join(f"{one.name}: {one.reason}" for one in ran)
        raise ConfigError(f"no model runs on {spec.source}: {told}")
    return ran, sha256, groups


def leader_of(models: Sequence[Model]) -> Model:
    """Return the classifier that names the most classes, or the first model where none classifies."""
    classifiers = [model for model in models if model.kind.has_classes]
    return classifiers[class_leader([model.file.contract for model in classifiers]) or 0] if classifiers else models[0]


def _other_task(model: Model, leader: Model) -> str:
    """Return why a model is not compared with ``leader`` on rows; empty where it is."""
    if model.kind is Kind.EMBEDDING:
        return "it gives an embedding, which labels do not judge: adapt it first"
    if model.kind.has_classes == leader.kind.has_classes and (model.kind.has_classes or model.kind is leader.kind):
        return ""
    return f"it gives {model.kind.value}, {leader.name} gives {leader.kind.value}: models of one task are compared on rows"


def _told_rows(on_progress: Told, name: str, done: int, total: int) -> None:
    on_progress(done, total, f"outputs of {name}")
