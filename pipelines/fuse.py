"""The verb ``fuse``: two or more models to one proven graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from monograph.errors import ConfigError, FusionError
from monograph.export.fusion import Fused, FusionPlan, fit_fusion, fuse, plan_fusion
from monograph.export.fusion.plan import member_names
from monograph.export.parity import TOLERANCE
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.models.sources import Scheme, parse_source
from monograph.pipelines.data import DataSpec, as_data_spec
from monograph.pipelines.export import checked_output, export_model, rows_for


@dataclass(frozen=True)
class Choices:
    """What the user decides about a fusion; all of it has a default."""

    weights: Sequence[float] | None = None
    """One a member, summing to 1; equal ones by default."""
    normalize: bool = False
    """Scale ``weights`` to sum to 1, whatever their sum."""
    fit: str | DataSpec | None = None
    """DATA with labels on which to choose the weights; not the rows you will test on."""
    combine: str | None = None
    """``logits``, ``probs`` or ``mean``; by default what fits the members' kinds."""


def fuse_models(
    models: Sequence[str | Path],
    output: str | Path,
    *,
    weights: Sequence[float] | None = None,
    normalize: bool = False,
    fit: str | DataSpec | None = None,
    combine: str | None = None,
    data: str | DataSpec | None = None,
    tolerance: float = TOLERANCE,
) -> Fused:
    """Fuse ``models`` into the ONNX file ``output``, proven equal to the members run apart at batch 1, 2 and 5.

    Args:
        models: ONNX files, or other sources, which are exported first.
        output: where to write.
        weights: one a member, summing to 1; equal ones by default.
        normalize: scale ``weights`` to sum to 1, whatever their sum.
        fit: DATA with labels on which to choose the weights; not the rows you will test on.
        combine: ``logits``, ``probs`` or ``mean``; by default what fits the members' kinds.
        data: DATA whose rows the proof runs on; the rows of ``fit``, or else fresh random ones, by default.
        tolerance: largest absolute error allowed, as a share of the largest absolute reference value.

    Raises:
        InputError: a model, the weights or the data cannot be used.
        ParityError: the fused graph would not compute what the members do; nothing is written.
    """
    path = checked_output(output)
    with _planned(models, Choices(weights, normalize, fit, combine)) as (plan, files):
        if path.resolve() in {file.path.resolve() for file in files}:
            raise ConfigError(f"output {path} is one of the members: choose another name")
        rows = rows_for(data or fit, files[0].contract, files[0].tokenizer_json)
        return fuse(plan, path, rows=rows, tolerance=tolerance)


def plan_models(
    models: Sequence[str | Path],
    *,
    weights: Sequence[float] | None = None,
    normalize: bool = False,
    fit: str | DataSpec | None = None,
    combine: str | None = None,
) -> FusionPlan:
    """Return what :func:`fuse_models` would build from the same arguments; nothing is written.

    Raises:
        InputError: a model, the weights or the data cannot be used.
    """
    with _planned(models, Choices(weights, normalize, fit, combine)) as (plan, _):
        return plan


@contextmanager
def _planned(models: Sequence[str | Path], choices: Choices) -> Iterator[tuple[FusionPlan, list[OnnxFile]]]:
    """Yield the plan and its members; those that had to be exported first live as long as the block."""
    if len(models) < 2:
        raise FusionError(f"{len(models)} model given: a fusion needs two or more members")
    if choices.fit is not None and choices.weights is not None:
        raise ConfigError("--weights and --fit exclude each other: give the weights or have them fitted")
    with TemporaryDirectory(prefix="monograph-members-") as folder:
        files = [_as_onnx(str(model), Path(folder) / str(index)) for index, model in enumerate(models)]
        fit = None
        if (spec := as_data_spec(choices.fit)) is not None:
            rows = [spec.load(file.contract, file.tokenizer_json, needs_labels=True) for file in files]
            fit = fit_fusion(files, rows, choices.combine)
        plan = plan_fusion(
            files,
            names=member_names([file.path for file in files]),
            weights=choices.weights,
            normalize=choices.normalize,
            combine=choices.combine,
            fit=fit,
        )
        yield plan, files


def _as_onnx(model: str, folder: Path) -> OnnxFile:
    source = parse_source(model)
    if source.scheme is Scheme.ONNX:
        return read_onnx(source.path)
    return read_onnx(export_model(model, folder / f"{source.name}.onnx").path)
