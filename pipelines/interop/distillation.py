"""How much of a teacher a student can take: short trainings from stored outputs, each beside the same student's plain training.

Shape letters: ``n`` rows, ``c`` classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import nn

import monograph
from monograph.errors import FusionError, InputError
from monograph.export.fusion.macs import count_macs
from monograph.export.trace import export_torch
from monograph.models.contract import Contract, Kind
from monograph.models.data.rows import Array, Rows
from monograph.models.files import write_atomically
from monograph.models.torch_model import TorchModel
from monograph.pipelines.distill.answers import KeptAnswers
from monograph.pipelines.distill.recipe import Recipe, find_loss, teaching_objective
from monograph.pipelines.distill.student import load_student
from monograph.pipelines.interop.members import Model
from monograph.pipelines.interop.result import Lesson
from monograph.pipelines.interop.yardstick import Yardstick
from monograph.pipelines.teachers import Teacher, class_order
from monograph.pipelines.training import TrainingSettings, train
from monograph.runtime.runner import run_all_rows

_SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)
_BATCH_SIZE, _FEWEST_BATCHES = 64, 8
_ROWS_A_CHOICE = 5
"""The epoch is chosen on one of so many of the rows that the student learns from, never on those that are told."""


@dataclass(frozen=True)
class Tutor:
    """Who teaches: what a model, or several that are fused, gave for every row."""

    name: str
    contract: Contract
    output: Array
    """``[n, …]``, classes in the order of its own contract."""
    path: Path | None = None
    """Its ONNX file; None of a fusion, which need not be built to teach."""
    tokenizer_json: str | None = None

    def as_teacher(self) -> Teacher:
        """Return it as what a student is made for; it is not asked."""

        def refuse(rows: Rows) -> Array:
            raise AssertionError("outputs are stored: nothing is run")

        return Teacher(self.name, self.contract, "", refuse, self.tokenizer_json, path=self.path)


def tutor_of(model: Model) -> Tutor:
    """Return a model that has run as a tutor."""
    return Tutor(model.name, model.file.contract, model.output, model.file.path, model.file.tokenizer_json)


def estimate_lesson(teacher: Model, student: Model, yardstick: Yardstick) -> Lesson:
    """Return what can be told without a training: how often both agree, and how much the teacher's probabilities say."""
    name = teacher.name, student.name
    try:
        order = class_order(teacher.file.contract, student.file.contract, teacher.name)
    except InputError as error:
        return Lesson(*name, is_estimate=True, reason=str(error))
    theirs, own = (yardstick.probabilities(np.asarray(one.output), one.kind) for one in (teacher, student))
    if theirs is None or own is None:
        return Lesson(*name, is_estimate=True, reason="outputs that are no probabilities say nothing of agreement")
    ordered = theirs if order is None else theirs[:, order]
    agreement = float((ordered.argmax(axis=1) == own.argmax(axis=1)).mean())
    return Lesson(*name, is_estimate=True, agreement=agreement, entropy=_entropy(theirs))


@dataclass(frozen=True)
class Pupil:
    """A student, made anew for each lesson; all of its lessons are told on the same held-out rows."""

    name: str
    source: str
    arguments: Mapping[str, object]
    first: Tutor
    """For whom it is made: it takes the same inputs and gives the same classes."""
    rows_of: Callable[[TorchModel], Rows]
    """Reads the rows as a student takes them."""
    halves: tuple[Array, Array]
    """Numbers of the rows that students learn from, and of those that are told."""
    yardstick: Yardstick
    folder: Path
    """Outputs of finished trainings lie here."""
    rows_sha256: str
    steps: int
    """Of each training: changes of the weights."""

    @cached_property
    def _model(self) -> TorchModel:
        return self._fresh()

    @cached_property
    def _rows(self) -> Rows:
        return self.rows_of(self._model)

    @cached_property
    def _labels(self) -> Array:
        labels = self._rows.required_labels()
        return np.asarray(labels.reshape(len(labels)), np.int64) if self.yardstick.has_classes else np.asarray(labels)

    @cached_property
    def _parts(self) -> tuple[Array, Array, Array]:
        """Numbers of the rows that are learned from, that choose the epoch, and that are told."""
        fitted, told = self.halves
        chosen = np.arange(len(fitted)) % _ROWS_A_CHOICE == 0
        return fitted[~chosen], fitted[chosen], told

    @cached_property
    def macs(self) -> int | None:
        """Multiply-accumulates of a row."""
        path = self.folder / f"{self._key('export')}.onnx"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            export_torch(self._fresh(), path, rows=self._rows.take(slice(0, 8)))
        return count_macs(path)

    def learn(self, tutor: Tutor) -> Lesson:
        """Train the student once on labels, once by the tutor, and return what came of it.

        Raises:
            InputError: it cannot be taught by this tutor.
        """
        told, yardstick = self._parts[2], self.yardstick.take(self._parts[2])
        order = class_order(tutor.contract, self._model.contract, tutor.name)
        theirs = np.asarray(tutor.output) if order is None else np.asarray(tutor.output)[:, order]
        control = self._outputs("labels", None, tutor)
        digest = hashlib.sha256(np.ascontiguousarray(theirs, np.float32).tobytes()).hexdigest()
        given = self._outputs(f"{tutor.name} {digest}", theirs, tutor)
        labels = self._labels[told]
        taught, teaching = (
            yardstick.probabilities(given, self._model.contract.kind),
            yardstick.probabilities(theirs[told], tutor.contract.kind),
        )
        agreement = None
        if taught is not None and teaching is not None:
            agreement = float((taught.argmax(axis=1) == teaching.argmax(axis=1)).mean())
        return Lesson(
            teacher=tutor.name,
            student=self.name,
            is_estimate=False,
            agreement=agreement,
            entropy=None if teaching is None else _entropy(teaching),
            score=yardstick.score(given, labels),
            retention=yardstick.retention(given, theirs[told], labels),
            control=yardstick.score(control, labels),
            gain=yardstick.change(given, control, labels, "labels alone"),
            student_macs=self.macs,
            steps=self.steps,
        )

    def _outputs(self, what: str, theirs: Array | None, tutor: Tutor) -> Array:
        """Return what the student gives for the held-out rows after one training, which is done once: ``[n, …]``."""
        path = self.folder / f"{self._key(what)}.npy"
        if not path.exists():
            model, rows = self._fresh(), self._rows
            learned, judged, told = (rows.take(part) for part in self._parts)
            batch_size = min(_BATCH_SIZE, max(len(learned) // _FEWEST_BATCHES, 1))
            settings = TrainingSettings(
                epochs=max(1, round(self.steps / max(len(learned) // batch_size, 1))),
                batch_size=batch_size,
                seed=self.yardstick.seed,
                select="top1" if model.contract.kind.has_classes else "loss",
                patience=None,
            )
            objective = None
            if theirs is not None and model.contract.kind.has_classes:
                kept = KeptAnswers(((_log_probabilities(theirs, tutor.contract.kind, self.yardstick)[self._parts[0]],),))
                objective = teaching_objective(*find_loss(Recipe(), has_unlabelled=False), kept, 1)
            elif theirs is not None:
                # Labels are what the teacher gives: shares of yes, or numbers.
                labels = theirs[self._parts[0]].reshape(np.shape(learned.required_labels())).astype(np.float32)
                learned = replace(learned, labels=labels)
            train(model, learned, judged, settings, objective=objective)
            given = run_all_rows(model, model.contract, told)
            if model.contract.kind is Kind.SCORES:
                given = 1 / (1 + np.exp(-given.astype(np.float64)))  # what a network of scores gives is the logit of yes
            path.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(path) as staged, staged.open("wb") as file:
                np.save(file, given.astype(np.float32), allow_pickle=False)
        return np.asarray(np.load(path, allow_pickle=False))

    def _key(self, what: str) -> str:
        told = (
            f"{what} {self.name} {self.source} {sorted(self.arguments.items())} {self.first.contract} {self.first.name} "
            f"{self.rows_sha256} {self.steps} {self.yardstick.seed} {monograph.__version__}"
        )
        return f"student-{hashlib.sha256(told.encode()).hexdigest()[:24]}"

    def _fresh(self) -> TorchModel:
        """Return the student with weights drawn anew, the classes named as the teacher's are."""
        learner, _ = load_student(self.source, dict(self.arguments), self.first.as_teacher(), self.yardstick.seed)
        for module in learner.module.modules():
            reset = getattr(module, "reset_parameters", None)
            if isinstance(module, nn.Module) and callable(reset):
                reset()
        contract, teacher = learner.contract, self.first.contract
        if contract.class_names is None and teacher.class_names is not None:
            if contract.class_count != teacher.class_count:
                raise FusionError(f"{self.source} gives {contract.class_count} classes and its teacher {teacher.class_count}")
            contract = replace(contract, class_names=teacher.class_names)
        return replace(learner, contract=contract)


def _log_probabilities(output: Array, kind: Kind, yardstick: Yardstick) -> Array:
    probable = yardstick.probabilities(output, kind)
    assert probable is not None
    return np.log(np.maximum(probable, _SMALLEST_PROBABILITY)).astype(np.float32)


def _entropy(probable: Array) -> float:
    return float(-(probable * np.log(np.maximum(probable, _SMALLEST_PROBABILITY))).sum(axis=1).mean())
