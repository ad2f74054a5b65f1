"""The command ``fuse``."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from monograph.errors import ConfigError
from monograph.pipelines.cli.options import (
    DATA,
    SOURCE,
    DataColumns,
    Json,
    Split,
    Tolerance,
    data_spec_of,
    numbers,
    print_json,
    say,
)
from monograph.pipelines.progress import Progress

if TYPE_CHECKING:
    from monograph.export.fusion import Fused
    from monograph.pipelines.cascade import CascadeChoices
    from monograph.pipelines.data import DataSpec
    from monograph.pipelines.fuse import Choices
    from monograph.pipelines.soup import SoupChoices

_MIX = "How members are mixed"
_CASCADE = "Cascade: the large member for hard rows only"
_SOUP = "Soup: one network of mean weights"
_GRAPH = "The graph"
_FORMS = "`logits`, `probs`, `class-weights`, `geometric`, `vote`, `mean`, `concat`, `stack`"


def fuse(
    models: Annotated[list[str], typer.Argument(help=f"Two or more members: {SOURCE}.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The .onnx file to write.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="One weight a member, summing to 1: 0.3,0.7. Equal by default.", rich_help_panel=_MIX)
    ] = None,
    class_weights: Annotated[
        Path | None,
        typer.Option(
            help="CSV of weights by class: class names in the header, then a line a member, its name first.", rich_help_panel=_MIX
        ),
    ] = None,
    normalize: Annotated[
        bool,
        typer.Option(
            "--normalize", help="Scale --weights, or each class's, to sum to 1, whatever their sum.", rich_help_panel=_MIX
        ),
    ] = False,
    fit: Annotated[
        str | None,
        typer.Option(help=f"Validation rows, labelled or with targets, to choose the weights on. {DATA}.", rich_help_panel=_MIX),
    ] = None,
    combine: Annotated[
        str | None,
        typer.Option(
            help=f"{_FORMS}; `auto` chooses one on the rows of --fit. By default what fits the members.", rich_help_panel=_MIX
        ),
    ] = None,
    search: Annotated[
        str,
        typer.Option(
            help="How --fit chooses weights: `nll`, at the minimum of the loss (squared error without classes), or `greedy`.",
            rich_help_panel=_MIX,
        ),
    ] = "nll",
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Fit a temperature for each member on the rows of --fit, before any mixing.", rich_help_panel=_MIX
        ),
    ] = False,
    temperatures: Annotated[
        str | None, typer.Option(help="One temperature a member, by which its logits are divided: 1.2,0.9.", rich_help_panel=_MIX)
    ] = None,
    cascade: Annotated[
        bool,
        typer.Option(
            "--cascade",
            help="Members in turn, smallest first, each only for rows of which the last was unsure.",
            rich_help_panel=_CASCADE,
        ),
    ] = False,
    threshold: Annotated[
        str | None,
        typer.Option(
            help="Rows of which a member is less sure go on; one number a member but the last.", rich_help_panel=_CASCADE
        ),
    ] = None,
    gate: Annotated[
        str | None, typer.Option(help="`max-probability` (default), `margin` or `entropy`.", rich_help_panel=_CASCADE)
    ] = None,
    max_drop: Annotated[
        float,
        typer.Option(
            help="With --fit: points of accuracy that may be lost against the last member alone.", rich_help_panel=_CASCADE
        ),
    ] = 0.5,
    confidence: Annotated[
        float,
        typer.Option(
            help="With --fit: with which new rows lose no more than --max-drop; "
            "0 takes the loss seen on the rows of --fit at its word.",
            rich_help_panel=_CASCADE,
        ),
    ] = 0.95,
    soup: Annotated[
        bool,
        typer.Option(
            "--soup",
            help="One network of the members' mean weights; with --fit, of those members that help, chosen greedily.",
            rich_help_panel=_SOUP,
        ),
    ] = False,
    max_barrier: Annotated[
        float | None,
        typer.Option(
            help="Points of accuracy that may be lost on the line between two members before they are taken not to "
            "share an initialisation; 2 by default, 100 allows any.",
            rich_help_panel=_SOUP,
        ),
    ] = None,
    share: Annotated[
        bool,
        typer.Option(
            "--share/--no-share", help="Run equal parts of members once, store equal weights once.", rich_help_panel=_GRAPH
        ),
    ] = True,
    horizontal: Annotated[
        str,
        typer.Option(
            help="Members of one architecture as one batch of grouped Conv and batched MatMul: `on`, `off`, or `auto`, where a "
            "measurement on the target, which takes half a minute or more, says that it pays.",
            rich_help_panel=_GRAPH,
        ),
    ] = "off",
    on: Annotated[
        str | None, typer.Option(help="The target on which --horizontal auto measures: cpu by default.", rich_help_panel=_GRAPH)
    ] = None,
    member_outputs: Annotated[
        bool,
        typer.Option(
            "--member-outputs",
            help="Write a second file beside, `fused.teaching.onnx`, that gives each member's own logits or probabilities too: "
            "teach from that by `monograph distill`, ship the first.",
            rich_help_panel=_GRAPH,
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(help=f"Rows for the proof (and the BatchNorm of --soup); those of --fit or random ones by default. {DATA}."),
    ] = None,
    data_column: DataColumns = None,
    split: Split = None,
    tolerance: Tolerance = 1e-4,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Fuse models into one ONNX graph, O = Σ αᵢOᵢ or another form, proven equal to the members run apart."""
    from monograph.pipelines.cascade import CascadeChoices
    from monograph.pipelines.fuse import Choices
    from monograph.pipelines.soup import SoupChoices

    if output is None and not dry_run:
        raise ConfigError("no output: give -o fused.onnx, or --dry-run to see the plan")
    proof_rows = data_spec_of(data, data_column, split)
    if member_outputs:
        _refuse_member_outputs(soup=soup, cascade=cascade)
    if soup:
        _refuse_with_soup(
            combine=combine,
            class_weights=class_weights,
            temperatures=temperatures,
            calibrate=calibrate,
            cascade=cascade,
            threshold=threshold,
            gate=gate,
        )
        mixture = SoupChoices(
            weights=numbers(weights, "weights"),
            normalize=normalize,
            fit=data_spec_of(fit, data_column, split),
            max_barrier=max_barrier,
        )
        _soup(models, None if dry_run else output, mixture, proof_rows, tolerance, as_json)
        return
    if max_barrier is not None:
        raise ConfigError("--max-barrier speaks of a soup: add --soup")
    if cascade:
        _refuse_with_cascade(
            weights=weights, class_weights=class_weights, combine=combine, temperatures=temperatures, calibrate=calibrate
        )
        if horizontal != "off":
            raise ConfigError("--horizontal does not go with --cascade, in which members run in turn: leave it out")
        stages = CascadeChoices(
            gate=gate,
            thresholds=numbers(threshold, "thresholds"),
            fit=data_spec_of(fit, data_column, split),
            max_drop=max_drop,
            confidence=confidence,
            share=share,
        )
        _cascade(models, None if dry_run else output, stages, proof_rows, tolerance, as_json)
        return
    if threshold is not None or gate is not None:
        raise ConfigError("--threshold and --gate speak of a cascade: add --cascade")
    choices = Choices(
        weights=numbers(weights, "weights"),
        normalize=normalize,
        fit=data_spec_of(fit, data_column, split),
        combine=combine,
        search=search,
        calibrate=calibrate,
        temperatures=numbers(temperatures, "temperatures"),
        share=share,
        class_weights=class_weights,
        horizontal=horizontal,
        on=on,
        member_outputs=member_outputs,
    )
    _mix(models, None if dry_run else output, choices, proof_rows, tolerance, as_json)


def _mix(
    models: list[str], output: Path | None, choices: Choices, proof_rows: DataSpec | None, tolerance: float, as_json: bool
) -> None:
    """Print the plan of a fusion of outputs, or build it where there is an output."""
    from monograph.pipelines.fuse import fuse_models, plan_models

    progress = Progress()
    if output is None:
        plan, cost = plan_models(models, **choices)
        print_json({"plan": plan, "cost": cost}) if as_json else say(f"{plan.describe()}\n{cost.describe()}")
        return
    with progress.stage(f"fuse {len(models)} models"):
        fused = fuse_models(models, output, data=proof_rows, tolerance=tolerance, on_progress=_timing(progress), **choices)
    if as_json:
        print_json(
            {
                "path": str(fused.file.path),
                "plan": fused.plan,
                "proof": fused.proof,
                "node_count": fused.node_count,
                "cost": fused.cost,
                "batching": fused.batching,
                "teaching": fused.teaching and _teaching_record(fused.teaching),
            }
        )
        return
    for note in (fused.teaching or fused).plan.notes:
        progress.note(note)
    shares = ", ".join(f"{member.weight:.4g} x {member.name}" for member in fused.plan.members)
    choice = [fused.plan.horizontal.describe()] if fused.plan.horizontal else []
    choice += [f"  {fused.batching.describe()}"] if fused.batching else []
    lines = [f"{fused.file.path}  {shares}", *choice, fused.cost.describe(), fused.proof.describe()]
    if fused.teaching:
        own = ", ".join(spec.name for spec in fused.teaching.plan.member_specs)
        lines += [f"{fused.teaching.file.path}  gives {own} too", fused.teaching.proof.describe()]
    say("\n".join(lines))


def _teaching_record(teaching: Fused) -> dict[str, object]:
    """Return what --json tells of the teaching graph."""
    from monograph.export.fusion.record import member_outputs

    return {
        "path": str(teaching.file.path),
        "outputs": member_outputs(teaching.file),
        "proof": teaching.proof,
        "node_count": teaching.node_count,
    }


def _timing(progress: Progress) -> Callable[[str], None]:
    """Return what moves the bar while the graphs of --horizontal auto are timed."""
    from monograph.pipelines.horizontal import PROCESSES

    done = count()
    return lambda name: progress.update(next(done), PROCESSES, f"timing {name}")


def _cascade(
    models: list[str], output: Path | None, choices: CascadeChoices, proof_rows: DataSpec | None, tolerance: float, as_json: bool
) -> None:
    """Print the plan of a cascade, or build it where there is an output."""
    from monograph.pipelines.cascade import cascade_models, plan_cascade_models

    progress = Progress()
    if output is None:
        plan = plan_cascade_models(models, **choices)
        print_json({"plan": plan}) if as_json else say(plan.describe())
        return
    with progress.stage(f"cascade of {len(models)} models"):
        built = cascade_models(models, output, data=proof_rows, tolerance=tolerance, **choices)
    if as_json:
        print_json({"path": str(built.file.path), "plan": built.plan, "proof": built.proof, "node_count": built.node_count})
        return
    say(f"{built.plan.describe()}\n{built.file.path}\n{built.proof.describe()}")


def _soup(
    models: list[str], output: Path | None, choices: SoupChoices, rows: DataSpec | None, tolerance: float, as_json: bool
) -> None:
    """Print the plan of a soup, or make it where there is an output."""
    from monograph.pipelines.soup import plan_soup_models, soup_models

    progress = Progress()
    if output is None:
        plan = plan_soup_models(models, data=rows, **choices)
        print_json({"plan": plan}) if as_json else say(plan.describe())
        return
    with progress.stage(f"soup of {len(models)} models"):
        made = soup_models(models, output, data=rows, tolerance=tolerance, **choices)
    if as_json:
        print_json({"path": str(made.file.path), "plan": made.plan, "proof": made.proof, "node_count": made.node_count})
        return
    say(f"{made.plan.describe()}\n{made.file.path}\n{made.describe()}")


def _refuse_with_soup(**options: object) -> None:
    for name, value in options.items():
        if value:
            raise ConfigError(f"--{name} does not go with --soup, which mixes weights, not outputs: leave it out")


def _refuse_with_cascade(**options: object) -> None:
    for name, value in options.items():
        if value:
            raise ConfigError(
                f"--{name.replace('_', '-')} does not go with --cascade, in which one member answers each row: leave it out"
            )


def _refuse_member_outputs(*, soup: bool, cascade: bool) -> None:
    if soup or cascade:
        mode = "--soup, which leaves one network" if soup else "--cascade, whose later members run for unsure rows only"
        raise ConfigError(
            f"--member-outputs does not go with {mode}: give the members themselves to `monograph distill`, each by --teacher"
        )
