"""What a model is adapted to: which task the labels are of, and what the adapted model promises.

Shape letters: ``b`` batch, ``c`` classes, ``k`` targets a row, ``n`` rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from monograph.errors import ConfigError, DataError
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.data.rows import Array, Rows

AUTO = "auto"


class TaskKind(StrEnum):
    """What labels say about a row."""

    CLASSIFICATION = "classification"
    """One class of several."""
    MULTI_LABEL = "multi-label"
    """Any number of labels of several."""
    REGRESSION = "regression"
    """Numbers."""
    CLICK = "click"
    """Whether someone wants something, 0 or 1: a recommendation."""
    RATING = "rating"
    """How much someone likes something: a recommendation."""

    @property
    def output_kind(self) -> Kind:
        """What the adapted model gives."""
        if self is TaskKind.CLASSIFICATION:
            return Kind.LOGITS
        return Kind.SCORES if self in (TaskKind.MULTI_LABEL, TaskKind.CLICK) else Kind.REGRESSION


@dataclass(frozen=True)
class Task:
    """A task with its size."""

    kind: TaskKind
    width: int
    """Classes, labels or targets."""
    class_names: tuple[str, ...] | None

    def contract(self, inputs: tuple[TensorSpec, ...]) -> Contract:
        """Return the contract of a model that takes ``inputs`` and does this task.

        Classes: ``logits`` float32 ``[b, c]``. Several labels, or clicks: ``scores`` float32 ``[b, c]`` from 0 to 1. Numbers:
        ``values`` float32 ``[b, k]``.
        """
        kind = self.kind.output_kind
        name = {Kind.LOGITS: "logits", Kind.SCORES: "scores"}.get(kind, "values")
        batch = inputs[0].shape[0] if inputs[0].shape else "batch"
        return Contract(inputs, (TensorSpec(name, "float32", (batch, self.width)),), kind, self.class_names)


def reading_contract(contract: Contract, kind: str, class_names: tuple[str, ...] | None = None) -> Contract:
    """Return the contract by which rows are read for a model that does not do its task yet.

    Inputs are the model's own. Labels are taken for what they are: whole numbers and names for classes, everything else for
    numbers. Once classes are known by name, rows are read with those.
    """
    output = TensorSpec("output", "float32", ("batch", len(class_names) if class_names else "width"))
    if class_names is not None:
        return replace(contract, outputs=(output,), kind=Kind.LOGITS, class_names=class_names)
    read_as = Kind.REGRESSION if kind in (TaskKind.REGRESSION, TaskKind.RATING) else Kind.EMBEDDING
    return replace(contract, outputs=(output,), kind=read_as, class_names=None)


def task_of(rows: Rows, kind: str = AUTO) -> Task:
    """Return the task that labels are of; ``auto`` takes whole numbers and names for classes.

    Raises:
        ConfigError: there is no such task.
        DataError: the labels are not of the task, or leave nothing to tell apart.
    """
    labels = rows.required_labels()
    if kind != AUTO and kind not in {one.value for one in TaskKind}:
        raise ConfigError(f"unknown task {kind!r}: choose from {AUTO}, {', '.join(TaskKind)}")
    chosen = _guess(labels) if kind == AUTO else TaskKind(kind)
    if chosen is TaskKind.CLASSIFICATION:
        return Task(chosen, *_classes(rows, labels))
    width = int(np.prod(labels.shape[1:]))  # of none is 1
    if chosen in (TaskKind.MULTI_LABEL, TaskKind.CLICK):
        _check_binary(labels, rows.origin, chosen)
    if chosen is TaskKind.MULTI_LABEL:
        names = rows.class_names if rows.class_names is not None and len(rows.class_names) == width else None
        return Task(chosen, width, names or tuple(f"label {number}" for number in range(width)))
    return Task(chosen, width, None)


def as_targets(rows: Rows, task: Task) -> Rows:
    """Return the rows with labels as the loss and the metrics of the task take them.

    Raises:
        DataError: labels are not of the task, as those of another file than the one that it was found in may be.
    """
    labels = rows.required_labels()
    if task.kind is TaskKind.CLASSIFICATION:
        _check_known(labels, rows.origin, task)
        return replace(rows, labels=labels.astype(np.int64), class_names=task.class_names)
    width = int(np.prod(labels.shape[1:]))
    if width != task.width:
        raise DataError(f"{rows.origin}: {width} labels a row, and the training rows have {task.width}: give as many")
    if task.kind in (TaskKind.MULTI_LABEL, TaskKind.CLICK):
        _check_binary(labels, rows.origin, task.kind)
    shaped = labels.reshape(len(rows), -1) if task.width > 1 else labels.reshape(len(rows))
    return replace(rows, labels=shaped.astype(np.float64), class_names=task.class_names)


def _guess(labels: Array) -> TaskKind:
    if labels.ndim == 1 and labels.dtype.kind in "iu":
        return TaskKind.CLASSIFICATION
    return TaskKind.MULTI_LABEL if labels.ndim > 1 and bool(np.isin(labels, (0, 1)).all()) else TaskKind.REGRESSION


def _classes(rows: Rows, labels: Array) -> tuple[int, tuple[str, ...]]:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{rows.origin}: labels are {labels.dtype} of {labels.ndim} dimensions, and classes are whole numbers or names, one "
            f"a row: choose another --task ({TaskKind.MULTI_LABEL}, {TaskKind.REGRESSION})"
        )
    if labels.min() < 0 or len(np.unique(labels)) < 2:
        raise DataError(f"{rows.origin}: labels run from {labels.min()} to {labels.max()}, expected two classes or more, from 0")
    count = max(int(labels.max()) + 1, len(rows.class_names or ()))
    return count, rows.class_names or tuple(map(str, range(count)))


def _check_known(labels: Array, origin: str, task: Task) -> None:
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= task.width:
        found = f"run from {labels.min()} to {labels.max()}" if labels.dtype.kind in "iuf" else f"are {labels.dtype}"
        raise DataError(
            f"{origin}: labels {found}, and the training rows have the classes 0 to {task.width - 1}: correct them, or add "
            "training rows of the others"
        )


def _check_binary(labels: Array, origin: str, kind: TaskKind) -> None:
    if not np.isin(labels, (0, 1)).all():
        raise DataError(f"{origin}: labels for {kind} are 0 or 1, found others: choose another --task, or correct them")
