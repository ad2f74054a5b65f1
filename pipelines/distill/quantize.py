"""The student in 8 bits: quantised, set beside its float self on validation rows, and taught again where that loses too much.

Taught again it computes as its 8-bit version will, under the objective that it learned by. Source: Mishra and Marr 2018 (the
third scheme), arXiv 1711.05852; Polino et al. 2018, arXiv 1802.05668.

Shape letters: ``n`` rows, ``c`` classes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from monograph.errors import ConfigError
from monograph.export.lowering import LOWERING_KEY, WEIGHT_FORMS, AgreementBound, find_lowering, lower
from monograph.export.trace import export_torch
from monograph.models.data.rows import Rows
from monograph.models.fake_quantize import LARGEST_WEIGHT, FakeQuantized
from monograph.models.files import publish, staging_folder
from monograph.models.onnx_file import OnnxFile, load_graph, read_onnx
from monograph.models.seen import mark_seen, read_seen
from monograph.models.torch_model import TorchModel
from monograph.pipelines.lower import AGREEMENT_ROWS, CALIBRATION_ROWS
from monograph.pipelines.training import Epoch, Training, TrainingSettings
from monograph.pipelines.training.processes import on_main_process
from monograph.runtime.agreement import agreement
from monograph.runtime.metrics import score
from monograph.runtime.results import Accuracy, Agreement
from monograph.runtime.runner import run_all_rows
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
DYNAMIC, STATIC, AWARE = "dynamic", "static", "aware"
MODES = (DYNAMIC, STATIC, AWARE)
SUFFIX, AWARE_SUFFIX = ".int8.onnx", ".aware.onnx"
_LOWERINGS = {DYNAMIC: "int8-dynamic", STATIC: "int8-static", AWARE: "int8-static"}
_ANY = AgreementBound(top1=0.0, cosine=-1.0)
"""What is lost is judged on all validation rows."""
_AWARE_SHARE_OF_EPOCHS, _FEWEST_AWARE_EPOCHS = 0.2, 3
_AWARE_SHARE_OF_LEARNING_RATE = 0.1
_CALIBRATION_BATCH_SIZE = 64
_SAMPLE_SEED = 1
_TINY = float(np.finfo(np.float32).tiny)

FineTune = Callable[[TorchModel, TrainingSettings, Callable[[int, Epoch], None]], Training]
"""Trains a model in place by the objective, and on the rows, that the student learned by; tells each epoch."""


@dataclass(frozen=True)
class Trial:
    """One way to 8 bits, beside the float student on validation rows."""

    mode: str
    accuracy: Accuracy | None
    """None for a model without classes."""
    loss_points: float
    """What it lost, negative where it gained: percentage points of top-1; for a model without classes the growth of its root mean
    squared error in hundredths of the labels' standard deviation."""
    agreement: Agreement
    size_bytes: int
    """Of the file, with its proof."""
    weight_bytes: int
    weights: str | None = None
    """The form of its 8-bit weights, a name in ``WEIGHT_FORMS``; None in records of earlier versions."""

    def describe(self) -> str:
        """Return what it costs, as a clause for people."""
        verb = "gains" if self.loss_points < 0 else "loses"
        of = "of the labels' spread" if self.accuracy is None else f"of top-1 (to {self.accuracy.top1.estimate:.2%})"
        return f"{self.mode} {verb} {abs(self.loss_points):.2f} points {of}"


@dataclass(frozen=True)
class Quantized:
    """What came of the student in 8 bits."""

    path: Path | None
    """None where every way loses more than is allowed: nothing was written."""
    chosen: Trial
    """The best of ``trials``, chosen on the validation rows that it is judged on."""
    trials: tuple[Trial, ...]
    largest_loss_points: float
    """What is allowed."""
    float_accuracy: Accuracy | None
    float_size_bytes: int
    float_weight_bytes: int
    training: Training | None
    """Of the student taught again; None where it was not."""
    notes: tuple[str, ...]

    def describe(self) -> str:
        """Return one line for people."""
        judged = f"{self.chosen.describe()} on {self.chosen.agreement.row_count:,} validation rows"
        if self.path is None:
            return (
                f"{judged}, and {self.largest_loss_points:g} are allowed: nothing was written; allow more (--quantize-loss), "
                "give a wider student, or ship the float one"
            )
        return f"{judged}; weights {self.float_weight_bytes:,} to {self.chosen.weight_bytes:,} bytes"


def quantize_student(
    learner: TorchModel,
    onnx: Path,
    training_rows: Rows,
    validation_rows: Rows,
    mode: str,
    *,
    settings: TrainingSettings,
    fine_tune: FineTune,
    largest_loss_points: float = 1.0,
) -> Quantized:
    """Write ``student.int8.onnx`` beside ``student.onnx``, if it loses no more than is allowed.

    With several processes each of them calls this; one does what is not training.

    Args:
        learner: the trained student; it stays as it is.
        onnx: its float export.
        training_rows: of which some calibrate the ranges of activations.
        validation_rows: with labels, to judge by.
        mode: ``dynamic``: 8-bit weights of matrix products, no calibration; ``static``: activations too, and taught again
            where that loses more than is allowed; ``aware``: taught again in any case. The better one is kept.
        settings: of the student's training, from which those of the second one follow.
        fine_tune: trains again.
        largest_loss_points: what may be lost, as in :attr:`Trial.loss_points`.

    Raises:
        ConfigError: there is no such mode.
        DataError: the validation rows have no labels.
        ExportError: ONNX Runtime cannot quantise the student so, or PyTorch cannot export it again.
        ParityError: the second export does not compute what was trained.
    """
    check_mode(mode)
    source = read_onnx(onnx)
    calibration, proving = _draw(training_rows, CALIBRATION_ROWS), _draw(validation_rows, AGREEMENT_ROWS)
    judge, training = _Judge(source, validation_rows), None
    with staging_folder(onnx.parent) as staging:
        first = DYNAMIC if mode == DYNAMIC else STATIC
        trials = [on_main_process(partial(_attempt, first, source, staging, calibration, proving, judge))]
        if mode == AWARE or (mode == STATIC and trials[0].loss_points > largest_loss_points):
            largest_weight = WEIGHT_FORMS[trials[0].weights].largest if trials[0].weights else LARGEST_WEIGHT
            taught, training = _teach_again(learner, calibration, settings, fine_tune, largest_weight)

            def export_and_attempt() -> Trial:
                path = staging / AWARE / f"{onnx.stem}{AWARE_SUFFIX}"
                export_torch(taught, path, rows=proving.take(slice(0, 64)))
                mark_seen(path, read_seen(source))
                return _attempt(AWARE, read_onnx(path), staging, calibration, proving, judge)

            trials.append(on_main_process(export_and_attempt))
        chosen = min(trials, key=lambda trial: trial.loss_points)
        is_allowed = chosen.loss_points <= largest_loss_points
        path = on_main_process(partial(_publish, chosen.mode, staging, onnx)) if is_allowed else None
    return Quantized(
        path=path,
        chosen=chosen,
        trials=tuple(trials),
        largest_loss_points=largest_loss_points,
        float_accuracy=judge.accuracy,
        float_size_bytes=source.size_bytes,
        float_weight_bytes=_weight_bytes(source),
        training=training,
        notes=tuple(_notes(trials, chosen, training, source, largest_loss_points)),
    )


def check_mode(mode: str) -> None:
    """Raise ConfigError where there is no such mode: before hours of training, not after."""
    if mode not in MODES:
        raise ConfigError(f"unknown way to quantise {mode!r}: choose from {', '.join(MODES)}")


class _Judge:
    """Sets what was quantised beside the float student, on rows with labels."""

    def __init__(self, source: OnnxFile, rows: Rows) -> None:
        self._source, self._rows, self._labels = source, rows, rows.required_labels()
        self.name = source.path.stem
        self._expected = _outputs(source, rows)  # [n, …]
        self.accuracy, self._float_merit = self._score(self._expected)

    def __call__(self, mode: str, file: OnnxFile) -> Trial:
        got = _outputs(file, self._rows)
        has_classes = self._source.contract.kind.has_classes
        accuracy, merit = self._score(got)
        return Trial(
            mode=mode,
            accuracy=accuracy,
            loss_points=100 * (self._float_merit - merit),
            agreement=agreement(self._expected, got, self._source.path.name, has_classes=has_classes),
            size_bytes=file.size_bytes,
            weight_bytes=_weight_bytes(file),
            weights=json.loads(file.metadata[LOWERING_KEY])["settings"].get("weights"),
        )

    def _score(self, outputs: Array) -> tuple[Accuracy | None, float]:
        """Return the accuracy of a classifier, and what is better the higher it is: top-1, or less error, from 0 to 1."""
        accuracy = score(outputs, self._labels, self._source.contract)[1] if self._source.contract.kind.has_classes else None
        if accuracy is not None:
            return accuracy, accuracy.top1.estimate
        error = np.sqrt(np.mean((outputs.reshape(self._labels.shape) - self._labels) ** 2))
        return None, 1 - float(error / max(self._labels.std(), _TINY))


def _outputs(file: OnnxFile, rows: Rows) -> Array:
    return run_all_rows(open_session(file.path), file.contract, rows)


def _attempt(mode: str, file: OnnxFile, folder: Path, calibration: Rows, proving: Rows, judge: _Judge) -> Trial:
    path, rows = folder / mode / f"{judge.name}{SUFFIX}", None if mode == DYNAMIC else calibration
    lower(find_lowering(_LOWERINGS[mode]), file, path, calibration=rows, rows=proving, bound=_ANY, is_enforced=False)
    return judge(mode, read_onnx(path))


def _teach_again(
    learner: TorchModel, calibration: Rows, settings: TrainingSettings, fine_tune: FineTune, largest_weight: int
) -> tuple[TorchModel, Training]:
    """Return a copy of the student that was trained while it computed as its 8-bit version will, and that training."""
    names = [spec.name for spec in learner.contract.inputs]
    batches = [
        [torch.from_numpy(np.ascontiguousarray(batch.inputs[name])) for name in names]
        for batch in calibration.batches(_CALIBRATION_BATCH_SIZE)
    ]
    fake = FakeQuantized(copy.deepcopy(learner.module), batches, largest_weight)
    fake.calibrate()
    training = fine_tune(replace(learner, module=fake), aware_settings(settings), lambda number, epoch: fake.calibrate())
    return replace(learner, module=fake.release()), training


def aware_settings(settings: TrainingSettings) -> TrainingSettings:
    """Return how the student is taught again: a fifth of the epochs at a tenth of the learning rate, which falls to zero."""
    return replace(
        settings,
        epochs=max(_FEWEST_AWARE_EPOCHS, round(_AWARE_SHARE_OF_EPOCHS * settings.epochs)),
        learning_rate=_AWARE_SHARE_OF_LEARNING_RATE * settings.learning_rate,
        schedule="cosine",
        ema_decay=None,
    )


def _publish(mode: str, staging: Path, onnx: Path) -> Path:
    """Move the files of ``mode``: the quantised one and, where the student was taught again, its float source.

    Lists of the rows that they have seen go first, so that no model ever lacks its own.
    """
    for file in sorted((staging / mode).iterdir(), key=lambda file: file.suffix == ".onnx"):
        publish(file, onnx.with_name(file.name))
    return onnx.with_name(f"{onnx.stem}{SUFFIX}")


def _notes(
    trials: Sequence[Trial], chosen: Trial, training: Training | None, source: OnnxFile, largest_loss_points: float
) -> Iterator[str]:
    for trial in trials:
        yield trial.describe()
    if training is not None:
        yield (
            f"the student was taught again for {len(training.epochs)} epochs as its 8-bit version computes; {chosen.mode} is the "
            "better on the validation rows, which flatters it"
        )
    convolutions = sum(node.op_type == "Conv" for node in load_graph(source.path).graph.all_nodes())
    if chosen.mode == DYNAMIC and convolutions:
        yield (
            f"{convolutions} convolutions stay in float, because ONNX Runtime is slower by far at integer ones with ranges of "
            "their own for each batch: static takes them too"
        )
    if chosen.loss_points > largest_loss_points:
        yield f"no 8-bit student was written: it may lose {largest_loss_points:g} points"


def _draw(rows: Rows, count: int) -> Rows:
    """Return at most ``count`` rows, drawn by a seed, without labels."""
    drawn = np.random.default_rng(_SAMPLE_SEED).permutation(len(rows))[:count]
    return replace(rows.take(drawn), labels=None)


def _weight_bytes(file: OnnxFile) -> int:
    """Return what the weights take, without the proof, which is most of a small student's file."""
    graph = load_graph(file.path).graph
    return sum(value.const_value.nbytes for value in graph.initializers.values() if value.const_value is not None)
