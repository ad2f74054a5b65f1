"""The line of the verb: load, ask the teachers, train, export, compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from monograph.errors import ConfigError, ParityError
from monograph.export.trace import export_torch
from monograph.models.data.rows import Rows
from monograph.models.files import write_atomically
from monograph.models.onnx_file import read_onnx
from monograph.models.seen import SeenRows, mark_seen, seen, seen_by
from monograph.models.size import count_parameters
from monograph.models.students import ALL_STUDENTS
from monograph.models.students.auto import AUTO_PREFIX
from monograph.models.torch_model import TorchModel, output_tensors, save_weights
from monograph.pipelines.data import DataSpec
from monograph.pipelines.distill.answers import AUTO, KEPT, LIVE, KeptAnswers, LiveAnswers, ask_teachers, find_answers
from monograph.pipelines.distill.hints import HintedObjective, Hints, watched_layers
from monograph.pipelines.distill.parts import read_parts
from monograph.pipelines.distill.quantize import check_mode, quantize_student
from monograph.pipelines.distill.recipe import EQUAL, Recipe, find_loss, teaching_objective
from monograph.pipelines.distill.standing import ONNX_FILE, WEIGHTS_FILE, Distilled, conclude, measure_all
from monograph.pipelines.distill.start import start_from_teacher
from monograph.pipelines.distill.student import class_count, load_student
from monograph.pipelines.losses import LossOptions
from monograph.pipelines.records import write_record
from monograph.pipelines.teachers import Teacher, class_order, load_teachers
from monograph.pipelines.training import (
    Batch,
    Epoch,
    Objective,
    Training,
    TrainingSettings,
    check_augmentable,
    train,
)
from monograph.pipelines.training.batches import dataset_of
from monograph.pipelines.training.checkpoint import FILE as CHECKPOINT
from monograph.pipelines.training.processes import is_main_process, main_process_first, on_main_process

_RESULT, REPORT_FILE = "distillation.json", "report.html"


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
    quantize: str | None = None,
    largest_loss_points: float = 1.0,
    resume: bool = False,
    on: Sequence[str] = ("cpu",),
    on_progress: Callable[[int, int, str], None] = lambda done, total, detail: None,
) -> Distilled:
    """Teach ``student`` what ``teachers`` know, export it to ``out/student.onnx``, and set it beside them.

    Several processes that ``torchrun`` or ``accelerate launch`` has started share the training; one of them does the rest.

    Args:
        teachers: SOURCEs: PyTorch models, ONNX files, fused graphs.
        student: a name in ``STUDENTS``, a ``py:`` or ``hf:`` source, or ``auto:1/10``, the widest that a share of the first
            teacher's multiply-accumulates allows.
        data: DATA with labels.
        out: a folder; checkpoints, what the teachers gave, weights, the ONNX file, the record and a report lie there.
        unlabelled: more DATA, whose labels are not looked at.
        validation: DATA with labels to choose the epoch on; a fifth of ``data`` by default.
        test: DATA with labels for the comparison; the validation rows by default, which flatter.
        student_arguments: of the student's factory, such as ``{"width": 8}``.
        recipe: the loss and its options, augmentation and hints.
        settings: of the training.
        quantize: write ``student.int8.onnx`` too: ``dynamic``, ``static``, or ``aware``, which teaches the student again as its
            8-bit version computes; ``static`` does that where it loses more than is allowed.
        largest_loss_points: what 8 bits may lose of top-1 on validation rows, in points.
        resume: go on with the training that was stopped in ``out``.
        on: targets to measure the student and its ONNX teachers on.
        on_progress: told how much of a step is done.

    Raises:
        InputError: a model or the data cannot be used, or teacher and student cannot be aligned.
        ParityError: the exported student does not compute what the trained one does, or loses more in 8 bits than is allowed;
            then all but the 8-bit file is written.
        MonographError: the loss is not finite.
    """
    folder, recipe, settings = Path(out), recipe or Recipe(), settings or TrainingSettings(select="top1")
    _check_folder(folder, resume)
    if quantize is not None:
        check_mode(quantize)
    loss = find_loss(recipe, has_unlabelled=unlabelled is not None)
    asked, own_weights = load_teachers(teachers)
    recipe = _with_weights(recipe, own_weights)
    learner, notes = load_student(student, student_arguments or {}, asked[0], settings.seed, on_progress)
    if student in ALL_STUDENTS or student.startswith(AUTO_PREFIX):
        notes = (*notes, *start_from_teacher(learner, asked[0]))
    if recipe.augmentation is not None:
        check_augmentable(learner.contract, learner.name, recipe.augmentation.operations)
    # Named before rows are read: labels are numbered in the order of the names.
    learner = _named(learner, asked[0].contract.class_names)
    orders = [class_order(teacher.contract, learner.contract, teacher.name) for teacher in asked]
    parts, test_name = read_parts(learner, asked, data, unlabelled, validation, test, settings.seed)
    learner = _named(learner, parts["train"][0].class_names)
    kept = folder / "teachers"
    with main_process_first():
        mode = recipe.teacher_outputs if recipe.hints is None else _live(recipe.teacher_outputs)
        answers, how = find_answers(
            asked, orders, parts["train"], learner.contract, kept, recipe.augmentation, settings.epochs, mode, on_progress
        )
    objective = teaching_objective(*loss, answers, len(asked), recipe.teacher_weights)
    teach = partial(_teach, parts, recipe, answers, on_progress)
    with _hinted(objective, recipe.hints, learner, asked, parts["train"][0]) as taught:
        training = teach(learner, settings, taught, folder=folder, identity=_identity(learner, asked, parts, recipe, loss[1]))
    proof = on_main_process(partial(_export, learner, folder, asked, parts))
    small = None
    if quantize is not None:
        onnx, rows, judged = folder / ONNX_FILE, parts["train"][0], parts["validation"][0]

        def again(model: TorchModel, settings: TrainingSettings, on_epoch: Callable[[int, Epoch], None]) -> Training:
            return teach(model, settings, objective, on_epoch)

        small = quantize_student(
            learner, onnx, rows, judged, quantize, settings=settings, fine_tune=again, largest_loss_points=largest_loss_points
        )

    def finish() -> Distilled:
        rows, *theirs = parts["test"]
        given = np.stack(ask_teachers(asked, orders, theirs, kept, on_progress))
        files = [folder / ONNX_FILE] if small is None or small.path is None else [folder / ONNX_FILE, small.path]
        measurements = measure_all(files, asked, rows, on)
        said = (*notes, f"{how}.", *(() if small is None else small.notes))
        distilled = conclude(folder, learner, asked, rows, given, test_name, recipe, training, measurements, proof, said)
        return replace(distilled, quantized=small)

    distilled = on_main_process(finish)
    if is_main_process():
        _write(distilled, folder, recipe, settings)
    if small is not None and small.path is None:
        raise ParityError(small.describe())
    return distilled


def _export(learner: TorchModel, folder: Path, teachers: Sequence[Teacher], parts: Mapping[str, Sequence[Rows]]) -> str:
    """Write weights and ONNX file, and return the proof in words."""
    save_weights(learner.module, folder / WEIGHTS_FILE)
    exported = export_torch(learner, folder / ONNX_FILE, rows=parts["validation"][0].take(slice(0, 64)))
    mark_seen(folder / ONNX_FILE, _seen(teachers, parts))
    return exported.proof.describe()


def _write(distilled: Distilled, folder: Path, recipe: Recipe, settings: TrainingSettings) -> None:
    """Write the record, and the report."""
    # Plots are loaded where they are drawn: what only trains does without.
    from monograph.pipelines.report.distillation_page import write_distillation_page

    with write_atomically(folder / _RESULT) as staged:
        write_record(staged, distilled)
    write_distillation_page(distilled, folder / REPORT_FILE, recipe, settings)


def _with_weights(recipe: Recipe, weights: tuple[float, ...] | None) -> Recipe:
    """Let members of a fusion count as they do in it, where nothing else was asked for."""
    return recipe if weights is None or recipe.teacher_weights != EQUAL else replace(recipe, teacher_weights=weights)


def _seen(teachers: Sequence[Teacher], parts: Mapping[str, Sequence[Rows]]) -> SeenRows:
    """Return the rows that the student, or a teacher of it, was fitted or chosen on: none of them can prove that it is good."""
    files = [read_onnx(teacher.path) for teacher in teachers if teacher.path is not None]
    return seen_by(files) | seen("training", parts["train"][0]) | seen("validation", parts["validation"][0])


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


def _live(mode: str) -> str:
    if mode == KEPT:
        raise ConfigError("hints need the teacher's layers for each batch, which are not kept: leave --teacher-outputs out")
    return LIVE if mode == AUTO else mode


@contextmanager
def _hinted(
    objective: Objective, hints: Hints | None, learner: TorchModel, teachers: Sequence[Teacher], rows: Rows
) -> Iterator[Objective]:
    """Add the loss of layers while the context is open, where there are hints."""
    if hints is None:
        yield objective
        return
    with watched_layers(hints, learner, teachers) as (own, theirs):
        first = dataset_of(learner, rows.take(slice(0, 2)))

        def first_pass() -> None:
            learner.module.eval()
            *inputs, labels, numbers = first.tensors
            outputs = output_tensors(learner.module(*inputs))
            objective(outputs, Batch(tuple(inputs), labels, numbers))

        yield HintedObjective(objective, hints, own, theirs, first_pass)


def _identity(
    learner: TorchModel, teachers: Sequence[Teacher], parts: Mapping[str, Sequence[Rows]], recipe: Recipe, options: LossOptions
) -> dict[str, Any]:
    """Return what has to be the same for a training to be resumed, beside its settings."""
    weights = recipe.teacher_weights
    return {
        "student": learner.name,
        "parameters": count_parameters(learner.module),
        "teachers": [teacher.sha256 for teacher in teachers],
        "train rows": parts["train"][0].sha256(),
        "validation rows": parts["validation"][0].sha256(),
        "loss": recipe.loss,
        "options": asdict(options),
        "teacher weights": list(weights) if isinstance(weights, tuple) else weights,
        "hints": None if recipe.hints is None else asdict(recipe.hints),
    }


def _teach(
    parts: Mapping[str, Sequence[Rows]],
    recipe: Recipe,
    answers: KeptAnswers | LiveAnswers,
    on_progress: Callable[[int, int, str], None],
    model: TorchModel,
    settings: TrainingSettings,
    objective: Objective,
    on_epoch: Callable[[int, Epoch], None] = lambda number, epoch: None,
    folder: Path | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Training:
    last: list[Epoch] = []

    def show_step(step: int, steps: int, value: float) -> None:
        validated = f", validation {last[-1].validation_top1:.1%}" if last else ""
        on_progress(step, steps, f"loss {value:.3f}{validated}")

    def show_epoch(number: int, epoch: Epoch) -> None:
        last.append(epoch)
        on_epoch(number, epoch)

    return train(
        model,
        parts["train"][0],
        parts["validation"][0],
        settings,
        show_epoch,
        objective=objective,
        augmentation=recipe.augmentation,
        folder=folder,
        identity=identity,
        on_start=answers.prepare,
        on_step=show_step,
    )
