"""The command ``verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monograph.errors import ConfigError
from monograph.pipelines.cli.options import DATA, DataColumns, Json, Split, data_spec_of, print_json, say
from monograph.pipelines.progress import Progress


def verify(
    model: Annotated[Path, typer.Argument(help="An ONNX file that monograph wrote, or a bundle: its folder, or a .zip of it.")],
    further: Annotated[
        list[str] | None, typer.Argument(metavar="MEMBER", help="Further files of --members.", show_default=False)
    ] = None,
    on: Annotated[str, typer.Option(help="The target; `monograph targets` lists them.")] = "cpu",
    members: Annotated[
        list[str] | None,
        typer.Option(
            "--members",
            metavar="A.onnx B.onnx …",
            help="The files that were fused, in any order: their SHA-256 is checked, and the fusion compared with them afresh.",
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help=f"Rows for the comparison with --members; random ones by default. {DATA}.")
    ] = None,
    data_column: DataColumns = None,
    split: Split = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Largest absolute error allowed, as a share of the largest reference value; the proof's by default."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the proof that a file, or a bundle, holds again: exit code 0 where all is equal, 1 where something is not."""
    from monograph.pipelines.bundle import looks_like_bundle
    from monograph.pipelines.verify import verify_model

    if further and not members:
        raise ConfigError(f"{1 + len(further)} files given: verify one at a time, or say that the others are its --members")
    if looks_like_bundle(model):
        if members or data:
            raise ConfigError(f"{model} is a bundle, which holds no members: compare its model.onnx with them")
        _verify_bundle(model, on, tolerance, as_json)
        return
    progress = Progress()
    with progress.stage(f"verify {model} on {on}"):
        found = verify_model(
            model,
            on=on,
            members=[*(members or ()), *(further or ())],
            data=data_spec_of(data, data_column, split),
            tolerance=tolerance,
        )
    print_json({"passed": found.passed, "verification": found}) if as_json else say(found.describe())
    if not found.passed:
        raise typer.Exit(1)


def _verify_bundle(path: Path, on: str, tolerance: float | None, as_json: bool) -> None:
    from monograph.pipelines.bundle import verify_bundle

    progress = Progress()
    with progress.stage(f"verify {path} on {on}"):
        found = verify_bundle(path, on=on, tolerance=tolerance)
    print_json({"passed": found.passed, "verification": found}) if as_json else say(found.describe())
    if not found.passed:
        raise typer.Exit(1)
