"""The command ``bundle``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monograph.errors import ConfigError
from monograph.pipelines.cli.options import Json, key_value, print_json, say
from monograph.pipelines.progress import Progress


def bundle(
    model: Annotated[Path, typer.Argument(help="The ONNX file that ships; monograph wrote it, so it carries golden batches.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write; an intact bundle is replaced.")],
    further: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help="Further files of --lowered and --measurement.", show_default=False),
    ] = None,
    lowered: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE …", help="What `monograph lower` made of MODEL for a target; .onnx or .ort."),
    ] = None,
    verdict: Annotated[Path | None, typer.Option(help="The verdict.json of `monograph gate` on MODEL.")] = None,
    measurement: Annotated[
        list[Path] | None, typer.Option(metavar="FILE …", help="What `monograph measure -o` wrote; what is of MODEL is taken.")
    ] = None,
    licence: Annotated[str | None, typer.Option(metavar="SPDX", help="Of the model, such as Apache-2.0.")] = None,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TARGET=SHARE",
            help="Largest error of golden outputs on a target, of the largest value; the proof's by default.",
        ),
    ] = None,
    require_pass: Annotated[
        bool, typer.Option("--require-pass", help="Refuse without a passing verdict: exit code 1 fail, 3 inconclusive, 2 none.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the folder that ships: model, contract, golden batches, evidence, card, manifest, and a script that runs it."""
    from monograph.pipelines.bundle import bundle_model

    forms, measurements = _sorted_files(lowered, measurement, further or [])
    progress = Progress()
    with progress.stage(f"bundle {model}"):
        made = bundle_model(
            model,
            output,
            lowered=forms,
            verdict=verdict,
            measurements=measurements,
            licence=licence,
            require_pass=require_pass,
            tolerances={target: _share(share) for target, share in map(key_value, tolerance or ())},
        )
    if as_json:
        print_json(made)
        return
    for note in made.notes:
        progress.note(note)
    say(made.describe())


def _sorted_files(
    lowered: list[Path] | None, measurement: list[Path] | None, further: list[Path]
) -> tuple[list[Path], list[Path]]:
    """Return lowered models and measurements: further files belong to the option of their kind, where that is given."""
    forms, measurements = list(lowered or ()), list(measurement or ())
    for path in further:
        is_measurement = path.suffix == ".json"
        if not (measurement if is_measurement else lowered):
            option = "--measurement" if is_measurement else "--lowered"
            raise ConfigError(f"{path} was given beside the model: bundle one model at a time, or say what it is by {option}")
        (measurements if is_measurement else forms).append(path)
    return forms, measurements


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is no number: a tolerance is written --tolerance cuda=0.001") from error
