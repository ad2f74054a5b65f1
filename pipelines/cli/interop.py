"""The command ``interop``."""

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
    print_json,
    say,
)
from monograph.pipelines.progress import Progress
from monograph.runtime.processor import requesting_threads


def interop(
    models: Annotated[list[str] | None, typer.Argument(help=f"SOURCEs, two or more: {SOURCE}.", show_default=False)] = None,
    data: Annotated[str | None, typer.Option(help=f"Labelled rows that no model was trained on. {DATA}.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for all that is found.")] = Path(
        "interop"
    ),
    data_column: DataColumns = None,
    split: Split = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Train nothing: estimate distillation by agreement and entropy, and say so.")
    ] = False,
    budget: Annotated[
        int, typer.Option(min=1, metavar="STEPS", help="Of each short training of a student: changes of its weights.")
    ] = 400,
    student: Annotated[
        list[str] | None,
        typer.Option(
            help="Who learns beside models that are PyTorch themselves: a student's name, or `auto:1/10`, which is the default; "
            "may be given several times."
        ),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL=TENSOR,…", help="Inner tensors to compare, the last for probes; a few are chosen by default."
        ),
    ] = None,
    argument: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="For the factories of all `py:` sources; the value is JSON or text."),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Of scores: rows of one value are ranked against each other, such as a user's films."
        ),
    ] = None,
    on: Annotated[str, typer.Option(help="Target that models and fusions are timed on; empty for none.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of halves, resamples and students.")] = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Tell how well models help one another, by fusion, distillation and adaptation, with advice and the command for it."""
    from rich.console import Console

    from monograph.pipelines.interop import interop_models
    from monograph.pipelines.interop.result import DEFAULT_STUDENTS, REPORT_FILE
    from monograph.pipelines.report.interop_tables import interop_tables

    rows = data_spec_of(data, data_column, split)
    if rows is None:
        raise ConfigError("no rows: give labelled ones that no model was trained on, --data DATA")
    arguments = {key: json_or_text(value) for key, value in map(key_value, argument or ())}
    progress = Progress()
    with progress.stage(f"interop to {output}"), requesting_threads(threads):
        study = interop_models(
            models or [],
            rows,
            output,
            quick=quick,
            steps=budget,
            students=student or DEFAULT_STUDENTS,
            layers={name: tensors.split(",") for name, tensors in map(key_value, layer or ())},
            arguments=dict.fromkeys(models or (), arguments) if arguments else None,
            group=group,
            on=on or None,
            seed=seed,
            on_progress=progress.update,
        )
    if as_json:
        print_json(study)
        return
    for table in interop_tables(study):
        Console().print(table)
    for number, one in enumerate(study.advice, start=1):
        if one.command:
            say(f"{number}. {one.command}")
    for note in study.notes:
        progress.note(note)
    say(f"report: {output / REPORT_FILE}")
