"""What stands beside an adaptation: right on small cases that are worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.data.rows import Rows
from monograph.pipelines.adapt.baselines import (
    constant_baseline,
    feature_baselines,
    item_baselines,
    knows_classes,
    zero_shot,
)
from monograph.pipelines.adapt.network import FEATURES
from monograph.pipelines.adapt.quality import quality_name, row_quality
from monograph.pipelines.adapt.standing import gain_over
from monograph.pipelines.adapt.task import Task, TaskKind

CLASSES = Task(TaskKind.CLASSIFICATION, 3, ("a", "b", "c"))
CLICK, NUMBERS = Task(TaskKind.CLICK, 1, None), Task(TaskKind.REGRESSION, 1, None)
SEVERAL = Task(TaskKind.MULTI_LABEL, 2, ("wet", "cold"))
PAIRS = Contract(
    tuple(TensorSpec(name, "int64", ("b",), None, 9) for name in ("user", "item")),
    (TensorSpec("scores", "float32", ("b", 1)),),
    Kind.SCORES,
)


def features(labels: np.ndarray, seed: int = 0) -> Rows:
    """Rows whose first feature says all."""
    rng = np.random.default_rng(seed)
    first = labels.reshape(len(labels), -1).sum(1)
    return Rows({FEATURES: np.stack([first + 0.1 * rng.normal(size=len(labels)), rng.normal(size=len(labels))], 1)}, labels)


def test_the_majority_class():
    train, test = features(np.array([0, 1, 1, 1])), features(np.array([1, 0]))
    baseline = constant_baseline(train, test, CLASSES)
    assert baseline.name == "majority class"
    np.testing.assert_allclose(np.exp(baseline.outputs), [[0.25, 0.75, 0]] * 2, atol=1e-30)


@pytest.mark.parametrize(
    ("task", "labels", "name", "expected"),
    [
        (CLICK, [0.0, 1.0, 1.0, 1.0], "shares of the labels", [0.75]),
        (NUMBERS, [1.0, 2.0, 6.0], "mean", [3.0]),
        (SEVERAL, [[0.0, 1.0], [0.0, 0.0]], "shares of the labels", [0.0, 0.5]),
    ],
)
def test_means(task: Task, labels: list, name: str, expected: list[float]):
    rows = features(np.array(labels))
    baseline = constant_baseline(rows, rows, task)
    assert baseline.name == name
    np.testing.assert_allclose(baseline.outputs, [expected] * len(rows))


@pytest.mark.parametrize(
    ("task", "labels", "names"),
    [
        (CLASSES, np.tile([0, 2], 20), ["15-nearest neighbours", "logistic regression"]),
        (CLICK, np.tile([0.0, 1.0], 20), ["15-nearest neighbours", "logistic regression"]),
        (SEVERAL, np.tile([[0.0, 0.0], [1.0, 1.0]], (20, 1)), ["15-nearest neighbours", "logistic regression"]),
        (NUMBERS, np.tile([0.0, 4.0], 20), ["15-nearest neighbours", "ridge regression"]),
    ],
)
def test_simple_models_on_features(task: Task, labels: np.ndarray, names: list[str]):
    made = feature_baselines(features(labels), features(labels, seed=1), task)
    assert [one.name for one in made] == [f"{name} on frozen features" for name in names]
    for one in made:
        assert one.outputs.shape == (40, task.width)
        assert np.isfinite(one.outputs).all()
        wrong = row_quality(one.outputs, labels, task).mean()
        assert wrong > {TaskKind.CLICK: -0.3, TaskKind.REGRESSION: -0.2}.get(task.kind, 0.99)


def test_labels_that_leave_nothing_to_learn():
    assert feature_baselines(features(np.zeros(9)), features(np.ones(3)), CLICK) == []
    one_never = np.tile([[1.0, 0.0], [0.0, 0.0]], (9, 1))
    made = feature_baselines(features(one_never), features(one_never), SEVERAL)
    np.testing.assert_allclose([one.outputs[:, 1].max() for one in made], 0, atol=1e-6)


def test_the_mean_of_an_item_is_drawn_to_that_of_all():
    train = Rows({"user": np.zeros(4, np.int64), "item": np.array([7, 7, 7, 8])}, np.array([1.0, 1, 1, 0]))
    test = Rows({"user": np.array([0, 5, 0]), "item": np.array([7, 8, 1])}, np.zeros(3))
    by_user, by_item = item_baselines(train, test, PAIRS, CLICK)
    assert (by_user.name, by_item.name) == ("mean by user", "mean by item")
    overall = 0.75
    expected = [(3 + 5 * overall) / 8, (0 + 5 * overall) / 6, overall]
    np.testing.assert_allclose(by_item.outputs[:, 0], expected)
    np.testing.assert_allclose(by_user.outputs[:, 0], overall)


def test_ids_may_be_large_and_classes_have_no_mean():
    rows = Rows({"user": np.array([2**60, 1]), "item": np.array([0, 1])}, np.array([0.0, 1.0]))
    assert len(item_baselines(rows, rows, PAIRS, CLICK)) == 2
    assert item_baselines(rows, rows, PAIRS, CLASSES) == []


def test_zero_shot_takes_the_classes_of_the_task():
    spec, output = TensorSpec("x", "float32", ("b", 2)), TensorSpec("y", "float32", ("b", 4))
    own = Contract((spec,), (output,), Kind.LOGITS, ("c", "x", "b", "a"))
    assert knows_classes(own, CLASSES)
    given = np.array([[1.0, 2.0, 3.0, 4.0]])
    assert zero_shot(given, own, CLASSES).outputs.tolist() == [[4.0, 3.0, 1.0]]
    probable = Contract((spec,), (output,), Kind.PROBABILITIES, own.class_names)
    np.testing.assert_allclose(zero_shot(given / 10, probable, CLASSES).outputs, np.log([[0.4, 0.3, 0.1]]))
    for other in (Contract((spec,), (output,), Kind.LOGITS), Contract((spec,), (output,), Kind.LOGITS, ("a", "b", "d", "e"))):
        assert not knows_classes(other, CLASSES)
    assert not knows_classes(own, CLICK)


def test_quality_of_rows_by_hand():
    assert row_quality(np.array([[0.1, 0.9], [0.9, 0.1]]), np.array([1, 1]), CLASSES).tolist() == [1, 0]
    assert row_quality(np.array([[0.9, 0.4]]), np.array([[1.0, 1.0]]), SEVERAL).tolist() == [0.5]
    np.testing.assert_allclose(row_quality(np.array([[0.25]]), np.array([1.0]), CLICK), [np.log(0.25)])
    assert row_quality(np.array([[3.0]]), np.array([1.0]), NUMBERS).tolist() == [-4]
    assert [quality_name(task) for task in (CLASSES, SEVERAL, CLICK, NUMBERS)] == [
        "top-1",
        "share of labels that are right",
        "log-likelihood in nats",
        "negative squared error",
    ]


def test_the_gain_is_over_the_best_on_the_same_rows():
    labels = np.tile([0, 1], 50)
    right = np.eye(2)[labels]
    half = right.copy()
    half[::4] = half[::4, ::-1]
    name, gain = gain_over(right, {"poor": 1 - right, "fair": half}, Rows({"x": labels}, labels), CLASSES)
    assert name == "fair"
    assert gain.estimate == pytest.approx(0.25)
    assert 0 < gain.low < 0.25 < gain.high
