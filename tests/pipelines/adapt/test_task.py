"""What labels are taken for, and what an adapted model promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from monograph.errors import ConfigError, DataError
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.data.rows import Rows
from monograph.pipelines.adapt.task import Task, TaskKind, as_targets, reading_contract, task_of

X = TensorSpec("x", "float32", ("rows", 2))


def rows(labels: Any, names: tuple[str, ...] | None = None) -> Rows:
    return Rows({"x": np.zeros((len(labels), 2), np.float32)}, np.array(labels), names, "d.npz")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 2, 1], Task(TaskKind.CLASSIFICATION, 3, ("0", "1", "2"))),
        ([[0, 1], [1, 1], [0, 0]], Task(TaskKind.MULTI_LABEL, 2, ("label 0", "label 1"))),
        ([[0.0, 1.0], [1.0, 1.0]], Task(TaskKind.MULTI_LABEL, 2, ("label 0", "label 1"))),
        ([0.5, 1.5], Task(TaskKind.REGRESSION, 1, None)),
        ([[0.5, 1.0], [0.0, 1.0]], Task(TaskKind.REGRESSION, 2, None)),
    ],
)
def test_a_task_is_found_by_its_labels(labels: Any, expected: Task):
    assert task_of(rows(labels)) == expected


def test_names_of_the_data_are_kept():
    assert task_of(rows([0, 1], ("cat", "dog", "cow"))) == Task(TaskKind.CLASSIFICATION, 3, ("cat", "dog", "cow"))
    assert task_of(rows([[0, 1], [1, 0]], ("wet", "cold"))).class_names == ("wet", "cold")


@pytest.mark.parametrize(("kind", "labels"), [("click", [0, 1, 1]), ("rating", [1, 5, 3]), ("regression", [1, 2, 3])])
def test_a_task_that_was_asked_for(kind: str, labels: list[int]):
    assert task_of(rows(labels), kind) == Task(TaskKind(kind), 1, None)


def test_labels_that_are_not_of_the_task():
    with pytest.raises(ConfigError, match="unknown task 'clustering': choose from auto, classification, "):
        task_of(rows([0, 1]), "clustering")
    with pytest.raises(DataError, match=r"labels are float64 of 1 dimensions.*choose another --task"):
        task_of(rows([0.5, 1.0]), "classification")
    with pytest.raises(DataError, match="labels run from 1 to 1, expected two classes or more"):
        task_of(rows([1, 1]))
    with pytest.raises(DataError, match="labels for click are 0 or 1"):
        task_of(rows([0, 2]), "click")


@pytest.mark.parametrize(
    ("kind", "output", "gives"),
    [
        (TaskKind.CLASSIFICATION, "logits", Kind.LOGITS),
        (TaskKind.MULTI_LABEL, "scores", Kind.SCORES),
        (TaskKind.CLICK, "scores", Kind.SCORES),
        (TaskKind.RATING, "values", Kind.REGRESSION),
        (TaskKind.REGRESSION, "values", Kind.REGRESSION),
    ],
)
def test_contract(kind: TaskKind, output: str, gives: Kind):
    contract = Task(kind, 2, ("a", "b") if kind is TaskKind.CLASSIFICATION else None).contract((X,))
    assert (contract.kind, contract.output, contract.inputs) == (gives, TensorSpec(output, "float32", ("rows", 2)), (X,))


def test_rows_are_read_by_what_the_task_may_be():
    own = Contract((X,), (TensorSpec("logits", "float32", ("rows", 3)),), Kind.LOGITS, ("a", "b", "c"))
    assert reading_contract(own, "auto").class_names is None
    assert reading_contract(own, "rating").kind is Kind.REGRESSION
    assert reading_contract(own, "auto", ("x", "y")).class_names == ("x", "y")


def test_targets():
    classes, click = task_of(rows([0, 1, 2])), task_of(rows([0, 1]), "click")
    assert as_targets(rows([2, 0]), classes).required_labels().dtype == np.int64
    several = as_targets(rows([[0, 1], [1, 1]]), task_of(rows([[0, 1], [1, 0]])))
    assert (several.required_labels().dtype, several.required_labels().shape) == (np.dtype(np.float64), (2, 2))
    assert as_targets(rows([[1], [0]]), click).required_labels().shape == (2,)


def test_another_file_with_other_labels_is_refused():
    classes, click, pair = task_of(rows([0, 1, 2])), task_of(rows([0, 1]), "click"), task_of(rows([[0, 1], [1, 0]]))
    with pytest.raises(DataError, match="labels run from 0 to 3, and the training rows have the classes 0 to 2"):
        as_targets(rows([0, 3]), classes)
    with pytest.raises(DataError, match="labels run from -1 to 0"):
        as_targets(rows([0, -1]), classes)
    with pytest.raises(DataError, match="labels for click are 0 or 1"):
        as_targets(rows([0, 5]), click)
    with pytest.raises(DataError, match="3 labels a row, and the training rows have 2"):
        as_targets(rows([[0, 1, 1]]), pair)
