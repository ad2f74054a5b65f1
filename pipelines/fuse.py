"""The verb ``fuse``: two or more models to one proven graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict, Unpack

from monograph.errors import ConfigError, FusionError
from monograph.export.fusion import Cost, Fused, FusionPlan, estimate_cost, fit_fusion, fuse, plan_fusion
from monograph.export.fusion.align import align_classes, class_leader
from monograph.export.fusion.class_weights import read_class_weights
from monograph.export.fusion.fit import AUTO
from monograph.export.fusion.naming import member_names
from monograph.export.fusion.teaching import teaching_path, with_member_outputs
from monograph.export.parity import TOLERANCE
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.models.seen import SeenRows, seen, seen_by
from monograph.models.sources import Scheme, parse_source
from monograph.pipelines.data import DataSpec, as_data_spec
from monograph.pipelines.export import checked_output, export_model, rows_for
from monograph.pipelines.horizontal import AUTO as MEASURED
from monograph.pipelines.horizontal import OFF, check_horizontal, measured_horizontal, planned_horizontal


class Choices(TypedDict, total=False):
    """What the user decides about a fusion; all of it has a default."""

    weights: Sequence[float] | None
    """One a member, summing to 1; equal ones by default."""
    normalize: bool
    """Scale ``weights``, or each class's, to sum to 1, whatever their sum."""
    class_weights: str | Path | Sequence[Sequence[float]] | None
    """One row a member, one column a class in the fused order; or a CSV file of them: class names, then a line a member."""
    fit: str | DataSpec | None
    """DATA with labels, or targets, on which to choose the weights; not the rows you will test on."""
    combine: str | None
    """A form, ``auto`` to have one chosen on the rows of ``fit``, or None for what fits the members' kinds."""
    search: str
    """How ``fit`` chooses weights: ``nll``, at the minimum of the loss, or ``greedy``, member by member."""
    calibrate: bool
    """Fit a temperature for each member on the rows of ``fit`` before anything is mixed."""
    temperatures: Sequence[float] | None
    """One a member, by which its logits are divided."""
    share: bool
    """Run equal parts of members once; True by default."""
    horizontal: str
    """``on`` runs members of one architecture as one batch, ``auto`` does where a measurement says that it pays; else ``off``."""
    on: str | None
    """The target on which ``auto`` measures, ``cpu`` by default."""
    member_outputs: bool
    """Write a teaching graph beside the fused one: see :func:`~monograph.export.fusion.teaching.with_member_outputs`."""


def fuse_models(
    models: Sequence[str | Path],
    output: str | Path,
    *,
    data: str | DataSpec | None = None,
    tolerance: float = TOLERANCE,
    on_progress: Callable[[str], None] = lambda name: None,
    **choices: Unpack[Choices],
) -> Fused:
    """Fuse ``models`` into the ONNX file ``output``, proven equal to the members run apart.

    With ``member_outputs`` a second file lies beside it, ``fused.teaching.onnx`` for ``fused.onnx``, to distil from: it gives
    each member's own output too, proven equal to that member run alone. What ships is the same with and without.

    Args:
        models: ONNX files, or other sources, which are exported first.
        output: where to write.
        data: DATA whose rows the proof runs on; the rows of ``fit``, or else fresh random ones, by default.
        tolerance: largest absolute error allowed, as a share of the largest absolute reference value.
        on_progress: told before each process that times a graph for ``horizontal="auto"``.
        choices: see :class:`Choices`.

    Raises:
        InputError: a model, the weights or the data cannot be used.
        ParityError: the fused graph would not compute what the members do; nothing is written. Or the teaching graph would
            not, and that alone is not written.
    """
    path = checked_output(output)
    with _planned(models, choices) as (plan, files, known):
        for written in (path, teaching_path(path)) if choices.get("member_outputs") else (path,):
            check_output_is_new(written, [file.path for file in files])
        rows = rows_for(data or choices.get("fit"), plan.contract, plan.tokenizer_json)
        if choices.get("horizontal") == MEASURED:
            plan = measured_horizontal(plan, rows, on=choices.get("on"), tolerance=tolerance, on_progress=on_progress)
        fused = fuse(plan, path, rows=rows, tolerance=tolerance, seen=known)
        if not choices.get("member_outputs"):
            return fused
        teaching = with_member_outputs(plan)
        taught = fuse(teaching, teaching_path(path), rows=rows, tolerance=tolerance, shipped=path, seen=known)
        return replace(fused, teaching=taught)


def plan_models(models: Sequence[str | Path], **choices: Unpack[Choices]) -> tuple[FusionPlan, Cost]:
    """Return what :func:`fuse_models` would build from the same arguments, and what it would cost; nothing is written.

    Raises:
        InputError: a model, the weights or the data cannot be used.
    """
    with _planned(models, choices) as (plan, *_):
        return plan, estimate_cost(plan)


@contextmanager
def _planned(models: Sequence[str | Path], choices: Choices) -> Iterator[tuple[FusionPlan, list[OnnxFile], SeenRows]]:
    """Yield the plan, its members and what it has seen; members that had to be exported first live as long as the block."""
    _check(choices)
    with members_as_onnx(models) as files:
        fit, known = None, seen_by(files)
        if (spec := as_data_spec(choices.get("fit"))) is not None:
            rows = labelled_rows(spec, files)
            known |= seen("fit", rows[0])
            fit = fit_fusion(
                files,
                rows,
                choices.get("combine"),
                temperature=choices.get("calibrate", False),
                search=choices.get("search", "nll"),
            )
        plan = plan_fusion(
            files,
            names=member_names([file.path for file in files]),
            weights=choices.get("weights"),
            normalize=choices.get("normalize", False),
            combine=choices.get("combine"),
            temperatures=choices.get("temperatures"),
            fit=fit,
            share=choices.get("share", True),
            class_weights=_class_weights(choices.get("class_weights"), files),
        )
        if choices.get("member_outputs"):
            with_member_outputs(plan)  # refuses before anything is written
        yield planned_horizontal(plan, choices.get("horizontal", OFF)), files, known


def _class_weights(
    given: str | Path | Sequence[Sequence[float]] | None, files: Sequence[OnnxFile]
) -> Sequence[Sequence[float]] | None:
    """Return weights by class as they were given, or as the file holds them."""
    if not isinstance(given, str | Path):
        return given
    names = member_names([file.path for file in files])
    contracts = [file.contract for file in files]
    class_names, _ = align_classes(contracts, names)
    return read_class_weights(Path(given), names, class_names, contracts[class_leader(contracts) or 0].class_count)


@contextmanager
def members_as_onnx(models: Sequence[str | Path]) -> Iterator[list[OnnxFile]]:
    """Yield the members as ONNX files; those that had to be exported first live as long as the block.

    Raises:
        InputError: there is none to fuse with, or one cannot be used.
    """
    if len(models) < 2:
        raise FusionError(f"{len(models)} model given: a fusion needs two or more members")
    with TemporaryDirectory(prefix="monograph-members-") as folder:
        yield [_as_onnx(str(model), Path(folder) / str(index)) for index, model in enumerate(models)]


def labelled_rows(spec: DataSpec, files: Sequence[OnnxFile]) -> list[Rows]:
    """Return the labelled rows of DATA, read once for each member.

    A member that lacks classes cannot number the labels itself: they are read as the one that has them all does.

    Raises:
        InputError: the data cannot be used, or has no labels.
    """
    leader = files[class_leader([file.contract for file in files]) or 0].contract
    every = set(leader.class_names or ())
    rows = []
    for file in files:
        lacking = set(file.contract.class_names or every) < every
        contract = replace(file.contract, class_names=leader.class_names, outputs=leader.outputs) if lacking else file.contract
        rows.append(spec.load(contract, file.tokenizer_json, needs_labels=True))
    return rows


def check_output_is_new(path: Path, members: Sequence[Path]) -> None:
    """Refuse to write over a member.

    Raises:
        ConfigError: ``path`` is one of ``members``.
    """
    if path.resolve() in {member.resolve() for member in members}:
        raise ConfigError(f"output {path} is one of the members: choose another name")


def _check(choices: Choices) -> None:
    check_horizontal(choices.get("horizontal", OFF), choices.get("on"), share=choices.get("share", True))
    fitted = choices.get("fit") is not None
    if fitted and choices.get("weights") is not None:
        raise ConfigError("--weights and --fit exclude each other: give the weights or have them fitted")
    if choices.get("class_weights") is not None:
        for name in ("weights", "fit"):
            if choices.get(name) is not None:
                raise ConfigError(f"--class-weights and --{name} exclude each other: give the weights or have them fitted")
    if choices.get("calibrate") and choices.get("temperatures") is not None:
        raise ConfigError("--temperatures and --calibrate exclude each other: give the temperatures or have them fitted")
    if fitted and choices.get("temperatures") is not None:
        raise ConfigError("--temperatures and --fit exclude each other: have them fitted with --calibrate")
    if not fitted:
        for wanted, option in (
            (choices.get("combine") == AUTO, "--combine auto"),
            (choices.get("calibrate", False), "--calibrate"),
            (choices.get("search", "nll") != "nll", "--search"),
        ):
            if wanted:
                raise ConfigError(f"{option} learns from labelled validation rows: give them by --fit DATA")


def _as_onnx(model: str, folder: Path) -> OnnxFile:
    source = parse_source(model)
    if source.scheme is Scheme.ONNX:
        return read_onnx(source.path)
    return read_onnx(export_model(model, folder / f"{source.name}.onnx").path)
