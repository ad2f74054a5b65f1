"""The line of the verb: load, ask the teachers, train, export, compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monograph.errors import ConfigError
from monograph.export.trace import export_torch
from monograph.models.data.rows import Rows
from monograph.models.files import write_atomically
from monograph.models.size import count_parameters
from monograph.models.torch_model import TorchModel, save_weights
from monograph.pipelines.data import DataSpec
from monograph.pipelines.distill.parts import Part, ask_teachers, read_parts
from monograph.pipelines.distill.recipe import Recipe, find_loss, teaching_objective
from monograph.pipelines.distill.standing import ONNX_FILE, WEIGHTS_FILE, Distilled, conclude, measure_all
from monograph.pipelines.distill.student import class_count, load_student
from monograph.pipelines.losses import DistillationLoss, LossOptions
from monograph.pipelines.records import write_record
from monograph.pipelines.teachers import Teacher, class_order, load_teacher
from monograph.pipelines.training import Epoch, Training, TrainingSettings, train
from monograph.pipelines.training.checkpoint import FILE as CHECKPOINT

_RESULT = "distillation.json"


def distill_model(
    teachers: Sequence[str],
    student: str,
    data: str | DataSpec,
    out: str | Path,
    *,
    unlabelled: str | DataSpec | None = None,
    validation: str | DataSpec | None = None,
    test: str | DataSpec | None = None,
    student_arguments: Mapping[str, Any] | None = None,
    recipe: Recipe | None = None,
    settings: TrainingSettings | None = None,
    resume: bool = False,
    on: Sequence[str] = ("cpu",),
    on_progress: Callable[[int, int, str], None] = lambda done, total, detail: None,
) -> Distilled:
    """Teach ``student`` what ``teachers`` know, export it to ``out/student.onnx``, and set it beside them.

    Args:
        teachers: SOURCEs: PyTorch models, ONNX files, fused graphs.
        student: a name in ``STUDENTS``, a ``py:`` or ``hf:`` source, or ``auto:1/10``, the widest that a share of the first
            teacher's multiply-accumulates allows.
        data: DATA with labels.
        out: a folder; checkpoints, what the teachers gave, weights, the ONNX file and the record lie there.
        unlabelled: more DATA, whose labels are not looked at.
        validation: DATA with labels to choose the epoch on; a fifth of ``data`` by default.
        test: DATA with labels for the comparison; the validation rows by default, which flatter.
        student_arguments: of the student's factory, such as ``{"width": 8}``.
        recipe: the loss and its options.
        settings: of the training.
        resume: go on with the training that was stopped in ``out``.
        on: targets to measure the student and its ONNX teachers on.
        on_progress: told how much of a step is done.

    Raises:
        InputError: a model or the data cannot be used, or teacher and student cannot be aligned.
        ParityError: the exported student does not compute what the trained one does.
        MonographError: the loss is not finite.
    """
    folder, recipe, settings = Path(out), recipe or Recipe(), settings or TrainingSettings(select="top1")
    _check_folder(folder, resume)
    loss = find_loss(recipe, has_unlabelled=unlabelled is not None)
    asked = [load_teacher(source) for source in teachers]
    learner, notes = load_student(student, student_arguments or {}, asked[0], settings.seed)
    # Named before rows are read: labels are numbered in the order of the names.
    learner = _named(learner, asked[0].contract.class_names)
    orders = [class_order(teacher.contract, learner.contract, teacher.name) for teacher in asked]
    parts, test_name = read_parts(learner, asked, data, unlabelled, validation, test, settings.seed)
    learner = _named(learner, parts["train"][0].class_names)
    answered = {name: ask_teachers(asked, orders, rows, folder / "teachers", on_progress) for name, rows in parts.items()}
    training = _train(learner, answered, recipe, loss, settings, folder, asked, on_progress)
    save_weights(learner.module, folder / WEIGHTS_FILE)
    exported = export_torch(learner, folder / ONNX_FILE, rows=_few(answered["validation"].rows))
    measurements = measure_all(folder / ONNX_FILE, asked, answered["test"].rows, on)
    distilled = conclude(
        folder, learner, asked, answered["test"], test_name, recipe, training, measurements, exported.proof.describe(), notes
    )
    with write_atomically(folder / _RESULT) as staged:
        write_record(staged, distilled)
    return distilled


def _check_folder(folder: Path, resume: bool) -> None:
    has_checkpoint = (folder / CHECKPOINT).exists()
    if has_checkpoint and not resume:
        raise ConfigError(f"{folder} holds a training already: go on with it by --resume, or give another folder")
    if resume and not has_checkpoint:
        raise ConfigError(f"{folder} holds no training to resume: leave --resume out")


def _named(learner: TorchModel, names: Sequence[str] | None) -> TorchModel:
    """Name the student's classes, where it has none of its own and there are as many names."""
    contract = learner.contract
    is_unnamed = contract.kind.has_classes and contract.class_names is None
    if not is_unnamed or names is None or len(names) != class_count(contract):
        return learner
    return replace(learner, contract=replace(contract, class_names=tuple(names)))


def _train(
    learner: TorchModel,
    parts: Mapping[str, Part],
    recipe: Recipe,
    loss: tuple[DistillationLoss, LossOptions],
    settings: TrainingSettings,
    folder: Path,
    teachers: Sequence[Teacher],
    on_progress: Callable[[int, int, str], None],
) -> Training:
    last: list[Epoch] = []

    def show_step(step: int, steps: int, value: float) -> None:
        validated = f", validation {last[-1].validation_top1:.1%}" if last else ""
        on_progress(step, steps, f"loss {value:.3f}{validated}")

    identity = {
        "student": learner.name,
        "parameters": count_parameters(learner.module),
        "teachers": [teacher.sha256 for teacher in teachers],
        "train rows": parts["train"].rows.sha256(),
        "validation rows": parts["validation"].rows.sha256(),
        "loss": recipe.loss,
        "options": asdict(loss[1]),
        "teacher weights": list(recipe.teacher_weights) if isinstance(recipe.teacher_weights, tuple) else recipe.teacher_weights,
    }
    objective = teaching_objective(*loss, torch.from_numpy(np.array(parts["train"].outputs)), recipe.teacher_weights)
    return train(
        learner,
        parts["train"].rows,
        parts["validation"].rows,
        settings,
        lambda number, epoch: last.append(epoch),
        objective=objective,
        folder=folder,
        identity=identity,
        on_step=show_step,
    )


def _few(rows: Rows) -> Rows:
    return rows.take(slice(0, 64))
