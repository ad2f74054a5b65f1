"""The command ``run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from monograph.pipelines.cli.options import Json, Threads
from monograph.pipelines.progress import Progress
from monograph.runtime.processor import requesting_threads

if TYPE_CHECKING:
    from monograph.pipelines.run import RunResult


def run(
    pipeline: Annotated[Path, typer.Argument(help="Pipeline file, for example pipelines/quickstart.yaml.")],
    out: Annotated[Path | None, typer.Option(help="Output folder; `runs/NAME` by default.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one setting, such as measure.blocks=3.")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Run a pipeline file: adapt or train, export, fuse, distil, measure, gate, bundle, report. Nothing is done twice.

    Exit code 1 where the gate fails and 3 where it is inconclusive, after everything is written.
    """
    from monograph.pipelines.run import run_pipeline

    with requesting_threads(threads):
        result = run_pipeline(pipeline, out, set_ or (), Progress())
    if as_json:
        typer.echo(result.result.read_text(encoding="utf-8"), nl=False)
    else:
        _show(result)
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _show(result: RunResult) -> None:
    from monograph.pipelines.records import read_record
    from monograph.pipelines.report import Report, contender_table, line_tables

    report = read_record(result.result, Report)
    console = Console()
    console.print(contender_table(report.contenders))
    for ratio in report.ratios:
        console.print(f"{ratio.name}: [bold]{ratio.estimate:.2f}[/bold] [{ratio.low:.2f}, {ratio.high:.2f}]", soft_wrap=True)
    for table in line_tables(report):
        console.print(table)
    lines = [f"fused graph  {result.fused}"]
    lines += [f"student      {result.student}"] if result.student else []
    lines += [f"gate         {report.verdict.told}"] if report.verdict else []
    lines += [f"bundle       {result.bundle or report.bundle.told}"] if report.bundle else []
    console.print("\n" + "\n".join([*lines, f"report       {result.report}"]), soft_wrap=True, highlight=False, markup=False)
