"""The verb ``fuse --soup``: one network whose weights are the mean of its members'."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, Unpack

from monograph.errors import ConfigError
from monograph.export.fusion.align import class_leader
from monograph.export.fusion.soup import Souped, SoupPlan, fuse_soup, plan_soup
from monograph.export.parity import TOLERANCE
from monograph.models.contract import Contract
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile
from monograph.models.seen import SeenRows, seen, seen_by
from monograph.pipelines.data import DataSpec, as_data_spec
from monograph.pipelines.export import checked_output, rows_for
from monograph.pipelines.fuse import check_output_is_new, members_as_onnx


class SoupChoices(TypedDict, total=False):
    """What the user decides about a soup; all of it has a default."""

    weights: Sequence[float] | None
    """One a member, summing to 1; equal ones by default."""
    normalize: bool
    """Scale ``weights`` to sum to 1, whatever their sum."""
    fit: str | DataSpec | None
    """DATA with labels on which to choose the members, greedily; not the rows you will test on."""
    max_barrier: float | None
    """Points of accuracy that may be lost on the line between two members; 2 by default."""


def soup_models(
    models: Sequence[str | Path],
    output: str | Path,
    *,
    data: str | DataSpec | None = None,
    tolerance: float = TOLERANCE,
    **choices: Unpack[SoupChoices],
) -> Souped:
    """Average the weights of ``models`` into the ONNX file ``output``, proven to be the network that numpy makes of them.

    Args:
        models: ONNX files, or other sources, which are exported first; all of one architecture.
        output: where to write.
        data: DATA that BatchNorm statistics are recomputed on, that the line between members is measured on where it has
            labels, and that the proof runs on; the rows of ``fit`` by default.
        tolerance: largest absolute error allowed, as a share of the largest absolute reference value.
        choices: see :class:`SoupChoices`.

    Raises:
        InputError: a model, the weights or the data cannot be used, or members do not share an initialisation.
        ParityError: the soup would not compute what it should; nothing is written.
    """
    path = checked_output(output)
    with _planned(models, data, choices) as (plan, rows, known):
        check_output_is_new(path, [member.path for member in plan.members])
        proof_rows = rows_for(data or choices.get("fit"), plan.contract, plan.tokenizer_json)
        return fuse_soup(plan, path, rows=proof_rows, statistics_rows=rows, tolerance=tolerance, seen=known)


def plan_soup_models(
    models: Sequence[str | Path], *, data: str | DataSpec | None = None, **choices: Unpack[SoupChoices]
) -> SoupPlan:
    """Return what :func:`soup_models` would build from the same arguments; nothing is written.

    Raises:
        InputError: a model, the weights or the data cannot be used, or members do not share an initialisation.
    """
    with _planned(models, data, choices) as (plan, *_):
        return plan


@contextmanager
def _planned(
    models: Sequence[str | Path], data: str | DataSpec | None, choices: SoupChoices
) -> Iterator[tuple[SoupPlan, Rows | None, SeenRows]]:
    """Yield the plan, the rows that it was made on, and what the soup has seen; exported members live as long as the block."""
    fit = as_data_spec(choices.get("fit"))
    if fit is not None and choices.get("weights") is not None:
        raise ConfigError("--weights and --fit exclude each other: give the weights or have the members chosen")
    with members_as_onnx(models) as files:
        spec = fit or as_data_spec(data)
        rows = None if spec is None else spec.load(_labelling_contract(files), files[0].tokenizer_json, needs_labels=bool(fit))
        plan = plan_soup(
            files,
            weights=choices.get("weights"),
            normalize=choices.get("normalize", False),
            rows=rows,
            greedy=fit is not None,
            max_barrier=choices.get("max_barrier"),
        )
        yield plan, rows, seen_by(files) | seen("fit", rows)


def _labelling_contract(files: Sequence[OnnxFile]) -> Contract:
    """Return the first member's contract, by which all members take their rows, with class names if another one knows them."""
    leader = class_leader([file.contract for file in files])
    first = files[0].contract
    return first if leader is None or first.class_names else replace(first, class_names=files[leader].contract.class_names)
