"""The verb ``distill``: a student learns what one or several teachers know, is exported, proven, and set beside them.

Shape letters: ``b`` batch, ``c`` classes, ``n`` rows, ``t`` teachers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from monograph.errors import ConfigError, DataError
from monograph.export.trace import export_torch
from monograph.models.contract import Contract, Kind
from monograph.models.data.rows import Rows
from monograph.models.data.split import stratified_split
from monograph.models.files import write_atomically
from monograph.models.onnx_file import read_onnx
from monograph.models.size import count_macs, count_parameters
from monograph.models.sources import Scheme, load_python_model, parse_source
from monograph.models.students import ALL_STUDENTS, STUDENTS
from monograph.models.torch_model import TorchModel, save_weights
from monograph.pipelines.data import DataSpec, as_data_spec
from monograph.pipelines.losses import (
    LOSSES,
    DistillationLoss,
    LossOptions,
    combine_teachers,
    confidence_weights,
    fixed_weights,
    mixed,
    options_for,
)
from monograph.pipelines.records import write_record
from monograph.pipelines.teachers import Teacher, cached_outputs, class_order, load_teacher
from monograph.pipelines.training import UNLABELLED, Batch, Epoch, Objective, Training, TrainingSettings, train
from monograph.pipelines.training.checkpoint import FILE as CHECKPOINT
from monograph.runtime.agreement import agreement
from monograph.runtime.measure import Settings, measure, onnx_contender
from monograph.runtime.metrics import score
from monograph.runtime.results import Accuracy, Agreement, Measurement
from monograph.runtime.targets import find_target

Array = npt.NDArray[Any]
CONFIDENCE = "confidence"
VALIDATION_SHARE = 0.2
_WEIGHTS, _ONNX, _RESULT = "student.safetensors", "student.onnx", "distillation.json"


@dataclass(frozen=True)
class Recipe:
    """How a student learns, beside the training's own settings."""

    loss: str = "kd"
    options: Mapping[str, float] = field(default_factory=dict)
    """Of the loss: ``temperature``, ``hard_weight`` …"""
    teacher_weights: str | tuple[float, ...] = "equal"
    """Of several teachers: ``equal``, numbers, or ``confidence``: more for those that are right about a row."""


@dataclass(frozen=True)
class Standing:
    """A teacher or the student on the test rows."""

    name: str
    accuracy: Accuracy | None
    fidelity: Agreement | None
    """How far the student's outputs are the teachers' combined ones; None for a teacher."""
    macs: int | None
    parameter_count: int | None
    size_bytes: int | None


@dataclass(frozen=True)
class Distilled:
    """What came of it."""

    onnx: Path
    weights: Path
    loss: str
    training: Training
    teachers: tuple[Standing, ...]
    student: Standing
    test_rows: str
    """Which rows the standings are on."""
    retention: float | None
    """The student's share of the teachers' combined top-1."""
    measurements: tuple[Measurement, ...]
    """Of the student and of teachers that are ONNX files, on the targets asked for."""
    proof: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    """Rows as the student takes them, and what each teacher gives for them."""

    rows: Rows
    outputs: Array
    """float32 ``[t x n x c]``."""


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
    on_stage: Callable[[str], None] = lambda name: None,
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
        on_stage: told the name of each step.
        on_progress: told how much of a step is done.

    Raises:
        InputError: a model or the data cannot be used, or teacher and student cannot be aligned.
        ParityError: the exported student does not compute what the trained one does.
        MonographError: the loss is not finite.
    """
    folder, recipe, settings = Path(out), recipe or Recipe(), settings or TrainingSettings(select="top1")
    _check_folder(folder, resume)
    loss = _find_loss(recipe, has_unlabelled=unlabelled is not None)
    on_stage("load teachers and student")
    asked = [load_teacher(source) for source in teachers]
    learner, notes = _load_student(student, student_arguments or {}, asked[0], settings.seed)
    orders = [class_order(teacher.contract, learner.contract, teacher.name) for teacher in asked]
    parts, test_name = _read_parts(learner, asked, data, unlabelled, validation, test, settings.seed)
    learner = _with_class_names(learner, asked, parts)
    on_stage("ask the teachers")
    answered = {name: _ask(asked, orders, rows, folder / "teachers", on_progress) for name, rows in parts.items()}
    on_stage("train the student")
    training = _train(learner, answered, recipe, loss, settings, folder, asked, on_progress)
    on_stage("export and prove")
    save_weights(learner.module, folder / _WEIGHTS)
    exported = export_torch(learner, folder / _ONNX, rows=_few(answered["validation"].rows))
    on_stage("compare")
    measurements = _measure(folder / _ONNX, asked, answered["test"].rows, on)
    distilled = _conclude(
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


def _find_loss(recipe: Recipe, *, has_unlabelled: bool) -> tuple[DistillationLoss, LossOptions]:
    if recipe.loss not in LOSSES:
        raise ConfigError(f"unknown loss {recipe.loss!r}: choose from {', '.join(LOSSES)}")
    loss = LOSSES[recipe.loss]
    if loss.takes == "feature maps":
        raise ConfigError(
            f"{loss.name} compares feature maps inside the networks, which this verb does not hand on: choose another"
        )
    if loss.needs_labels and has_unlabelled:
        raise ConfigError(f"{loss.name} needs a label for every row: leave out --unlabelled, or choose another loss")
    options = options_for(loss, recipe.options)
    return mixed(loss, options.hard_weight), options


def _load_student(text: str, arguments: Mapping[str, Any], teacher: Teacher, seed: int) -> tuple[TorchModel, tuple[str, ...]]:
    """Return the student with fresh weights drawn from ``seed``, or those that its source carries."""
    torch.manual_seed(seed)
    if text.startswith("auto:"):
        from monograph.models.students.auto import auto_student

        macs = teacher_macs(teacher)
        if macs is None:
            raise ConfigError(
                f"the multiply-accumulates of {teacher.name} cannot be counted, so {text} has no size: name a student"
            )
        parameters = None if teacher.module is None else count_parameters(teacher.module.module)
        return auto_student(
            macs,
            teacher.contract,
            _class_count(teacher.contract),
            text,
            teacher_parameters=parameters,
            teacher=teacher.module,
            tokenizer_json=teacher.tokenizer_json,
        )
    if text in ALL_STUDENTS:
        return _registered(text, arguments, teacher), ()
    source = parse_source(text)
    if source.scheme is Scheme.ONNX:
        raise ConfigError(f"student {text} is an ONNX file, which cannot be trained: give its PyTorch source")
    if source.scheme is Scheme.HUGGING_FACE:
        from monograph.models.huggingface import load_huggingface

        return load_huggingface(source.location), ()
    return load_python_model(source, arguments=arguments), ()


def _registered(name: str, arguments: Mapping[str, Any], teacher: Teacher) -> TorchModel:
    """Return a student of the registry for the teacher's inputs and classes, where the arguments do not say otherwise."""
    chosen = dict(arguments)
    shape = teacher.contract.inputs[0].shape[1:]
    if name in STUDENTS and all(isinstance(size, int) for size in shape):
        chosen.setdefault("input_shape", tuple(shape))
    if "class_count" in inspect.signature(ALL_STUDENTS[name]).parameters:
        chosen.setdefault("class_count", _class_count(teacher.contract))
    try:
        module, contract = ALL_STUDENTS[name](**chosen)
    except TypeError as error:
        raise ConfigError(f"student {name} was called with {chosen}: {error}") from error
    return TorchModel(module, contract, name, teacher.tokenizer_json)


def _class_count(contract: Contract) -> int:
    count = contract.output.shape[-1]
    if not isinstance(count, int):
        raise ConfigError(f"output {contract.output.describe()} has no fixed width, so a student cannot be made for it")
    return count


def teacher_macs(teacher: Teacher) -> int | None:
    """Return what a row costs a teacher, in multiply-accumulates; None where that cannot be counted."""
    if teacher.module is not None:
        return count_macs(teacher.module)
    from monograph.export.fusion.macs import count_macs as count_graph_macs

    return None if teacher.path is None else count_graph_macs(teacher.path)


def _read_parts(
    learner: TorchModel,
    teachers: Sequence[Teacher],
    data: str | DataSpec,
    unlabelled: str | DataSpec | None,
    validation: str | DataSpec | None,
    test: str | DataSpec | None,
    seed: int,
) -> tuple[dict[str, list[Rows]], str]:
    """Return the rows of each part, as the student takes them and then as each teacher does, in the same order."""
    specs = {"data": data, "unlabelled": unlabelled, "validation": validation, "test": test}
    read: dict[str, list[Rows]] = {}
    for name, given in specs.items():
        spec = as_data_spec(given)
        if spec is not None:
            read[name] = _read_for_each(learner, teachers, spec, needs_labels=name != "unlabelled")
    labelled = read["data"]
    if "validation" not in read:
        shares = {"train": 1 - VALIDATION_SHARE, "validation": VALIDATION_SHARE}
        drawn = [stratified_split(replace(rows, labels=labelled[0].labels), shares, seed) for rows in labelled]
        labelled, read["validation"] = [one["train"] for one in drawn], [one["validation"] for one in drawn]
    unlabelled_rows = read.get("unlabelled")
    training = labelled if unlabelled_rows is None else [_joined(*pair) for pair in zip(labelled, unlabelled_rows, strict=True)]
    test_name = "test rows" if "test" in read else "validation rows, on which the epoch was chosen: they flatter the student"
    return {"train": training, "validation": read["validation"], "test": read.get("test", read["validation"])}, test_name


def _read_for_each(learner: TorchModel, teachers: Sequence[Teacher], spec: DataSpec, *, needs_labels: bool) -> list[Rows]:
    """Read once for each way to prepare the rows: a teacher may want other sizes, scales or tokens than the student."""
    tokenizer = learner.tokenizer_json or next((one.tokenizer_json for one in teachers if one.tokenizer_json), None)
    own = spec.load(learner.contract, tokenizer, needs_labels=needs_labels)
    read = [own]
    for teacher in teachers:
        names = [each.name for each in teacher.contract.inputs]
        alike = [replace(each, name="") for each in teacher.contract.inputs] == [
            replace(each, name="") for each in learner.contract.inputs
        ]
        if alike and (teacher.tokenizer_json or tokenizer) == tokenizer:
            read.append(replace(own, inputs=dict(zip(names, own.inputs.values(), strict=True))))
        else:
            read.append(spec.load(teacher.contract, teacher.tokenizer_json, needs_labels=needs_labels))
        if len(read[-1]) != len(own):
            raise DataError(
                f"{teacher.name} takes {len(read[-1])} rows of {spec.source} and the student {len(own)}: clean the data"
            )
    return read


def _joined(labelled: Rows, unlabelled: Rows) -> Rows:
    """Return all rows, those without labels behind the others."""
    inputs = {name: np.concatenate([array, unlabelled.inputs[name]]) for name, array in labelled.inputs.items()}
    labels = np.concatenate([labelled.required_labels(), np.full(len(unlabelled), UNLABELLED)])
    return replace(labelled, inputs=inputs, labels=labels)


def _with_class_names(learner: TorchModel, teachers: Sequence[Teacher], parts: Mapping[str, Sequence[Rows]]) -> TorchModel:
    """Name the student's classes as its first teacher or its data does, where it has no names of its own."""
    contract = learner.contract
    names = contract.class_names or teachers[0].contract.class_names or parts["train"][0].class_names
    if not contract.kind.has_classes or names is None or len(names) != _class_count(contract):
        return learner
    return replace(learner, contract=replace(contract, class_names=tuple(names)))


def _ask(
    teachers: Sequence[Teacher],
    orders: Sequence[Sequence[int] | None],
    rows: Sequence[Rows],
    folder: Path,
    on_progress: Callable[[int, int, str], None],
) -> _Part:
    own, *theirs = rows
    outputs = []
    for teacher, order, each in zip(teachers, orders, theirs, strict=True):

        def show(done: int, total: int, name: str = teacher.name) -> None:
            on_progress(done, total, f"{name}: {done:,} of {total:,} rows")

        outputs.append(cached_outputs(teacher, each, folder, order, show))
    return _Part(own, np.stack(outputs))


def _train(
    learner: TorchModel,
    parts: Mapping[str, _Part],
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


def teaching_objective(
    loss: DistillationLoss, options: LossOptions, outputs: Tensor, weights: str | tuple[float, ...] = "equal"
) -> Objective:
    """Return what a student minimises: the loss of each row against what the teachers gave for the row of that number.

    Args:
        loss: between the student's outputs and the teachers' combined ones.
        options: of the loss.
        outputs: of the teachers, float32 ``[t x n x c]``, by the number of the row.
        weights: of the teachers: ``equal``, ``confidence``, or numbers.

    Raises:
        ConfigError: there are no such weights, or not one a teacher, or the loss takes no classes and ``weights`` tells which
            teacher is right about them.
    """
    if weights == CONFIDENCE and loss.takes != "logits":
        raise ConfigError(f"{loss.name} takes {loss.takes}, and {CONFIDENCE} weights are for classes: give equal, or numbers")
    count = len(outputs)
    fixed = None if weights == CONFIDENCE else fixed_weights([1.0] * count if weights == "equal" else _numbers(weights, count))
    temperature = options.temperature if "temperature" in loss.reads else 1.0

    def objective(student: list[Tensor], batch: Batch) -> Tensor:
        given = outputs[:, batch.rows.cpu()].to(student[0].device)  # [t x b x c]
        labels = batch.labels if batch.labels.dtype == torch.int64 else None
        if count == 1:
            combined = given[0]
        elif fixed is not None and loss.takes != "logits":
            combined = torch.einsum("t,t...->...", fixed.to(given.device), given)
        else:
            own = confidence_weights(given, labels) if fixed is None else fixed.to(given.device)
            combined = combine_teachers(given, own, temperature)
        return loss.compute(student[0], combined, labels, options)

    return objective


def _numbers(weights: str | tuple[float, ...], count: int) -> list[float]:
    if isinstance(weights, str):
        raise ConfigError(f"teacher weights {weights!r}: give equal, {CONFIDENCE}, or a number for each teacher")
    if len(weights) != count:
        raise ConfigError(f"{len(weights)} weights for {count} teachers: give one for each")
    return list(weights)


def _few(rows: Rows) -> Rows:
    return rows.take(slice(0, 64))


def _measure(onnx: Path, teachers: Sequence[Teacher], rows: Rows, on: Sequence[str]) -> tuple[Measurement, ...]:
    """Measure the student, and teachers that are ONNX files, on each target: latency, and accuracy of the student."""
    made = []
    for target in map(find_target, on):
        for path in (onnx, *(teacher.path for teacher in teachers if teacher.path is not None)):
            file = read_onnx(path)
            contender = onnx_contender(path.stem, path, file.contract, file.sha256, file.size_bytes, target)
            made.append(measure(contender, target, rows if path == onnx else None, Settings()))
    return tuple(made)


def _conclude(
    folder: Path,
    learner: TorchModel,
    teachers: Sequence[Teacher],
    test: _Part,
    test_name: str,
    recipe: Recipe,
    training: Training,
    measurements: tuple[Measurement, ...],
    proof: str,
    notes: tuple[str, ...],
) -> Distilled:
    contract = replace(learner.contract, kind=Kind.LOGITS) if learner.contract.kind.has_classes else learner.contract
    labels = test.rows.required_labels()
    given = np.concatenate([learner(batch.inputs)[contract.output.name] for batch in test.rows.batches(512)])
    combined = _combined(test.outputs, contract, recipe)
    standings = tuple(
        Standing(
            teacher.name,
            score(outputs, labels, contract)[1],
            None,
            teacher_macs(teacher),
            count_parameters(teacher.module.module) if teacher.module else None,
            read_onnx(teacher.path).size_bytes if teacher.path else None,
        )
        for teacher, outputs in zip(teachers, test.outputs, strict=True)
    )
    together = score(combined, labels, contract)[1]
    own = score(given, labels, contract)[1]
    fidelity = agreement(combined, given, "the teachers", has_classes=contract.kind.has_classes)
    size = (folder / _ONNX).stat().st_size
    student = Standing(learner.name, own, fidelity, count_macs(learner), count_parameters(learner.module), size)
    retention = own.top1.estimate / together.top1.estimate if own and together and together.top1.estimate else None
    return Distilled(
        folder / _ONNX,
        folder / _WEIGHTS,
        recipe.loss,
        training,
        standings,
        student,
        test_name,
        retention,
        measurements,
        proof,
        notes,
    )


def _combined(outputs: Array, contract: Contract, recipe: Recipe) -> Array:
    """Return what the teachers give together, without looking at labels: float32 ``[n x c]``."""
    weights = recipe.teacher_weights if isinstance(recipe.teacher_weights, tuple) else (1.0,) * len(outputs)
    if len(outputs) == 1 or not contract.kind.has_classes:
        return np.asarray(np.average(outputs, axis=0, weights=weights))
    return combine_teachers(torch.from_numpy(np.array(outputs)), fixed_weights(weights), 1.0).numpy()
