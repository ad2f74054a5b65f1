"""How much of a teacher a student can take: short trainings from stored outputs, each beside the same student's plain training.

Shape letters: ``n`` rows, ``c`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from monograph.errors import FusionError, InputError
from monograph.export.fusion.macs import count_macs
from monograph.export.trace import export_torch
from monograph.models.data.rows import Array, Rows
from monograph.models.sources import Scheme, parse_source
from monograph.models.torch_model import TorchModel
from monograph.pipelines.distill.answers import KeptAnswers
from monograph.pipelines.distill.recipe import Recipe, find_loss, teaching_objective
from monograph.pipelines.distill.student import load_student
from monograph.pipelines.interop.members import Model, stratified_halves
from monograph.pipelines.interop.result import Lesson
from monograph.pipelines.teachers import Teacher, class_order, load_teacher
from monograph.pipelines.training import Objective, TrainingSettings, train
from monograph.runtime.metrics import as_probabilities
from monograph.runtime.runner import run_all_rows
from monograph.runtime.statistics import paired_loss_interval

AUTO_STUDENT = "auto:1/10"
_SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)


def estimate_lesson(teacher: Model, student: Model) -> Lesson:
    """Return what can be told without a training: how often both agree, and how much the teacher's probabilities say."""
    try:
        order = class_order(teacher.file.contract, student.file.contract, teacher.name)
    except InputError as error:
        return Lesson(teacher.name, student.name, is_estimate=True, reason=str(error))
    probable = teacher.probabilities
    ordered = probable if order is None else probable[:, order]
    agreement = float((ordered.argmax(axis=1) == student.probabilities.argmax(axis=1)).mean())
    entropy = float(-(probable * np.log(np.maximum(probable, _SMALLEST_PROBABILITY))).sum(axis=1).mean())
    return Lesson(teacher.name, student.name, is_estimate=True, agreement=agreement, entropy=entropy)


def teach_all(
    teachers: Sequence[Model],
    rows_of: Callable[[TorchModel], Rows],
    folder: Path,
    epochs: int,
    seed: int,
    student: str = AUTO_STUDENT,
    on_progress: Callable[[int, int, str], None] = lambda done, total, detail: None,
) -> list[Lesson]:
    """Let every model that is PyTorch, and one small student, learn from each of ``teachers``; a control learns from labels.

    Args:
        teachers: with answers, all of the same classes.
        rows_of: reads the rows as a student takes them.
        folder: for what is exported to be counted.
        epochs: of each training.
        seed: of weights, halves and order.
        student: a name among the students, or ``auto:1/10``.
        on_progress: told how many trainings are done.
    """
    pupils = [model for model in teachers if parse_source(model.source).scheme is Scheme.PYTHON]
    named = [(student, student), *((model.name, model.source) for model in pupils)]
    lessons: list[Lesson] = []
    for number, (name, source) in enumerate(named):
        on_progress(number, len(named), f"students learn: {name}")
        own = [model for model in teachers if model.name != name]
        try:
            lessons += _teach(name, source, own, rows_of, folder, epochs, seed)
        except InputError as error:
            lessons += [Lesson(model.name, name, is_estimate=False, reason=" ".join(str(error).split())) for model in own]
    for model in teachers:
        if model not in pupils:
            reason = "it is an ONNX file or has a source of its own weights, which is not trained: give its py: source"
            lessons += [Lesson(one.name, model.name, False, reason=reason) for one in teachers if one is not model]
    return lessons


def _teach(
    name: str,
    source: str,
    teachers: Sequence[Model],
    rows_of: Callable[[TorchModel], Rows],
    folder: Path,
    epochs: int,
    seed: int,
) -> list[Lesson]:
    """Train the student once on labels, and once from each teacher, on one half of the rows; all are told on the other."""
    asked = [load_teacher(str(model.file.path)) for model in teachers]
    learner = _fresh(source, asked[0], seed)
    rows = rows_of(learner)
    fitted, told = stratified_halves(rows.required_labels(), seed)
    chosen = np.arange(len(fitted)) % 5 == 0  # the epoch is chosen on these, never on the rows that are told
    learnt, judged, held_out = (rows.take(part) for part in (fitted[~chosen], fitted[chosen], told))
    settings = TrainingSettings(epochs=epochs, seed=seed, select="top1", patience=None)

    def answers_of(model: TorchModel, objective: Objective | None) -> Array:
        train(model, learnt, judged, settings, objective=objective)
        return _answers(model, held_out)

    labels = held_out.required_labels()
    control = answers_of(learner, None) == labels
    macs = _macs(learner, folder / f"{name.replace('/', '-').replace(':', '-')}.onnx", learnt)
    recipe, lessons = Recipe(), []
    loss = find_loss(recipe, has_unlabelled=False)
    for model, teacher in zip(teachers, asked, strict=True):
        student = _fresh(source, asked[0], seed)
        order = class_order(teacher.contract, student.contract, teacher.name)
        probable = np.log(np.maximum(model.probabilities, _SMALLEST_PROBABILITY)).astype(np.float32)
        ordered = probable if order is None else probable[:, order]
        kept = KeptAnswers(((ordered[fitted[~chosen]],),))
        predicted = answers_of(student, teaching_objective(*loss, kept, 1))
        right, theirs = predicted == labels, ordered[told].argmax(axis=1)
        gain = paired_loss_interval(int((control & ~right).sum()), int((right & ~control).sum()), len(labels), 0.95)
        lessons.append(
            Lesson(
                teacher=model.name,
                student=name,
                is_estimate=False,
                agreement=float((predicted == theirs).mean()),
                entropy=float(-(np.exp(probable) * probable).sum(axis=1).mean()),
                top1=float(right.mean()),
                retention=float(right.mean() / max((theirs == labels).mean(), 1 / len(labels))),
                control_top1=float(control.mean()),
                gain_points=(-100 * gain.estimate, -100 * gain.high, -100 * gain.low),
                student_macs=macs,
                epochs=epochs,
            )
        )
    return lessons


def _fresh(source: str, teacher: Teacher, seed: int) -> TorchModel:
    """Return the student with weights drawn anew, the classes named as the teacher's are."""
    learner, _ = load_student(source, {}, teacher, seed)
    for module in learner.module.modules():
        reset = getattr(module, "reset_parameters", None)
        if isinstance(module, nn.Module) and callable(reset):
            reset()
    contract = learner.contract
    if contract.class_names is None and teacher.contract.class_names is not None:
        if contract.class_count != teacher.contract.class_count:
            raise FusionError(f"{source} gives {contract.class_count} classes and its teacher {teacher.contract.class_count}")
        contract = replace(contract, class_names=teacher.contract.class_names)
    return replace(learner, contract=contract)


def _answers(model: TorchModel, rows: Rows) -> Array:
    return np.asarray(as_probabilities(run_all_rows(model, model.contract, rows), model.contract.kind).argmax(axis=1))


def _macs(model: TorchModel, path: Path, rows: Rows) -> int | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    export_torch(model, path, rows=rows.take(slice(0, 8)))
    return count_macs(path)
