"""The models of a study: as ONNX files with short names, and what the contracts say of each pair before any row is read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

import monograph
from monograph.errors import ConfigError, DataError, FusionError
from monograph.export.fusion.align import MISSING, align_classes, class_leader, missing_value
from monograph.export.fusion.cost import estimate_cost
from monograph.export.fusion.fit_forms import Validation
from monograph.export.fusion.fuse import in_fused_order
from monograph.export.fusion.macs import count_macs
from monograph.export.fusion.naming import member_names
from monograph.export.fusion.plan import plan_fusion
from monograph.models.contract import Contract, Kind
from monograph.models.data.rows import Array
from monograph.models.data.stream import RowStream
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.models.sources import Scheme, parse_source
from monograph.pipelines.export import export_model
from monograph.pipelines.interop.result import Contact
from monograph.pipelines.interop.taps import Answers
from monograph.pipelines.interop.yardstick import is_yes_or_no

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
    """Classes in its own numbering and yes or no, ``int64 [n]``; else numbers, ``float64 [n]`` or ``[n, k]``."""
    seen_count: int = 0
    """Of the rows that it says it was fitted, calibrated or chosen on."""
    arguments: Mapping[str, object] = field(default_factory=dict)
    """Of the factory of a ``py:`` source."""

    @property
    def kind(self) -> Kind:
        """What its output means."""
        return self.file.contract.kind

    @property
    def output(self) -> Array:
        """Its output for every row, ``[n, …]``, its classes in its own order; mapped from disk."""
        assert self.answers is not None
        return self.answers.output


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
    for source in sources:
        parsed = parse_source(source)
        if parsed.scheme is Scheme.ONNX:
            files.append(read_onnx(parsed.path))
            continue
        told = f"{source} {sorted(arguments.get(source, {}).items())} {monograph.__version__}"
        path = folder / hashlib.sha256(told.encode()).hexdigest()[:12] / f"{parsed.name}.onnx"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            export_model(source, path, arguments=arguments.get(source))
        files.append(read_onnx(path))
    names = member_names([file.path for file in files])
    return [
        Model(name, source, file, count_macs(file.path), arguments=arguments.get(source, {}))
        for name, source, file in zip(names, sources, files, strict=True)
    ]


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
    shared = cost.sharing
    return Contact(
        first.name,
        second.name,
        fits=True,
        adapted=(*adapted, *plan.notes),
        macs=cost.fused_macs,
        shared_macs=cost.saved_macs,
        shared_bytes=0 if shared is None else max(shared.bytes_before - shared.bytes_after, 0),
    )


def largest_group(models: Sequence[Model], contacts: Sequence[Contact]) -> list[Model]:
    """Return models that all fit one another, greedily: those that fit most others come first."""
    fitting = {frozenset((one.first, one.second)) for one in contacts if one.fits}
    degree = {model.name: sum(model.name in pair for pair in fitting) for model in models}
    group: list[Model] = []
    for model in sorted(models, key=lambda one: -degree[one.name]):
        if all(frozenset((model.name, other.name)) in fitting for other in group):
            group.append(model)
    return [model for model in models if model in group]


def reading_contract(model: Model, leader: OnnxFile) -> Contract:
    """Return the contract by which ``model`` reads labelled rows; one that lacks classes numbers labels as ``leader`` does."""
    contract, every = model.file.contract, set(leader.contract.class_names or ())
    if set(contract.class_names or every) < every:
        return replace(contract, class_names=leader.contract.class_names, outputs=leader.contract.outputs)
    return contract


def checked_labels(stream: RowStream, kind: Kind) -> Array:
    """Return the labels in memory: classes and yes or no ``int64 [n]``, else ``float64 [n]`` or ``[n, k]``.

    Raises:
        DataError: there are none, rows are fewer than 30 or of one class, or the labels are not what ``kind`` asks for.
    """
    origin = stream.table.origin
    if stream.labels is None:
        raise DataError(f"{origin}: no labels, and this needs them: add an array `y` or name the label column")
    labels = np.array(stream.labels)
    if len(labels) < FEWEST_ROWS:
        raise DataError(f"{origin} has {len(labels)} labelled rows, not enough evidence: give {FEWEST_ROWS} or more")
    if kind.has_classes and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
        raise DataError(f"{origin}: labels are {labels.dtype} {list(labels.shape)}, expected are class numbers [n]")
    if labels.dtype.kind not in "biuf" or not np.isfinite(labels).all():
        raise DataError(f"{origin}: labels are not all finite numbers: correct or drop such rows")
    if len(np.unique(labels)) < 2:
        what = "class" if kind.has_classes else "label"
        raise DataError(f"{origin}: all rows have one {what}, not enough evidence: give rows of two or more")
    if kind.has_classes or (kind is Kind.SCORES and is_yes_or_no(labels)):
        return np.asarray(labels.reshape(len(labels)), np.int64)
    return np.asarray(labels, np.float64)


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
        output = in_fused_order(np.asarray(model.output), own, model.name, missing_value(model.kind))
        outputs.append(output.astype(np.float64))
        if not _same_labels(model, leader, own):
            raise DataError(f"{model.name} and {leader.name} read different labels from the same rows: check the class names")
    if len({output.shape for output in outputs}) > 1:
        raise FusionError(f"{', '.join(names)} give arrays of different shapes: only outputs of one shape can be fused")
    labels = leader.labels
    if not leader.kind.has_classes:
        if labels.size != outputs[0].size:
            raise DataError(f"labels have the shape {list(labels.shape)} and outputs {list(outputs[0].shape)}: give one a number")
        labels = labels.reshape(outputs[0].shape).astype(np.float64)
    kinds = tuple(contract.kind for contract in contracts)
    return Validation(tuple(names), kinds, tuple(outputs), labels, rows_sha256)


def _same_labels(model: Model, leader: Model, positions: Sequence[int] | None) -> bool:
    if len(model.labels) != len(leader.labels):
        return False
    if positions is None or MISSING in positions:  # one that lacks classes has read labels in the leader's order
        return bool((model.labels == leader.labels).all())
    return bool((np.asarray(positions)[leader.labels] == model.labels).all())


def fails_on(model: Model, error: Exception) -> Model:
    """Return the model with the reason why it did not run."""
    return replace(model, reason=" ".join(str(error).split()))


def halves(labels: Array, seed: int) -> tuple[Array, Array]:
    """Draw two halves of the rows; of classes, and of one number a row, each has them as all rows have them."""
    order = np.random.default_rng(seed).permutation(len(labels))
    if labels.size == len(labels):
        order = order[np.argsort(labels.reshape(len(labels))[order], kind="stable")]
    return np.sort(order[::2]), np.sort(order[1::2])
