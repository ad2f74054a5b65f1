"""The plan of a fusion: everything that is decided before a graph is touched. Frozen, printable, testable."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from monograph.errors import FusionError
from monograph.export.fusion.align import (
    MISSING,
    InputLink,
    align_classes,
    class_leader,
    input_notes,
    share_inputs,
    unify_output_shape,
)
from monograph.export.fusion.choose import choose_form
from monograph.export.fusion.class_weights import check_class_weights
from monograph.export.fusion.forms import FORMS, Form, Mixing
from monograph.export.fusion.horizontal.choice import HorizontalChoice
from monograph.export.fusion.naming import checked_names, member_names
from monograph.export.fusion.weights import WeightFit, check_weights
from monograph.models.bounded import parse_json
from monograph.models.contract import Contract, Dim, Kind, TensorSpec
from monograph.models.onnx_file import OnnxFile

_OLDEST_OPSET = 15
"""Softmax over one axis and Sum with broadcasting as they are today, and Shape of some axes, which sharing writes."""
_FLOAT16_ROUNDING = 2.0**-10
"""As a share of the scale. Where it has no float16 kernels, ONNX Runtime computes in float32 and rounds only at the end."""


@dataclass(frozen=True)
class Member:
    """A model inside a fusion."""

    name: str
    path: Path
    sha256: str
    opset: int
    weight: float
    kind: Kind
    output: str
    input_links: tuple[InputLink, ...]
    class_positions: tuple[int, ...] | None
    """Where each class of the fused order stands in this member's output; None where the order is the same."""
    temperature: float = 1.0
    """Its logits are divided by it before anything else."""
    class_weights: tuple[float, ...] | None = None
    """One a class in the fused order, for the form that takes them; ``weight`` is then their mean."""


@dataclass(frozen=True)
class FusionPlan:
    """What will be built: members with their weights, the form, the shared inputs, the contract of the result."""

    form: str
    members: tuple[Member, ...]
    contract: Contract
    opset: int
    rounding: float
    """Share of the output's scale that the members' own outputs do not resolve: 0 unless one gives float16."""
    fit: WeightFit | None
    tokenizer_json: str | None
    notes: tuple[str, ...]
    """What was assumed or decided, each a sentence for the user."""
    share: bool = True
    """Run what several members compute alike once."""
    horizontal: HorizontalChoice | None = None
    """Whether members of one architecture run as one batch, and why; None where nobody asked."""

    @property
    def running(self) -> tuple[Member, ...]:
        """The members that the graph will hold: those of weight 0 are left out."""
        return tuple(member for member in self.members if member.weight > 0)

    @property
    def batches(self) -> bool:
        """True where members of one architecture run as one batch."""
        return self.horizontal is not None and self.horizontal.batched

    @property
    def member_specs(self) -> tuple[TensorSpec, ...]:
        """In a teaching graph, the outputs behind the fused one: what each running member gives by itself."""
        return self.contract.outputs[1:]

    @property
    def mixing(self) -> Mixing:
        """The numbers by which the running members are combined."""
        running = self.running
        by_class = tuple(member.class_weights for member in running if member.class_weights)
        return Mixing(
            names=tuple(member.name for member in running),
            weights=tuple(member.weight for member in running),
            stacking=self.fit.stacking if self.fit else None,
            class_weights=by_class or None,
        )

    def describe(self) -> str:
        """Return the plan as text for people."""
        lines = [f"fuse {len(self.members)} members by {FORMS[self.form].formula}, opset {self.opset}"]
        lines += [f"  inputs   {', '.join(spec.describe() for spec in self.contract.inputs)}"]
        lines += [f"  output   {self.contract.output.describe()}, {self.contract.kind.value}"]
        for member in self.members:
            changes = [change for link in member.input_links for change in link.describe()]
            changes += _class_changes(member)
            changes += [f"logits divided by temperature {member.temperature:.4g}"] if member.temperature != 1 else []
            changes += _class_weights_range(member)
            changes += [f"opset {member.opset} to {self.opset}"] if member.opset != self.opset else []
            lines.append(f"  {member.weight:.4f} x {member.name}" + (f"  ({', '.join(changes)})" if changes else ""))
        lines += [f"  {self.horizontal.describe()}"] if self.horizontal else []
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    def to_json(self) -> str:
        """Return what goes under the metadata key ``monograph.fusion``: members with digests, weights and the form."""
        own_outputs = {member.name: spec.name for member, spec in zip(self.running, self.member_specs, strict=False)}
        members = [
            {
                "name": member.name,
                "file": member.path.name,
                "sha256": member.sha256,
                "weight": member.weight,
                "temperature": member.temperature,
            }
            | ({"class_weights": member.class_weights} if member.class_weights else {})
            | ({"output": own_outputs[member.name], "kind": member.kind} if member.name in own_outputs else {})
            for member in self.members
        ]
        # The combiner's weights stand in the graph, those by class above.
        fit = asdict(replace(self.fit, stacking=None, class_weights=None)) if self.fit else None
        stacking = self.mixing.stacking
        record = {"form": self.form, "members": members, "fit": fit}
        record |= {"stacking_sha256": stacking.sha256()} if stacking else {}
        record |= {"horizontal": asdict(self.horizontal)} if self.horizontal else {}
        return json.dumps(record)


def plan_fusion(
    files: Sequence[OnnxFile],
    *,
    names: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    combine: str | None = None,
    normalize: bool = False,
    temperatures: Sequence[float] | None = None,
    fit: WeightFit | None = None,
    share: bool = True,
    class_weights: Sequence[Sequence[float]] | None = None,
    horizontal: HorizontalChoice | None = None,
) -> FusionPlan:
    """Decide how to fuse ``files``: shared inputs, class order, form, weights.

    ``combine`` None means logits where all members give logits of the same classes, else probabilities, else (no
    classes) the mean. ``fit`` brings weights, temperatures and form of its own. ``class_weights`` is one row a member, one
    column a class in the fused order, for the form ``class-weights``.

    Raises:
        FusionError: they cannot be fused, or the weights cannot be used.
    """
    if len(files) < 2:
        raise FusionError(f"{len(files)} member: a fusion needs two or more")
    if horizontal is not None and horizontal.batched and not share:
        raise FusionError("horizontal fusion builds on what sharing finds: leave sharing on, or horizontal fusion off")
    names = member_names([file.path for file in files]) if names is None else checked_names(names, len(files))
    contracts = [file.contract for file in files]
    if combine is None and class_weights is not None:
        combine = "class-weights"
    form = choose_form(contracts, names, fit.form if fit and fit.form else combine)
    shared, links = share_inputs(contracts, names)
    class_names, class_positions = align_classes(contracts, names)
    lacking = any(MISSING in positions for positions in class_positions if positions)
    shape = unify_output_shape(
        contracts, names, class_count=len(class_names or ()) if lacking else None, joins_features=form.joins_features
    )
    _check_form(form, shape, weights, fit, names)
    by_class = _checked_class_weights(form, class_weights, fit, contracts, names, normalize)
    if by_class is not None and weights is not None:
        raise FusionError("weights and class weights exclude each other: give one of them")
    means = None if by_class is None else [math.fsum(row) / len(row) for row in by_class]
    checked = check_weights(means or (fit.weights if fit else weights), len(files), normalize=normalize)
    divisors = check_temperatures(fit.temperatures if fit else temperatures, contracts, names)
    members = tuple(
        Member(
            name,
            file.path,
            file.sha256,
            file.opset,
            weight,
            file.contract.kind,
            file.contract.output.name,
            link,
            positions,
            divisor,
            own_weights,
        )
        for name, file, weight, link, positions, divisor, own_weights in zip(
            names, files, checked, links, class_positions, divisors, by_class or (None,) * len(files), strict=True
        )
    )
    kind = form.output_kind(contracts[0].kind)
    output_name = _output_name(kind.value if kind.has_classes else contracts[0].output.name, shared)
    contract = Contract(shared, (TensorSpec(output_name, "float32", shape),), kind, class_names)
    halves = [member.name for member, file in zip(members, files, strict=True) if member.weight and _gives_float16(file)]
    return FusionPlan(
        form=form.name,
        members=members,
        contract=contract,
        opset=max(_OLDEST_OPSET, *(file.opset for file in files)),
        rounding=_FLOAT16_ROUNDING if halves else 0.0,
        fit=fit,
        tokenizer_json=_common_tokenizer(files, names),
        notes=_notes(contracts, members, shared, weights, fit)
        + tuple(f"{name} gives float16: the proof allows for its rounding, {_FLOAT16_ROUNDING:.2g} of scale" for name in halves),
        share=share,
        horizontal=horizontal,
    )


def _check_form(
    form: Form, shape: Sequence[Dim], weights: Sequence[float] | None, fit: WeightFit | None, names: Sequence[str]
) -> None:
    if form.joins_features and weights is not None:
        raise FusionError(f"--combine {form.name} puts outputs side by side and takes no weights: leave them out")
    if form.name == "stack" and (fit is None or fit.stacking is None):
        raise FusionError("--combine stack is a combiner that is fitted: give labelled validation rows by --fit DATA")
    if form.name == "stack" and len(shape) != 2:
        raise FusionError(
            f"{names[0]} gives {len(shape)} dimensions, --combine stack takes one row of numbers a row, [batch x 1] or wider: "
            "use another form"
        )


def _checked_class_weights(
    form: Form,
    given: Sequence[Sequence[float]] | None,
    fit: WeightFit | None,
    contracts: Sequence[Contract],
    names: Sequence[str],
    normalize: bool,
) -> Sequence[Sequence[float]] | None:
    """Return weights ``[m, c]``, None for a form that takes none."""
    if form.name != "class-weights":
        if given is not None:
            raise FusionError(f"--combine {form.name} takes no weights by class: leave them out, or use --combine class-weights")
        return None
    if fit is not None and fit.class_weights is not None:
        return fit.class_weights
    if given is None:
        raise FusionError("--combine class-weights takes a weight a member and class: give --class-weights FILE or --fit DATA")
    class_names, positions = align_classes(contracts, names)
    count = contracts[class_leader(contracts) or 0].class_count
    return check_class_weights(given, names, class_names, count, positions, normalize=normalize)


def check_temperatures(
    temperatures: Sequence[float] | None, contracts: Sequence[Contract], names: Sequence[str]
) -> tuple[float, ...]:
    """Return one temperature a member: ones where none are given.

    Raises:
        FusionError: there are not as many as members, one is not positive and finite, or a member that gives no logits
            has another than 1.
    """
    if temperatures is None:
        return (1.0,) * len(names)
    if len(temperatures) != len(names):
        raise FusionError(f"{len(temperatures)} temperatures for {len(names)} members: give one a member")
    for temperature, contract, name in zip(temperatures, contracts, names, strict=True):
        if not (math.isfinite(temperature) and temperature > 0):
            raise FusionError(f"{name} has temperature {temperature:g}, expected a positive number: logits are divided by it")
        if temperature != 1 and contract.kind is not Kind.LOGITS:
            raise FusionError(f"{name} gives {contract.kind.value}: only logits have a temperature; give 1 for it")
    return tuple(map(float, temperatures))


def _class_changes(member: Member) -> list[str]:
    if member.class_positions is None:
        return []
    lacking = sum(position == MISSING for position in member.class_positions)
    return [f"lacks {lacking} of {len(member.class_positions)} classes" if lacking else "classes reordered"]


def _class_weights_range(member: Member) -> list[str]:
    if member.class_weights is None:
        return []
    return [f"by class {min(member.class_weights):.4g} to {max(member.class_weights):.4g}"]


def _gives_float16(file: OnnxFile) -> bool:
    return file.contract.output.dtype == "float16"


def _output_name(name: str, inputs: Sequence[TensorSpec]) -> str:
    """Return ``name``, made longer where an input has it already."""
    while any(spec.name == name for spec in inputs):
        name = f"fused_{name}"
    return name


def _common_tokenizer(files: Sequence[OnnxFile], names: Sequence[str]) -> str | None:
    tokenizers = [file.tokenizer_json for file in files if file.tokenizer_json is not None]
    apart = [_without_length(tokenizer) for tokenizer in tokenizers]
    if len({tokenizer for tokenizer, _ in apart}) > 1:
        raise FusionError(
            f"{', '.join(names)} use different tokenizers: one id means different words to them, so they cannot share an input"
        )
    lengths = [length for _, length in apart]
    return tokenizers[lengths.index(max(lengths))] if tokenizers else None


def _without_length(tokenizer_json: str) -> tuple[str, int]:
    """Return the tokenizer without the length at which it cuts, in which members may differ, and that length."""
    try:
        tokenizer = parse_json(tokenizer_json)
    except ValueError:
        return tokenizer_json, 0  # whoever reads rows by it will say so
    truncation = tokenizer.get("truncation") if isinstance(tokenizer, dict) else None
    length = truncation.pop("max_length", 0) if isinstance(truncation, dict) else 0
    return json.dumps(tokenizer, sort_keys=True), length if isinstance(length, int) else 0


def _notes(
    contracts: Sequence[Contract],
    members: Sequence[Member],
    shared: Sequence[TensorSpec],
    weights: Sequence[float] | None,
    fit: WeightFit | None,
) -> tuple[str, ...]:
    notes = [note for contract in contracts for note in contract.assumed]
    if weights is not None and fit is None and tuple(weights) != tuple(member.weight for member in members):
        written = ", ".join(f"{member.weight:.4g}" for member in members)
        notes.append(f"weights were scaled to sum to 1: {written}")
    notes += input_notes(contracts, [member.name for member in members], shared, [member.input_links for member in members])
    if fit is not None:
        notes.append(f"weights {fit.describe()}")
    notes += [f"{member.name} has weight 0 and is left out of the graph" for member in members if member.weight == 0]
    if len({contract.batch_is_dynamic for contract in contracts}) > 1:
        notes.append("one member has a fixed batch size, so the fused graph has it too")
    return tuple(dict.fromkeys(notes))
