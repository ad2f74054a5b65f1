"""How much of a teacher a student can take: short trainings from stored outputs, each beside the same student's plain training.

Shape letters: ``n`` rows, ``c`` classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy import stats
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
from monograph.pipelines.interop.result import Change, Lesson
from monograph.pipelines.interop.yardstick import Yardstick
from monograph.pipelines.teachers import Teacher, class_order
from monograph.pipelines.training import TrainingSettings, train
from monograph.runtime.results import Score
from monograph.runtime.runner import run_all_rows
from monograph.runtime.statistics import CONFIDENCE

_SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)
_BATCH_SIZE, _FEWEST_BATCHES = 64, 8
_TRAININGS = 3
"""One alone may be lucky by several points."""
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
        return self._fresh(self.yardstick.seed)

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
            export_torch(self._model, path, rows=self._rows.take(slice(0, 8)))
        return count_macs(path)

    def learn(self, tutor: Tutor) -> Lesson:
        """Train the student on labels, and by the tutor, three times each from other weights, and return what came of it.

        Raises:
            InputError: it cannot be taught by this tutor.
        """
        told, yardstick = self._parts[2], self.yardstick.take(self._parts[2])
        order = class_order(tutor.contract, self._model.contract, tutor.name)
        theirs = np.asarray(tutor.output) if order is None else np.asarray(tutor.output)[:, order]
        digest = hashlib.sha256(np.ascontiguousarray(theirs, np.float32).tobytes()).hexdigest()
        labels, kind = self._labels[told], self._model.contract.kind
        controls = [self._outputs("labels", None, tutor, training) for training in range(_TRAININGS)]
        taught = [self._outputs(f"{tutor.name} {digest}", theirs, tutor, training) for training in range(_TRAININGS)]
        teaching = yardstick.probabilities(theirs[told], tutor.contract.kind)
        return Lesson(
            teacher=tutor.name,
            student=self.name,
            is_estimate=False,
            agreement=_mean([_agreement(yardstick.probabilities(one, kind), teaching) for one in taught]),
            entropy=None if teaching is None else _entropy(teaching),
            score=_mean_score([yardstick.score(one, labels) for one in taught]),
            retention=_mean([yardstick.retention(one, theirs[told], labels) for one in taught]),
            control=_mean_score([yardstick.score(one, labels) for one in controls]),
            gain=_mean_change(
                [yardstick.change(new, old, labels, "labels alone") for new, old in zip(taught, controls, strict=True)]
            ),
            student_macs=self.macs,
            steps=self.steps,
        )

    def _outputs(self, what: str, theirs: Array | None, tutor: Tutor, training: int) -> Array:
        """Return what the student gives for the held-out rows after a training, which is done once: ``[n, …]``."""
        path = self.folder / f"{self._key(f'{what} {training}')}.npy"
        if not path.exists():
            seed = self.yardstick.seed + training
            model, rows = self._fresh(seed), self._rows
            learned, judged, told = (rows.take(part) for part in self._parts)
            batch_size = min(_BATCH_SIZE, max(len(learned) // _FEWEST_BATCHES, 1))
            settings = TrainingSettings(
                epochs=max(1, round(self.steps / max(len(learned) // batch_size, 1))),
                batch_size=batch_size,
                seed=seed,
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

    def _fresh(self, seed: int) -> TorchModel:
        """Return the student with weights drawn anew, the classes named as the teacher's are."""
        learner, _ = load_student(self.source, dict(self.arguments), self.first.as_teacher(), seed)
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


def _agreement(own: Array | None, theirs: Array | None) -> float | None:
    if own is None or theirs is None:
        return None
    return float((own.argmax(axis=1) == theirs.argmax(axis=1)).mean())


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _mean_score(scores: Sequence[Score]) -> Score:
    estimate, low, high = (_mean([getattr(one, end) for one in scores]) for end in ("estimate", "low", "high"))
    return Score(estimate, low, high)


def _mean_change(changes: Sequence[Change]) -> Change:
    """Return the mean over trainings, whose interval has room for other rows and for other trainings.

    The trainings share their rows, so that the room for other rows stays that of one; what a mean of few trainings may be off
    is bounded by Student's t of their spread. Both are independent: their squares add up.
    """
    amounts = np.array([one.amount for one in changes])
    of_trainings = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(amounts) - 1) * stats.sem(amounts)) if len(amounts) > 1 else 0.0
    amount = float(amounts.mean())
    below = float(np.hypot(np.mean([one.amount - one.low for one in changes]), of_trainings))
    above = float(np.hypot(np.mean([one.high - one.amount for one in changes]), of_trainings))
    return Change(amount, amount - below, amount + above, changes[0].over)


def _entropy(probable: Array) -> float:
    return float(-(probable * np.log(np.maximum(probable, _SMALLEST_PROBABILITY))).sum(axis=1).mean())
