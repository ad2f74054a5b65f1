"""The command ``gate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from monograph.errors import ConfigError
from monograph.pipelines.cli.options import DATA, DataColumns, Json, Split, data_spec_of, print_json, say
from monograph.pipelines.progress import Progress

if TYPE_CHECKING:
    from monograph.pipelines.gate import Verdict


def gate(
    candidate: Annotated[Path | None, typer.Argument(help="The ONNX file that is to ship.", show_default=False)] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="REFERENCE", help="The ONNX file whose place it takes, such as the fused teacher.")
    ] = None,
    data: Annotated[str | None, typer.Option(help=f"Labelled rows that no step has used. {DATA}.")] = None,
    data_column: DataColumns = None,
    split: Split = None,
    group: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Rows of one value are not independent, such as those of one patient.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="YAML file of limits; a sensible one, which is printed, by default.")
    ] = None,
    on: Annotated[
        str | None, typer.Option(help="Targets, separated by commas; those that the policy has limits for, or `cpu`, by default.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="JUnit XML file to write, for a CI.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder to write verdict.json and verdict.html to.")
    ] = None,
    print_policy: Annotated[
        bool, typer.Option("--print-policy", help="Print the default policy, every key explained, and judge nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Judge whether a model may take another's place: exit code 0 pass, 1 fail, 3 not enough evidence, which blocks too."""
    from monograph.pipelines.gate import default_policy, gate_model
    from monograph.pipelines.gate.policy import policy_yaml

    if print_policy:
        from monograph.models.contract import Kind

        typer.echo(policy_yaml(default_policy(Kind.LOGITS)), nl=False)
        return
    if candidate is None or against is None:
        raise ConfigError("give the candidate, and what it is compared with by --against REFERENCE.onnx")
    progress = Progress()
    with progress.stage(f"gate {candidate} against {against}"):
        verdict = gate_model(
            candidate,
            against,
            data_spec_of(data, data_column, split),
            policy=policy,
            on=on.split(",") if on else (),
            group=group,
            on_progress=lambda what: progress.update(0, 1, what),
        )
    _write(verdict, junit, output)
    print_json(verdict) if as_json else _show(verdict, progress)
    if verdict.outcome.exit_code:
        raise typer.Exit(verdict.outcome.exit_code)


def _write(verdict: Verdict, junit: Path | None, folder: Path | None) -> None:
    if junit is not None:
        from monograph.pipelines.gate.junit import write_junit

        write_junit(verdict, junit)
    if folder is not None:
        from monograph.models.files import write_atomically
        from monograph.pipelines.records import write_record
        from monograph.pipelines.report.gate import write_gate_page

        with write_atomically(folder / "verdict.json") as staged:
            write_record(staged, verdict)
        write_gate_page(verdict, folder / "verdict.html")


def _show(verdict: Verdict, progress: Progress) -> None:
    from monograph.pipelines.gate import Policy
    from monograph.pipelines.gate.policy import policy_yaml
    from monograph.pipelines.report.gate import verdict_tables

    for note in verdict.notes:
        progress.note(note)
    if verdict.is_default_policy:
        progress.note("no --policy was given, so this one was taken (--print-policy > policy.yaml to start your own from it):")
        say(policy_yaml(Policy.model_validate(verdict.policy)))
    for table in verdict_tables(verdict):
        Console().print(table)
    for check in verdict.checks:
        if check.advice:
            say(check.describe())
    say(f"{verdict.describe()}  (policy {verdict.policy_sha256[:12]}…)")
