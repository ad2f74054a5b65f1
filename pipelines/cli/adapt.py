"""The verb ``adapt``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

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
    print_json,
    say,
)
from monograph.pipelines.progress import Progress
from monograph.runtime.processor import requesting_threads


def adapt(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"{SOURCE}. An ONNX file keeps its trunk and gets a new head.")],
    data: Annotated[str, typer.Option(help=f"Rows with labels. {DATA}.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write: adapted.onnx, weights, record, report.")],
    method: Annotated[
        str,
        typer.Option(
            help="`head` (seconds), `batchnorm`, `last-layers`, `full`, `lp-ft`, `layer-decay`, `lora`, `wise-ft`, or `auto`: "
            "cheap ones first, bad ones stopped early."
        ),
    ] = "head",
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=NUMBER", help="Of the method: `layers=2`, `decay=0.7`, `rank=16`; once for each."),
    ] = None,
    budget: Annotated[str | None, typer.Option(help="For `auto`: `90s`, `10m` (by default) or `1h`.")] = None,
    task: Annotated[
        str,
        typer.Option(help="`classification`, `multi-label`, `regression`, `click`, `rating`; `auto` looks at the labels."),
    ] = "auto",
    features: Annotated[
        str | None, typer.Option(help="The tensor of an ONNX file that the head takes; its output, where that is an embedding.")
    ] = None,
    argument: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="For the factory of a `py:` model, such as `width=8`.")
    ] = None,
    validation: Annotated[
        str | None, typer.Option(help="Labelled rows to choose epoch, method and temperature on; a fifth of --data by default.")
    ] = None,
    test: Annotated[str | None, typer.Option(help="Labelled rows to compare on; a fifth of --data by default.")] = None,
    shifted: Annotated[
        str | None, typer.Option(help="Labelled rows of another origin: what `wise-ft` does there is told, never chosen by.")
    ] = None,
    data_column: DataColumns = None,
    split: Split = None,
    allow: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Problems to mend and tell instead of refusing the rows: `missing-class`, `duplicates`, `unreadable`.",
        ),
    ] = "",
    augment: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="`flip`, `shift`, `crop`, `erase`: done to training pictures by all but `head`."),
    ] = None,
    class_weights: Annotated[
        bool, typer.Option("--class-weights", help="Let each class count as much as any other, however many rows it has.")
    ] = False,
    label_smoothing: Annotated[float | None, typer.Option(help="The share of each label that all classes get alike.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="30 for a head, 3 for more by default.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="256 for a head, 32 for more by default.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At the peak of the schedule; by the method by default.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="0.01 by default.")] = None,
    schedule: Annotated[str | None, typer.Option(help="`one-cycle` (by default), `cosine` or `constant`.")] = None,
    gradient_accumulation: Annotated[int | None, typer.Option(min=1, help="Parts that a batch is cut into.")] = None,
    ema_decay: Annotated[float | None, typer.Option(help="Keep a moving average of the weights, such as 0.999.")] = None,
    patience: Annotated[int | None, typer.Option(help="Epochs without a better one after which to stop.")] = None,
    mixed_precision: Annotated[str | None, typer.Option(help="`no` (by default), `fp16` or `bf16`.")] = None,
    seed: Annotated[int, typer.Option(help="Of the parts, a fresh head, order and dropout.")] = 0,
    on: Annotated[str, typer.Option(help="Targets to measure the model on, separated by commas; empty for none.")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the adaptation that was stopped in the folder.")] = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Adapt a pretrained model to a task, export it with a proof, and set it beside what simple models reach."""
    from monograph.pipelines.adapt import adapt_model
    from monograph.pipelines.report.adaptation_tables import adaptation_tables
    from monograph.pipelines.training import Augmentation
    from monograph.pipelines.training.processes import is_main_process, leaving_together

    asked: dict[str, Any] = {
        "label_smoothing": label_smoothing,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "gradient_accumulation": gradient_accumulation,
        "ema_decay": ema_decay,
        "patience": patience,
        "mixed_precision": mixed_precision,
    }
    rows = data_spec_of(data, data_column, split)
    assert rows is not None
    progress = Progress()
    with progress.stage(f"adapt to {output}"), leaving_together(), requesting_threads(threads):
        adapted = adapt_model(
            model,
            rows,
            output,
            validation=data_spec_of(validation, data_column, split),
            test=data_spec_of(test, data_column, split),
            shifted=data_spec_of(shifted, data_column, split),
            method=method,
            task=task,
            features=features,
            arguments={key: json_or_text(value) for key, value in map(key_value, argument or ())},
            settings={name: value for name, value in asked.items() if value is not None},
            options={key: json_or_text(value) for key, value in map(key_value, option or ())},
            augmentation=None if augment is None else Augmentation(tuple(augment.split(","))),
            budget=budget,
            class_weights=class_weights,
            allow=[name for name in allow.split(",") if name],
            resume=resume,
            on=[target for target in on.split(",") if target],
            seed=seed,
            on_progress=progress.update,
        )
    if not is_main_process():
        return
    if as_json:
        print_json(adapted)
        return
    from rich.console import Console

    for table in adaptation_tables(adapted):
        Console().print(table)
    for note in adapted.notes:
        progress.note(note)
    say(adapted.verdict())
    say(f"{adapted.onnx}  {adapted.proof}")
    say(f"report: {output / 'report.html'}")
