"""The verb ``lower``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monograph.pipelines.cli.options import (
    DATA,
    DataColumns,
    Json,
    Split,
    data_spec_of,
    key_value,
    print_json,
    say,
    whole_number,
)
from monograph.pipelines.progress import Progress


def lower(
    model: Annotated[Path, typer.Argument(help="An ONNX file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write; for `sessions` the folder.")],
    to: Annotated[
        str,
        typer.Option(
            help="`int8-static`, `int8-dynamic`, `fp16` or `ort`; with fixed sizes `static-batch`, `qdq-int8`, `qdq-htp`, "
            "`qdq-htp-int8` or `qnn-context`; for a cascade `branch-free` or `sessions`."
        ),
    ],
    calibration: Annotated[
        str | None,
        typer.Option(help=f"Rows to calibrate on, a quarter of them held out to prove on; random ones by default. {DATA}."),
    ] = None,
    data_column: DataColumns = None,
    split: Split = None,
    batch_size: Annotated[int, typer.Option(help="Where the target wants a fixed one.")] = 1,
    size: Annotated[
        list[str] | None, typer.Option(metavar="NAME=N", help="Of another named dimension; 128 by default for a text's sequence.")
    ] = None,
    min_agreement: Annotated[
        float, typer.Option(help="Share of rows on which a quantised model has to choose the same class.")
    ] = 0.9,
    provider_option: Annotated[
        list[str] | None,
        typer.Option("--provider-option", metavar="KEY=VALUE", help="Of `qnn-context`: `soc_model=57` chooses the chip."),
    ] = None,
    processors: Annotated[
        str,
        typer.Option(
            "--for",
            help="`any`: 8-bit weights that are exact on every processor. `vnni` or `arm64`: full-range ones, which other x86 "
            "processors would compute wrong.",
        ),
    ] = "any",
    as_json: Json = False,
) -> None:
    """Make a model into what a target takes: fixed sizes, 8-bit or half precision, compiled, proven against the original."""
    from monograph.export.lowering import AgreementBound
    from monograph.pipelines.lower import lower_model

    progress = Progress()
    with progress.stage(f"lower {model} to {to}"):
        lowered = lower_model(
            model,
            output,
            to=to,
            calibration=data_spec_of(calibration, data_column, split),
            batch_size=batch_size,
            sizes={name: whole_number(text) for name, text in map(key_value, size or ())},
            bound=AgreementBound(top1=min_agreement),
            options=dict(map(key_value, provider_option or ())),
            processors=processors,
        )
    if as_json:
        print_json(lowered)
        return
    for note in lowered.warnings:
        progress.note(note)
    for note in lowered.notes if to == "ort" else lowered.notes[1:]:
        progress.note(note)
    say(f"{lowered.path}  {lowered.proof.describe()}")
