"""Horizontal fusion where it pays: both graphs are built, proven and timed on the target, and the faster one is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from monograph.errors import ConfigError, HorizontalError, ParityError
from monograph.export.fusion import FusionPlan, fuse
from monograph.export.fusion.horizontal.architecture import look_alike
from monograph.export.fusion.horizontal.choice import ASKED, HorizontalChoice, choose_by
from monograph.models.data.rows import Rows
from monograph.runtime.compare import compare
from monograph.runtime.measure import Settings, onnx_contender
from monograph.runtime.targets import Target, find_target

OFF, AUTO, ON = "off", "auto", "on"
HORIZONTAL = (OFF, AUTO, ON)
BLOCKS = 5
PROCESSES = 4 * BLOCKS
"""Each block times both graphs twice."""


def check_horizontal(horizontal: str, on: str | None, *, share: bool) -> None:
    """Check what the user decided.

    Raises:
        ConfigError: the options contradict each other, or there is no such choice or target.
    """
    if horizontal not in HORIZONTAL:
        raise ConfigError(f"unknown choice {horizontal!r}: choose --horizontal from {', '.join(HORIZONTAL)}")
    if horizontal != OFF and not share:
        raise ConfigError("--horizontal builds on what --share finds: leave out --no-share")
    if on is not None and horizontal != AUTO:
        raise ConfigError(f"--on {on} says where --horizontal auto measures: add --horizontal auto, or leave it out")
    _available_target(on)


def planned_horizontal(plan: FusionPlan, horizontal: str) -> FusionPlan:
    """Return the plan with the batch that was asked for, or with a note where one might pay."""
    if horizontal == ON:
        return replace(plan, horizontal=ASKED)
    members = plan.running
    if horizontal == AUTO or len({member.sha256 for member in members}) < 2 or not look_alike([one.path for one in members]):
        return plan
    note = "members look like one architecture: --horizontal auto measures whether they run faster as one batch"
    return replace(plan, notes=(*plan.notes, note))


def measured_horizontal(
    plan: FusionPlan,
    rows: Rows | None,
    *,
    on: str | None,
    tolerance: float,
    blocks: int = BLOCKS,
    on_progress: Callable[[str], None] = lambda name: None,
) -> FusionPlan:
    """Return the plan with the faster of the two graphs chosen: batched only where it is faster beyond doubt.

    Both are proven and timed at batch 1 on the target, in interleaved fresh processes. Members that cannot be batched, and
    a batched graph that rounds too differently, leave the members apart; the choice says so.

    Raises:
        FusionError: the members' graphs cannot be joined.
        ParityError: the graph of the members apart does not compute what they do.
    """
    target = _available_target(on)
    with TemporaryDirectory(prefix="monograph-horizontal-") as folder:
        try:
            batched = fuse(replace(plan, horizontal=ASKED), Path(folder) / "batched.onnx", rows=rows, tolerance=tolerance)
        except (HorizontalError, ParityError) as error:
            return replace(plan, horizontal=HorizontalChoice(False, f"not measured: {error}"))
        apart = fuse(plan, Path(folder) / "apart.onnx", rows=rows, tolerance=tolerance)
        contenders = [
            onnx_contender(name, file.path, file.contract, file.sha256, file.size_bytes, target)
            for name, file in (("batched", batched.file), ("apart", apart.file))
        ]
        comparison = compare(contenders, rows, Settings(), blocks=blocks, on_progress=on_progress, run=target.run)
    return replace(plan, horizontal=choose_by(comparison.ratio(["batched"], ["apart"]), target.name))


def _available_target(name: str | None) -> Target:
    target = find_target(name or "cpu")
    if not target.is_available():
        raise ConfigError(f"target {target.name} cannot be measured on here: {target.describe()}")
    evidence = target.evidence_here
    if target.lowering is not None or not evidence.gives_latency:
        raise ConfigError(
            f"--horizontal auto decides by latency, and none can be measured on {target.name} here ({evidence.value}): "
            "name a target that runs such graphs on real hardware, or choose by --horizontal on"
        )
    return target
