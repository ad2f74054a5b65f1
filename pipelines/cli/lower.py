"""The verb ``lower``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monograph.errors import ConfigError
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

if TYPE_CHECKING:
    from monograph.export.lowering import Lowered
    from monograph.pipelines.data import DataSpec
    from monograph.pipelines.explain import Explained


def lower(
    model: Annotated[Path, typer.Argument(help="An ONNX file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write; for `sessions` the folder.")],
    to: Annotated[
        str | None,
        typer.Option(
            help="`int8-static`, `int8-dynamic`, `fp16` or `ort`; with fixed sizes `static-batch`, `qdq-int8`, `qdq-htp`, "
            "`qdq-htp-int8` or `qnn-context`; for a cascade `branch-free` or `sessions`. Without it `--explain` reads --output."
        ),
    ] = None,
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
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Of `int8-static`, `int8-dynamic` and `qdq-int8`: leave the fewest layers in float for which top-1 falls by no "
            "more, at 95% confidence on rows that nothing was chosen by; --calibration needs labels.",
        ),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="The same without labels: the share of rows that keep their class. Of other quantised models what they have to "
            "reach, 0.9 by default.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print which layers would stay in float, and write nothing.")
    ] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Compare what is written, or without --to what is in --output, with MODEL layer by layer, and time both.",
        ),
    ] = False,
    timing: Annotated[bool, typer.Option("--timing/--no-timing", help="Whether --explain times the two.")] = True,
    report: Annotated[Path | None, typer.Option(help="HTML file for --explain to write.")] = None,
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
    _check(to, max_drop, min_agreement, dry_run, explain, report, data_column, calibration)
    rows = data_spec_of(calibration, data_column, split)
    sizes = {name: whole_number(text) for name, text in map(key_value, size or ())}
    progress = Progress()
    if dry_run:
        assert to is not None
        _plan(progress, model, output, to, rows, as_json, batch_size, sizes, max_drop, min_agreement)
        return
    lowered = None
    if to is not None:
        options = dict(map(key_value, provider_option or ()))
        lowered = _lower(
            progress, model, output, to, rows, is_quiet=as_json, batch_size=batch_size, sizes=sizes, max_drop=max_drop,
            min_agreement=min_agreement, options=options, processors=processors,
        )  # fmt: skip
    explained = _explain(progress, model, output, rows, timing, report) if explain else None
    if as_json:
        print_json({"lowered": lowered, "explained": explained} if explained and lowered else explained or lowered)
        return
    if lowered is not None:
        _show(progress, lowered)
    if explained is not None:
        _show_explained(progress, explained, report)


def _check(
    to: str | None,
    max_drop: float | None,
    min_agreement: float | None,
    dry_run: bool,
    explain: bool,
    report: Path | None,
    data_column: list[str] | None,
    calibration: str | None,
) -> None:
    """Refuse options that contradict each other."""
    has_limit = max_drop is not None or min_agreement is not None
    if to is None and not explain:
        raise ConfigError("what to make of the model is missing: give --to, or --explain for a file that is there already")
    if to is None and has_limit:
        raise ConfigError("--max-drop and --min-agreement say what a quantised model may lose: give --to int8-static")
    if dry_run and not has_limit:
        raise ConfigError("--dry-run prints which layers stay in float: give --max-drop or --min-agreement")
    if dry_run and explain:
        raise ConfigError("--dry-run writes nothing that --explain could compare: leave one of them out")
    if report is not None and not explain:
        raise ConfigError("--report is the page of --explain: give both")
    if data_column and calibration is None:
        raise ConfigError("--data-column names columns of DATA: give --calibration")


def _plan(
    progress: Progress,
    model: Path,
    output: Path,
    to: str,
    rows: DataSpec | None,
    as_json: bool,
    batch_size: int,
    sizes: dict[str, int],
    max_drop: float | None,
    min_agreement: float | None,
) -> None:
    from monograph.pipelines.lower import plan_lowering

    with progress.stage(f"plan {model} as {to}"):
        plan = plan_lowering(
            model, output, to=to, calibration=rows, batch_size=batch_size, sizes=sizes, max_drop=max_drop,
            min_agreement=min_agreement, on_progress=progress.update,
        )  # fmt: skip
    print_json(plan) if as_json else _show_plan(plan)


def _lower(
    progress: Progress, model: Path, output: Path, to: str, rows: DataSpec | None, *, is_quiet: bool, **choices: Any
) -> Lowered:
    from monograph.export.lowering import SESSIONS, AgreementBound, find_lowering
    from monograph.pipelines.lower import ORT_FORMAT, lower_model

    bound = None
    if choices["min_agreement"] is not None and to not in (SESSIONS, ORT_FORMAT) and _only_checks(find_lowering(to)):
        bound, choices["min_agreement"] = AgreementBound(top1=choices["min_agreement"]), None
    with progress.stage(f"lower {model} to {to}"):
        return lower_model(
            model,
            output,
            to=to,
            calibration=rows,
            bound=bound,
            on_plan=(lambda plan: None) if is_quiet else _show_plan,
            on_progress=progress.update,
            **choices,
        )


def _only_checks(lowering: Any) -> bool:
    """Say whether a lowering to 8 bits leaves no layer in float, so that an agreement can be checked and not sought."""
    return bool(lowering.is_quantised and lowering.prepare is None)


def _explain(
    progress: Progress, model: Path, output: Path, rows: DataSpec | None, timing: bool, report: Path | None
) -> Explained:
    from monograph.pipelines.explain import explain_model

    with progress.stage(f"explain {output}"):
        explained = explain_model(
            model, output, data=rows, has_timing=timing, on_progress=lambda name: progress.update(0, 1, name)
        )
    if report is not None:
        from monograph.pipelines.report.lowering_page import write_lowering_page

        write_lowering_page(explained, report)
    return explained


def _show(progress: Progress, lowered: Lowered) -> None:
    for note in lowered.warnings:
        progress.note(note)
    for note in lowered.notes if lowered.lowering == "ort" else lowered.notes[1:]:
        progress.note(note)
    say(f"{lowered.path}  {lowered.proof.describe()}")


def _show_plan(plan: Any) -> None:
    from rich.console import Console

    from monograph.pipelines.report.grid import grid_table
    from monograph.pipelines.report.lowering_tables import plan_grid

    Console().print(grid_table(plan_grid(plan)))


def _show_explained(progress: Progress, explained: Explained, report: Path | None) -> None:
    from rich.console import Console

    from monograph.pipelines.report.grid import grid_table
    from monograph.pipelines.report.lowering_tables import explanation_grids

    say(explained.explanation.describe())
    for grid in explanation_grids(explained):
        Console().print(grid_table(grid))
    if explained.speed is not None:
        say(explained.speed.describe())
    for note in explained.warnings:
        progress.note(note)
    if report is not None:
        say(f"report: {report}")
