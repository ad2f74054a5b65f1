"""Where the student stands beside its teachers: accuracy, fidelity, cost and latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from monograph.models.contract import Kind
from monograph.models.data.rows import Array, Rows
from monograph.models.onnx_file import read_onnx
from monograph.models.size import count_macs, count_parameters
from monograph.models.torch_model import TorchModel
from monograph.pipelines.distill.quantize import Quantized
from monograph.pipelines.distill.recipe import Recipe, combined_outputs
from monograph.pipelines.distill.student import teacher_macs
from monograph.pipelines.teachers import Teacher
from monograph.pipelines.training import Training
from monograph.runtime.agreement import agreement
from monograph.runtime.measure import Settings, measure, onnx_contender
from monograph.runtime.metrics import score
from monograph.runtime.results import Accuracy, Agreement, Measurement
from monograph.runtime.targets import find_target

ONNX_FILE, WEIGHTS_FILE = "student.onnx", "student.safetensors"


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
    quantized: Quantized | None = None
    """The student in 8 bits, where that was asked for."""


def measure_all(students: Sequence[Path], teachers: Sequence[Teacher], rows: Rows, on: Sequence[str]) -> tuple[Measurement, ...]:
    """Measure the student's files, and teachers that are ONNX files, on each target: latency, and accuracy of the former."""
    made = []
    for target in map(find_target, on):
        for path in (*students, *(teacher.path for teacher in teachers if teacher.path is not None)):
            file = read_onnx(path)
            contender = onnx_contender(path.stem, path, file.contract, file.sha256, file.size_bytes, target)
            made.append(measure(contender, target, rows if path in students else None, Settings(batch_sizes=(1,))))
    return tuple(made)


def conclude(
    folder: Path,
    learner: TorchModel,
    teachers: Sequence[Teacher],
    test_rows: Rows,
    test_outputs: Array,
    test_name: str,
    recipe: Recipe,
    training: Training,
    measurements: tuple[Measurement, ...],
    proof: str,
    notes: tuple[str, ...],
) -> Distilled:
    """Set the trained student beside its teachers on ``test_rows``, for which they gave ``test_outputs`` ``[t x n x c]``.

    Raises:
        DataError: those rows have no labels.
    """
    contract = replace(learner.contract, kind=Kind.LOGITS) if learner.contract.kind.has_classes else learner.contract
    labels = test_rows.required_labels()
    given = np.concatenate([learner(batch.inputs)[contract.output.name] for batch in test_rows.batches(512)])
    combined = combined_outputs(test_outputs, contract, recipe)
    standings = tuple(
        Standing(
            teacher.name,
            score(outputs, labels, contract)[1],
            None,
            teacher_macs(teacher),
            count_parameters(teacher.module.module) if teacher.module else None,
            read_onnx(teacher.path).size_bytes if teacher.path else None,
        )
        for teacher, outputs in zip(teachers, test_outputs, strict=True)
    )
    together = score(combined, labels, contract)[1]
    own = score(given, labels, contract)[1]
    fidelity = agreement(combined, given, "the teachers", has_classes=contract.kind.has_classes)
    size = (folder / ONNX_FILE).stat().st_size
    student = Standing(learner.name, own, fidelity, count_macs(learner), count_parameters(learner.module), size)
    retention = own.top1.estimate / together.top1.estimate if own and together and together.top1.estimate else None
    return Distilled(
        folder / ONNX_FILE,
        folder / WEIGHTS_FILE,
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
