"""The plan of a teaching graph: the fused output first, then what each member gives by itself.

Σ αᵢ·softmax(Oᵢ) at a temperature of its own is not Σ αᵢ·softmax(Oᵢ/T): who teaches from a fusion by tempered probabilities
needs each Oᵢ. The graph that ships gives none of them, so it may fold the members' heads and run members as one batch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from monograph.errors import FusionError
from monograph.export.fusion.align import MISSING
from monograph.export.fusion.forms import FORMS
from monograph.export.fusion.plan import FusionPlan, Member
from monograph.models.contract import TensorSpec


def teaching_path(fused: Path) -> Path:
    """Return where the teaching graph of ``fused.onnx`` lies: beside it, as ``fused.teaching.onnx``."""
    return fused.with_name(f"{fused.stem}.teaching.onnx")


def with_member_outputs(plan: FusionPlan) -> FusionPlan:
    """Return the plan of the teaching graph that belongs to ``plan``.

    Behind the fused output stands one float32 output for each running member, ``member_0_NAME_logits`` for example, numbered
    as the members are: its own output, classes in the fused order, before its temperature and its weight. A class that it
    does not know has the logit -inf, or the probability 0. Members run apart in it, not as one batch.

    Raises:
        FusionError: the fusion puts members' outputs side by side, which needs no further ones.
    """
    if FORMS[plan.form].joins_features:
        raise FusionError(
            f"--combine {plan.form} puts members' outputs side by side, so the fused output holds each of them as it is: "
            "leave --member-outputs out"
        )
    fused = plan.contract.output
    taken = {spec.name for spec in (*plan.contract.inputs, fused)}
    numbered = [(position, member) for position, member in enumerate(plan.members) if member.weight > 0]
    own = tuple(TensorSpec(_free_name(position, member, taken), "float32", fused.shape) for position, member in numbered)
    lacking = [member.name for _, member in numbered if MISSING in (member.class_positions or ())]
    notes = tuple(f"{name} does not know all classes: its own output gives those a probability of 0" for name in lacking)
    return replace(
        plan,
        contract=replace(plan.contract, outputs=(fused, *own)),
        horizontal=None,
        notes=(*plan.notes, *notes),
    )


def _free_name(position: int, member: Member, taken: set[str]) -> str:
    """Return what the output of the member is called; the number keeps members apart, a stroke inputs and the fused output."""
    name = f"member_{position}_{member.name}_{member.kind}"
    while name in taken:
        name += "_"
    return name
