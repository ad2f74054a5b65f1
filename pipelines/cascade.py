"""The verb ``fuse --cascade``: the large member runs only for the rows of which the smaller one is unsure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict, Unpack

from monograph.errors import ConfigError
from monograph.export.fusion.cascade import MAX_DROP_POINTS, Cascaded, CascadePlan, fit_cascade, fuse_cascade, plan_cascade
from monograph.export.parity import TOLERANCE
from monograph.models.seen import SeenRows, seen, seen_by
from monograph.pipelines.data import DataSpec, as_data_spec
from monograph.pipelines.export import checked_output, rows_for
from monograph.pipelines.fuse import check_output_is_new, labelled_rows, members_as_onnx
from monograph.runtime.statistics import CONFIDENCE


class CascadeChoices(TypedDict, total=False):
    """What the user decides about a cascade: thresholds, or the rows to fit them on."""

    gate: str | None
    """``max-probability`` by default, ``margin`` or ``entropy``: how sure a member is of a row."""
    thresholds: Sequence[float] | None
    """One a member but the last: rows of which it is less sure go on."""
    fit: str | DataSpec | None
    """DATA with labels on which to fit temperatures and thresholds; not the rows you will test on."""
    max_drop: float
    """Points of accuracy that may be lost against the last member alone."""
    confidence: float
    """With which the loss on new rows stays within ``max_drop``; 0 takes the loss seen on the rows of ``fit`` at its word."""
    share: bool
    """Take from an earlier member what a later one computes as it does; True by default."""


def cascade_models(
    models: Sequence[str | Path],
    output: str | Path,
    *,
    data: str | DataSpec | None = None,
    tolerance: float = TOLERANCE,
    **choices: Unpack[CascadeChoices],
) -> Cascaded:
    """Join ``models``, the smallest first, to one cascade in the ONNX file ``output``, proven equal to them run apart.

    Raises:
        InputError: a model, the thresholds or the data cannot be used.
        ParityError: the cascade would not compute what the members do; nothing is written.
    """
    path = checked_output(output)
    with _planned(models, choices) as (plan, known):
        check_output_is_new(path, [member.path for member in plan.members])
        rows = rows_for(data or choices.get("fit"), plan.contract, plan.tokenizer_json)
        return fuse_cascade(plan, path, rows=rows, tolerance=tolerance, seen=known)


def plan_cascade_models(models: Sequence[str | Path], **choices: Unpack[CascadeChoices]) -> CascadePlan:
    """Return what :func:`cascade_models` would build from the same arguments; nothing is written.

    Raises:
        InputError: a model, the thresholds or the data cannot be used.
    """
    with _planned(models, choices) as (plan, _):
        return plan


@contextmanager
def _planned(models: Sequence[str | Path], choices: CascadeChoices) -> Iterator[tuple[CascadePlan, SeenRows]]:
    thresholds, spec = choices.get("thresholds"), as_data_spec(choices.get("fit"))
    if (thresholds is None) == (spec is None):
        got = "neither" if spec is None else "both"
        raise ConfigError(f"{got} of --threshold and --fit given: a cascade needs one of them, --threshold T or --fit DATA")
    with members_as_onnx(models) as files:
        gate = choices.get("gate")
        fitted, known = None, seen_by(files)
        if spec is not None:
            rows = labelled_rows(spec, files)
            known |= seen("fit", rows[0])
            fitted = fit_cascade(
                files,
                rows,
                gate=gate or "max-probability",
                max_drop=choices.get("max_drop", MAX_DROP_POINTS),
                confidence=choices.get("confidence", CONFIDENCE),
            )
        yield plan_cascade(files, gate=gate, thresholds=thresholds, fit=fitted, share=choices.get("share", True)), known
