"""The command line: one command a verb, over the functions of the same name.

Exit codes: 0 done or pass, 1 fail, 2 the user's input was wrong, 3 inconclusive, 130 interrupted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

import monograph
from monograph.errors import ConfigError, MonographError
from monograph.pipelines.cli.adapt import adapt
from monograph.pipelines.cli.bundle import bundle
from monograph.pipelines.cli.distill import distill
from monograph.pipelines.cli.fusion import fuse
from monograph.pipelines.cli.gate import gate
from monograph.pipelines.cli.interop import interop
from monograph.pipelines.cli.lower import lower
from monograph.pipelines.cli.options import (
    DATA,
    SOURCE,
    DataColumns,
    Json,
    Split,
    Tolerance,
    data_spec_of,
    escape_line,
    escape_lines,
    json_or_text,
    key_value,
    print_json,
    say,
    whole_number,
)
from monograph.pipelines.cli.run import run
from monograph.pipelines.cli.verify import verify
from monograph.pipelines.progress import Progress

if TYPE_CHECKING:
    from monograph.runtime.load import LoadSpec
    from monograph.runtime.loadgen import LoadgenSpec
    from monograph.runtime.results import Measurement

app = typer.Typer(
    name="monograph",
    help="Many models, one graph: export, fuse, prove and measure ONNX models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

_INTERRUPTED = 130


def main() -> NoReturn:
    """Run the command line and exit."""
    sys.exit(_exit_code(sys.argv[1:]))


def _exit_code(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        result = command.main(arguments, prog_name="monograph", standalone_mode=False)
    except MonographError as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        result = _INTERRUPTED
    except Exception as error:
        # What click raises for a wrong option carries its own message; anything else is a bug and keeps its traceback.
        if not hasattr(error, "format_message"):
            raise
        return _fail(" ".join(error.format_message().split()), ConfigError.exit_code)
    if result == _INTERRUPTED:  # typer turns Ctrl-C into this result
        # CPython marks an interrupt that crossed an exec() of text, as imports do, as unhandled for good, and would then
        # end by the signal whatever the exit code; the next exec() of text clears the mark.
        exec("")  # noqa: S102
        return _fail("interrupted; nothing was left half-written", _INTERRUPTED)
    return result if isinstance(result, int) else 0


def _fail(message: str, exit_code: int) -> int:
    Console(stderr=True, highlight=False).print(f"[red]monograph:[/red] {escape_line(message)}", soft_wrap=True)
    return exit_code


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"monograph {monograph.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Many models, one graph: export, fuse, prove and measure ONNX models."""


app.command()(run)


@app.command()
def export(
    source: Annotated[str, typer.Argument(help=f"SOURCE: {SOURCE}.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    task: Annotated[str | None, typer.Option(help="Of a Hugging Face model; guessed from its architecture by default.")] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX opset, 20 by default.")] = None,
    route: Annotated[
        str, typer.Option(help="`auto`, `dynamo`, `torchscript` (the older exporter) or, for `hf:`, `optimum`.")
    ] = "auto",
    dynamo: Annotated[
        bool, typer.Option("--dynamo/--no-dynamo", help="`--no-dynamo` is short for `--route torchscript`.")
    ] = True,
    argument: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="For the factory of a `py:` source; the value is JSON or text.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Safetensors file for the module of a `py:` source.")] = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Read weights from a pickle, tensors only.")] = False,
    input_: Annotated[
        list[str] | None,
        typer.Option(
            "--input", metavar="NAME:DTYPE:DIM,…", help="An input of a module without a contract: pixels:float32:batch,3,224,224."
        ),
    ] = None,
    classes: Annotated[str | None, typer.Option(help="Class names in order: `a,b,c`, or a .txt or .json file.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="What the output is: logits, probabilities, regression, embedding or scores.")
    ] = None,
    data: Annotated[str | None, typer.Option(help=f"Rows to prove parity on; fresh random ones by default. {DATA}.")] = None,
    data_column: DataColumns = None,
    split: Split = None,
    tolerance: Tolerance = 1e-4,
    as_json: Json = False,
) -> None:
    """Export a model to ONNX with a contract inside, proven equal to it at batch 1, 2 and 5.

    An ONNX file can be given too: it gets the contract that `--kind` and `--classes` state.
    """
    from monograph.pipelines.export import export_model

    progress = Progress()
    with progress.stage(f"export {source}"):
        exported = export_model(
            source,
            output,
            task=task,
            opset=opset,
            route=route if dynamo else "torchscript",
            arguments={key: json_or_text(value) for key, value in map(key_value, argument or ())},
            weights=weights,
            allow_pickle=allow_pickle,
            inputs=input_ or (),
            class_names=classes,
            kind=kind,
            data=data_spec_of(data, data_column, split),
            tolerance=tolerance,
        )
    if as_json:
        print_json(exported)
        return
    for note in exported.contract.assumed:
        progress.note(note)
    say(f"{exported.path}  by {exported.route}, {exported.proof.describe()}")


app.command()(fuse)
app.command()(verify)
app.command()(lower)
app.command()(distill)
app.command()(adapt)
app.command()(interop)
app.command()(gate)
app.command()(bundle)


@app.command()
def measure(
    models: Annotated[list[Path] | None, typer.Argument(help="ONNX files, or folders of cascades in stages.")] = None,
    on: Annotated[str, typer.Option(help="Targets, separated by commas; `monograph targets` lists them.")] = "cpu",
    data: Annotated[str | None, typer.Option(help=f"Labelled test rows for accuracy. {DATA}.")] = None,
    data_column: DataColumns = None,
    split: Split = None,
    slice_: Annotated[
        list[str] | None,
        typer.Option("--slice", metavar="COLUMN", help="The same metrics for each value of a column of DATA, or of `class`."),
    ] = None,
    group: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Rank the rows of one value against each other, such as one user's.")
    ] = None,
    parity: Annotated[
        bool, typer.Option("--parity", help="Compare each target's outputs with those of cpu and of --reference.")
    ] = False,
    reference: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="With --parity: the PyTorch source, `py:…` or `hf:…`.")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help=f"Rows to quantise with, for targets that take quantised models only, as qnn-htp does. {DATA}."),
    ] = None,
    rows: Annotated[
        int | None, typer.Option(help="Score on this many rows, drawn at random; for targets where a call takes seconds.")
    ] = None,
    batch_sizes: Annotated[str, typer.Option(help="Latency at the first, throughput at all of them.")] = "1,8,32",
    threads: Annotated[int | None, typer.Option(help="Intra-op threads; all usable cores by default.")] = None,
    spinning: Annotated[
        bool, typer.Option("--spinning/--no-spinning", help="Whether idle threads spin, ONNX Runtime's default.")
    ] = True,
    min_runs: Annotated[int, typer.Option(min=40, help="Fewest timed runs; p99 needs 368.")] = 400,
    min_seconds: Annotated[float, typer.Option(min=0, help="Least time a batch size, after warm-up.")] = 1.0,
    max_seconds: Annotated[float, typer.Option(help="Longest time a batch size, once 40 runs are done.")] = 20.0,
    concurrency: Annotated[int | None, typer.Option(help="Measure with this many callers at once, too.")] = None,
    rate: Annotated[
        float | None, typer.Option(help="Measure calls that arrive at this many a second, too, from the intended arrival on.")
    ] = None,
    arrivals: Annotated[str, typer.Option(help="How calls arrive at `--rate`: `poisson` or `constant`.")] = "poisson",
    scenario: Annotated[
        str | None,
        typer.Option(help="MLPerf LoadGen's scenario, too: `single-stream`, `multi-stream`, `server` (by `--rate`), `offline`."),
    ] = None,
    latency_bound_ms: Annotated[float, typer.Option(help="What 99% of queries of `--scenario server` must keep.")] = 100.0,
    profile: Annotated[
        bool, typer.Option("--profile", help="Tell the time per operator, provider and member of a fused graph, too.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Time each model in turns with the first, too, and tell how much faster it is.")
    ] = False,
    blocks: Annotated[int, typer.Option(help="Of `--compare`: each runs every model twice, in fresh processes.")] = 7,
    provider_option: Annotated[
        list[str] | None,
        typer.Option("--provider-option", metavar="KEY=VALUE", help="Option of the execution provider; a wrong name is refused."),
    ] = None,
    allow_fallback: Annotated[
        bool, typer.Option("--allow-fallback", help="Measure even where nodes that a target cannot take run elsewhere.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write, raw samples included.")] = None,
    samples: Annotated[Path | None, typer.Option(help="File to write every timed call to, as JSON Lines.")] = None,
    report: Annotated[Path | None, typer.Option(help="HTML file to write.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of the result, and measure nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Measure accuracy and latency, each model in a fresh process of its own."""
    from monograph.pipelines.schema import schema_json, write_samples

    if schema:
        typer.echo(schema_json(), nl=False)
        return
    if not models:
        raise ConfigError("no model to measure: give one or more ONNX files")
    from monograph.pipelines.measure import measure_models
    from monograph.pipelines.records import write_record
    from monograph.runtime.timing import TimingRule

    progress, start_s = Progress(), time.monotonic()
    failures: list[tuple[str, str, MonographError]] = []
    with progress.stage(f"measure {len(models)} model{'s' if len(models) > 1 else ''} on {on}"):
        measurements = measure_models(
            models,
            on=on.split(","),
            data=data_spec_of(data, data_column, split),
            calibration=data_spec_of(calibration, data_column, split),
            row_count=rows,
            batch_sizes=[whole_number(text) for text in batch_sizes.split(",")],
            threads=threads,
            spinning=spinning,
            rule=TimingRule(min_runs=min_runs, min_s=min_seconds, max_s=max_seconds),
            options=dict(map(key_value, provider_option or ())),
            allow_fallback=allow_fallback,
            slices=slice_ or (),
            group=group,
            parity=parity,
            reference=reference,
            load=_load_spec(concurrency, rate, arrivals) if scenario is None else None,
            loadgen=_loadgen_spec(scenario, rate, latency_bound_ms, concurrency),
            profile=profile,
            compare_blocks=blocks if compare else None,
            on_progress=lambda model, target: progress.update(0, len(models), f"{model} on {target}"),
            on_failure=lambda model, target, error: failures.append((model, target, error)),
        )
        if not measurements:
            raise failures[0][2]
    if output is not None:
        from monograph.models.files import write_atomically

        with write_atomically(output) as staged:
            write_record(staged, measurements)
    if samples is not None:
        write_samples(samples, measurements)
    if report is not None:
        from monograph.pipelines.report.measurements import write_measurement_report

        write_measurement_report(report, measurements, data, time.monotonic() - start_s)
    if as_json:
        print_json(measurements)
    else:
        _show_measurements(measurements, progress)
    if failures:
        for model, target, error in failures[1:]:
            progress.note(f"{model} on {target} was not measured: {error}")
        model, target, error = failures[0]
        raise type(error)(f"{model} on {target} was not measured: {error}")


def _show_measurements(measurements: Sequence[Measurement], progress: Progress) -> None:
    """Print a table of what was measured, one of what was asked for beside, and the notes."""
    from monograph.pipelines.report import Contender, contender_table, terminal_tables
    from monograph.runtime.results import Evidence

    console = Console()
    ran = [Contender(one.model, "member", one) for one in measurements if one.evidence is not Evidence.PREDICTED]
    if ran:
        console.print(contender_table(ran))
    for table in terminal_tables(measurements):
        console.print(table)
    for note in dict.fromkeys(note for one in measurements for note in (*one.assumed, *one.warnings)):
        progress.note(note)


def _load_spec(concurrency: int | None, rate: float | None, arrivals: str) -> LoadSpec | None:
    from monograph.runtime.load import LoadSpec

    return None if concurrency is None and rate is None else LoadSpec(1 if concurrency is None else concurrency, rate, arrivals)


def _loadgen_spec(
    scenario: str | None, rate: float | None, latency_bound_ms: float, concurrency: int | None
) -> LoadgenSpec | None:
    from monograph.runtime.loadgen import LoadgenSpec

    if scenario is None:
        return None
    return LoadgenSpec(scenario, rate, latency_bound_ms / 1e3, 1 if concurrency is None else concurrency)


@app.command()
def targets(
    install: Annotated[
        str | None, typer.Option(metavar="TARGET", help="First bring what TARGET needs beside packages of pip and apt.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the targets of this machine, with what evidence a figure on each would carry."""
    from monograph.runtime.targets import TARGETS, find_target

    if install is not None:
        bring = find_target(install).install
        if bring is None:
            raise ConfigError(f"{install} has nothing to install here: {find_target(install).describe()}")
        installed = bring()
        if not as_json:
            say(f"installed {installed}")

    rows = [
        {"name": target.name, "title": target.title, "available": here.is_here, "evidence": here.evidence or target.evidence}
        | {"detail": here.detail, "remedy": here.remedy}
        for target in TARGETS.values()
        if (here := target.probe())
    ]
    if as_json:
        print_json(rows)
        return
    from rich.table import Table

    table = Table("target", "here", "evidence", "what it is, or what is missing and how to get it", box=None, pad_edge=False)
    for row in rows:
        told = f"{row['title']}: {row['detail']}" + (
            f"\n[bold]{escape_lines(str(row['remedy']))}[/bold]" if row["remedy"] else ""
        )
        table.add_row(str(row["name"]), "yes" if row["available"] else "no", str(row["evidence"]), told)
    Console().print(table)
