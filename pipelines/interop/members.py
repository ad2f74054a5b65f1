"""The models of a study: as ONNX files with short names, and what the contracts say of each pair before any row is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from monograph.errors import ConfigError, DataError, FusionError, InputError
from monograph.export.fusion.align import MISSING, align_classes, class_leader, missing_value
from monograph.export.fusion.cost import estimate_cost
from monograph.export.fusion.fit_forms import Validation
from monograph.export.fusion.fuse import in_fused_order
from monograph.export.fusion.macs import count_macs
from monograph.export.fusion.naming import member_names
from monograph.export.fusion.plan import plan_fusion
from monograph.models.data.rows import Array, Rows
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.models.sources import Scheme, parse_source
from monograph.pipelines.data import DataSpec
from monograph.pipelines.export import export_model
from monograph.pipelines.interop.result import Contact
from monograph.pipelines.interop.taps import Answers
from monograph.runtime.metrics import as_probabilities

FEWEST_ROWS = 30
"""Of fewer shared rows nothing is told."""


@dataclass(frozen=True)
class Model:
    """One of them."""

    name: str
    source: str
    file: OnnxFile
    macs: int | None
    answers: Answers | None = None
    """None before it has run, and of one that cannot run on the rows."""
    reason: str = ""
    labels: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    """In its own numbering, ``int64 [n]``."""

    @property
    def probabilities(self) -> Array:
        """Its probabilities, its classes in its own order: float64 ``[n, c]``."""
        assert self.answers is not None
        return as_probabilities(np.asarray(self.answers.output), self.file.contract.kind)


def load_models(sources: Sequence[str], folder: Path, arguments: Mapping[str, Mapping[str, object]]) -> list[Model]:
    """Return the models; those that are no ONNX files are exported into ``folder`` first, once.

    Args:
        sources: SOURCEs, two or more.
        folder: where exported models lie.
        arguments: of the factories of ``py:`` sources, by source.

    Raises:
        InputError: one cannot be loaded, or there are fewer than two.
    """
    if len(sources) < 2:
        raise ConfigError(f"{len(sources)} model given: how models help one another takes two or more")
    files = []
    for index, source in enumerate(sources):
        parsed = parse_source(source)
        if parsed.scheme is Scheme.ONNX:
            files.append(read_onnx(parsed.path))
            continue
        path = folder / f"{index}-{parsed.name}.onnx"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            export_model(source, path, arguments=arguments.get(source))
        files.append(read_onnx(path))
    names = member_names([file.path for file in files])
    return [Model(name, source, file, count_macs(file.path)) for name, source, file in zip(names, sources, files, strict=True)]


def check_contract(first: Model, second: Model) -> Contact:
    """Return whether two models fit, what the fusion compiler adapts, and what they compute alike."""
    files, names = [first.file, second.file], [first.name, second.name]
    try:
        plan = plan_fusion(files, names=names)
        cost = estimate_cost(plan)
    except FusionError as error:
        return Contact(first.name, second.name, fits=False, reason=str(error))
    adapted = []
    for member in plan.members:
        changes = [change for link in member.input_links for change in link.describe()]
        if member.class_positions is not None:
            lacking = sum(position == MISSING for position in member.class_positions)
            changes.append(f"{lacking} classes are missing" if lacking else "classes are put in order")
        if member.opset != plan.opset:
            changes.append(f"opset {member.opset} to {plan.opset}")
        adapted += [f"{member.name}: {change}" for change in changes]
    shared = cost.saved_macs
    return Contact(first.name, second.name, True, (*adapted, *plan.notes), "", cost.fused_macs, shared)


def largest_group(models: Sequence[Model], contacts: Sequence[Contact]) -> list[Model]:
    """Return models that all fit one another, greedily: those that fit most others come first."""
    fitting = {frozenset((one.first, one.second)) for one in contacts if one.fits}
    degree = {model.name: sum(model.name in pair for pair in fitting) for model in models}
    group: list[Model] = []
    for model in sorted(models, key=lambda one: -degree[one.name]):
        if all(frozenset((model.name, other.name)) in fitting for other in group):
            group.append(model)
    return [model for model in models if model in group]


def read_rows(model: Model, spec: DataSpec, leader: OnnxFile) -> Rows:
    """Return the labelled rows as ``model`` takes them; one that lacks classes reads labels as ``leader`` numbers them.

    Raises:
        InputError: the data cannot be used by this model.
    """
    contract, every = model.file.contract, set(leader.contract.class_names or ())
    if set(contract.class_names or every) < every:
        contract = replace(contract, class_names=leader.contract.class_names, outputs=leader.contract.outputs)
    return spec.load(contract, model.file.tokenizer_json, needs_labels=True)


def check_rows(rows: Rows) -> None:
    """Refuse rows of which nothing can be told.

    Raises:
        DataError: they are fewer than 30, or of one class, or their labels are no classes.
    """
    labels = rows.required_labels()
    if len(labels) < FEWEST_ROWS:
        raise DataError(f"{rows.origin} has {len(labels)} labelled rows, not enough evidence: give {FEWEST_ROWS} or more")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{rows.origin}: labels are {labels.dtype} {list(labels.shape)}, expected are class numbers [n]")
    if len(np.unique(labels)) < 2:
        raise DataError(f"{rows.origin}: all rows have one class, not enough evidence: give rows of two or more")


def validation_of(models: Sequence[Model], rows_sha256: str) -> Validation:
    """Return the stored outputs of ``models`` in the fused order of classes.

    Raises:
        FusionError: their classes cannot be put in one order.
        DataError: they number the labels of one row differently, so that they did not read the same rows.
    """
    contracts, names = [model.file.contract for model in models], [model.name for model in models]
    _, positions = align_classes(contracts, names)
    leader = models[class_leader(contracts) or 0]
    outputs = []
    for model, own in zip(models, positions, strict=True):
        assert model.answers is not None
        output = in_fused_order(np.asarray(model.answers.output), own, model.name, missing_value(model.file.contract.kind))
        outputs.append(output.astype(np.float64))
        if not _same_labels(model, leader, own):
            raise DataError(f"{model.name} and {leader.name} read different labels from the same rows: check the class names")
    kinds = tuple(contract.kind for contract in contracts)
    return Validation(tuple(names), kinds, tuple(outputs), leader.labels.astype(np.int64), rows_sha256)


def _same_labels(model: Model, leader: Model, positions: Sequence[int] | None) -> bool:
    if len(model.labels) != len(leader.labels):
        return False
    if positions is None or MISSING in positions:  # one that lacks classes has read labels in the leader's order
        return bool((model.labels == leader.labels).all())
    return bool((np.asarray(positions)[leader.labels] == model.labels).all())


def fails_on(model: Model, error: InputError) -> Model:
    """Return the model with the reason why it did not run."""
    return replace(model, reason=" ".join(str(error).split()))


def stratified_halves(labels: Array, seed: int) -> tuple[Array, Array]:
    """Draw two halves of the rows; each has the classes in the proportion in which all rows have them."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return np.sort(order[::2]), np.sort(order[1::2])
