"""The step that teaches a student what the fused graph knows, in float and in 8 bits."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from monograph.errors import ConfigError, ParityError, SourceError
from monograph.models.onnx_file import read_onnx
from monograph.pipelines.config import DistillConfig
from monograph.pipelines.identity import identity_of
from monograph.pipelines.records import write_record
from monograph.pipelines.run.fusion import FUSED
from monograph.pipelines.run.step import TEST, TRAIN, VALIDATION, Run

if TYPE_CHECKING:
    from monograph.pipelines.distill import Distilled, Recipe

STUDENT, STUDENT_INT8 = "student", "student.int8"
"""What they are called among the contenders; their files are called alike."""
RECORD, SUMMARY = "distillation.json", "student.json"
"""The record of the verb ``distill``, and what the run's report tells of it."""


def check_student(config: DistillConfig) -> None:
    """Refuse before hours of training, not after, what the step would refuse.

    Raises:
        ConfigError: there is no such loss, option or augmentation, or no such student.
    """
    from monograph.models.sources import parse_source
    from monograph.models.students import ALL_STUDENTS
    from monograph.models.students.auto import AUTO_PREFIX
    from monograph.pipelines.distill.recipe import find_loss

    find_loss(_recipe(config, seed=0), has_unlabelled=config.unlabelled is not None)
    if config.student not in ALL_STUDENTS and not config.student.startswith(AUTO_PREFIX):
        try:
            parse_source(config.student)
        except SourceError as error:
            known = ", ".join(ALL_STUDENTS)
            raise ConfigError(f"distill.student is {config.student!r}: choose from {known}, auto:1/20, or a SOURCE") from error


def teach_student(run: Run, fused: Path, data: Path) -> Path:
    """Distil the fused graph on the rows of the members, which share one preparation; the student's own report lies there too."""
    choice = run.config.distill
    assert choice is not None
    sources = [one for one in (choice.student, choice.unlabelled) if one is not None]
    parameters = {
        "distill": choice.model_dump(mode="json"),
        "identity": [identity_of(source) for source in sources],
        "fused": fused.name,
        "data": data.name,
        "seed": run.config.seed,
    }
    return run.workspace.step("distill", parameters, lambda folder: _teach_into(folder, run, choice, fused, data))


def _teach_into(folder: Path, run: Run, choice: DistillConfig, fused: Path, data: Path) -> None:
    from monograph.pipelines.distill import distill_model
    from monograph.pipelines.report.student import student_summary
    from monograph.pipelines.training import TrainingSettings

    has_classes = read_onnx(fused / FUSED).contract.kind.has_classes
    try:
        distilled = distill_model(
            [str(fused / FUSED)],
            choice.student,
            str(data / TRAIN),
            folder,
            unlabelled=choice.unlabelled,
            validation=str(data / VALIDATION),
            test=str(data / TEST),
            student_arguments=choice.student_arguments,
            recipe=_recipe(choice, run.config.seed),
            settings=TrainingSettings(
                epochs=choice.epochs,
                batch_size=choice.batch_size,
                learning_rate=choice.learning_rate,
                mixed_precision=choice.mixed_precision,
                seed=run.config.seed,
                select="top1" if has_classes else "loss",
            ),
            quantize=choice.quantize,
            largest_loss_points=choice.quantize_loss_points,
            on=(),
            on_progress=run.workspace.progress.update,
        )
    except ParityError:
        # Where 8 bits lose too much the float student is there: it is measured and shown, and nothing is bundled.
        if not (folder / RECORD).exists():
            raise
        distilled = _read(folder)
    write_record(folder / RECORD, _with_names_alone(distilled))
    write_record(folder / SUMMARY, student_summary(distilled))
    kept = "" if distilled.retention is None else f"keeps {distilled.retention:.1%} of the fused graph's top-1"
    run.tell(kept or distilled.proof)


def _recipe(choice: DistillConfig, seed: int) -> Recipe:
    from monograph.pipelines.distill import Recipe
    from monograph.pipelines.training import Augmentation

    augmentation = Augmentation(tuple(choice.augment), choice.views, seed) if choice.augment else None
    return Recipe(choice.loss, choice.loss_options, augmentation=augmentation)


def _with_names_alone(distilled: Distilled) -> Distilled:
    """The step's folder gets its name when it is whole, so that paths into it would lead nowhere."""
    small = distilled.quantized
    if small is not None and small.path is not None:
        small = replace(small, path=Path(small.path.name))
    return replace(distilled, onnx=Path(distilled.onnx.name), weights=Path(distilled.weights.name), quantized=small)


def _read(folder: Path) -> Distilled:
    """Read the record of the verb; JSON has null for the top-1 of a model without classes, which is not a number."""
    from pydantic import TypeAdapter

    from monograph.pipelines.distill import Distilled

    record = json.loads((folder / RECORD).read_bytes())
    for training in (record["training"], record["quantized"]["training"]):
        for epoch in training["epochs"] if training else ():
            if epoch["validation_top1"] is None:
                epoch["validation_top1"] = math.nan
    return TypeAdapter(Distilled).validate_python(record)


def student_files(folder: Path) -> dict[str, Path]:
    """Return what there is of the student, by name: the last one is the candidate of the gate."""
    files = {name: folder / f"{name}.onnx" for name in (STUDENT, STUDENT_INT8)}
    return {name: path for name, path in files.items() if path.exists()}


def lacks_8_bits(config: DistillConfig, folder: Path) -> bool:
    """Tell whether 8 bits were asked for and lose more than is allowed."""
    return config.quantize is not None and STUDENT_INT8 not in student_files(folder)
