"""The verb ``distill``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monograph.errors import ConfigError
from monograph.pipelines.cli.options import (
    DATA,
    SOURCE,
    DataColumns,
    Json,
    Split,
    Threads,
    data_spec_of,
    json_or_text,
    key_value,
    numbers,
    print_json,
    say,
)
from monograph.pipelines.progress import Progress
from monograph.runtime.processor import requesting_threads


def distill(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder to write: student.onnx, weights, checkpoint, record.")
    ],
    data: Annotated[str, typer.Option(help=f"Rows with labels. {DATA}.")],
    teacher: Annotated[
        list[str] | None,
        typer.Option("--teacher", metavar="SOURCE", help=f"Once for each teacher; a fused graph is one. {SOURCE}."),
    ] = None,
    student: Annotated[
        str,
        typer.Option(help="`conv`, `separable_conv`, `mlp` …, `auto:1/10` of the teacher's work, or a `py:` or `hf:` source."),
    ] = "auto:1/10",
    student_argument: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="For the student's factory, such as `width=8`.")
    ] = None,
    unlabelled: Annotated[str | None, typer.Option(help="More rows of the domain, whose labels are not looked at. DATA.")] = None,
    validation: Annotated[
        str | None, typer.Option(help="Labelled rows to choose the epoch on; a fifth of --data by default.")
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="Labelled rows to compare on; the validation rows by default, which flatter.")
    ] = None,
    data_column: DataColumns = None,
    split: Split = None,
    loss: Annotated[
        str, typer.Option(help="`kd`, `dkd`, `dist`, `standardised-kd`, `soft-labels`, `mse`, `cosine`, `rkd`.")
    ] = "kd",
    loss_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=NUMBER", help="Such as `temperature=4` or `hard_weight=0.1`.")
    ] = None,
    teacher_weights: Annotated[
        str, typer.Option(help="Of several teachers: `equal`, `confidence` (more for those that are right), or `0.7,0.3`.")
    ] = "equal",
    augment: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="`flip`, `shift`, `crop`, `erase` of pictures, `drop` of tokens, separated by commas: alike for all models.",
        ),
    ] = None,
    views: Annotated[
        int, typer.Option(min=0, help="Augmented views of each row, taken in turn by the epochs; 0: a new one each epoch.")
    ] = 8,
    augment_seed: Annotated[int, typer.Option(help="Of the views: the same seed draws the same ones.")] = 0,
    teacher_outputs: Annotated[
        str, typer.Option(help="`kept` on disk, asked `live` in each step, or `auto`: whichever asks less often.")
    ] = "auto",
    hint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER=LAYER",
            help="A layer of the student and the one of the PyTorch teacher that teaches it; once for each.",
        ),
    ] = None,
    hint_loss: Annotated[
        str, typer.Option(help="`hint`: squared error after a learned projection, or `attention`: between maps of energy.")
    ] = "hint",
    hint_weight: Annotated[
        float | None, typer.Option(help="Of the layers' loss; 1 for `hint` and 1000 for `attention` by default.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the rows.")] = 30,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="At the peak of the schedule.")] = 3e-3,
    schedule: Annotated[str, typer.Option(help="`one-cycle`, `cosine` or `constant`.")] = "one-cycle",
    gradient_accumulation: Annotated[int, typer.Option(min=1, help="Parts that a batch is cut into, for want of memory.")] = 1,
    max_gradient_norm: Annotated[float | None, typer.Option(help="Longer gradients are clipped to it.")] = None,
    ema_decay: Annotated[float | None, typer.Option(help="Keep a moving average of the weights, such as 0.999.")] = None,
    patience: Annotated[int | None, typer.Option(help="Epochs without a better one after which to stop.")] = None,
    mixed_precision: Annotated[str, typer.Option(help="`no`, `fp16` or `bf16`.")] = "no",
    seed: Annotated[int, typer.Option(help="Of weights, order and dropout.")] = 0,
    quantize: Annotated[
        str | None,
        typer.Option(
            help="Write student.int8.onnx too: `dynamic`, `static`, or `aware`, taught again as it computes in 8 bits, which "
            "`static` does where it loses too much."
        ),
    ] = None,
    quantize_loss: Annotated[
        float,
        typer.Option(help="What 8 bits may lose on validation rows, in points of top-1, or hundredths of the labels' spread."),
    ] = 1.0,
    on: Annotated[str, typer.Option(help="Targets to measure the student on, separated by commas; empty for none.")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the training that was stopped in the folder.")] = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Teach a small student what one or several teachers know, export it with a proof, and set it beside them."""
    if not teacher:
        raise ConfigError("no teacher: give one or more, --teacher SOURCE")
    from monograph.pipelines.distill import CONFIDENCE, Hints, Recipe, distill_model
    from monograph.pipelines.report.distillation import distillation_tables
    from monograph.pipelines.training import Augmentation, TrainingSettings
    from monograph.pipelines.training.processes import is_main_process, leaving_together

    is_named = teacher_weights in ("equal", CONFIDENCE)
    weights = teacher_weights if is_named else tuple(numbers(teacher_weights, "weights of teachers") or ())
    options = {key: _number(value, key) for key, value in map(key_value, loss_option or ())}
    augmentation = None if augment is None else Augmentation(tuple(augment.split(",")), views, augment_seed)
    hints = Hints(dict(map(key_value, hint)), hint_loss, hint_weight) if hint else None
    recipe = Recipe(loss, options, weights, augmentation, hints, teacher_outputs)
    rows = data_spec_of(data, data_column, split)
    assert rows is not None
    progress = Progress()
    with progress.stage(f"distill to {output}"), leaving_together(), requesting_threads(threads):
        distilled = distill_model(
            teacher,
            student,
            rows,
            output,
            unlabelled=data_spec_of(unlabelled, data_column, split),
            validation=data_spec_of(validation, data_column, split),
            test=data_spec_of(test, data_column, split),
            student_arguments={key: json_or_text(value) for key, value in map(key_value, student_argument or ())},
            recipe=recipe,
            settings=TrainingSettings(
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=learning_rate,
                schedule=schedule,
                gradient_accumulation=gradient_accumulation,
                max_gradient_norm=max_gradient_norm,
                ema_decay=ema_decay,
                patience=patience,
                mixed_precision=mixed_precision,
                seed=seed,
                select="top1",
            ),
            quantize=quantize,
            largest_loss_points=quantize_loss,
            resume=resume,
            on=[target for target in on.split(",") if target],
            on_progress=progress.update,
        )
    if not is_main_process():
        return
    if as_json:
        print_json(distilled)
        return
    from rich.console import Console

    for table in distillation_tables(distilled):
        Console().print(table)
    for note in distilled.notes:
        progress.note(note)
    say(f"{distilled.onnx}  {distilled.proof}")
    if distilled.quantized is not None:
        say(f"{distilled.quantized.path or 'in 8 bits'}  {distilled.quantized.describe()}")
    say(f"report: {output / 'report.html'}")


def _number(text: str, key: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"{key}={text}: give a number") from error
