"""The metric of a study on cases worked out by hand, and beside scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, root_mean_squared_error

from monograph.models.contract import Kind
from monograph.pipelines.interop.result import AUC, RMSE, TOP1
from monograph.pipelines.interop.yardstick import Yardstick, is_yes_or_no, metric_of

RNG = np.random.default_rng(0)
LIKED = RNG.integers(0, 2, 200)
SCORES = np.clip(0.5 + 0.2 * (LIKED - 0.5) + RNG.normal(0, 0.2, 200), 0, 1)[:, None]
WORSE = np.clip(SCORES[:, 0] + RNG.normal(0, 0.4, 200), 0, 1)[:, None]


@pytest.mark.parametrize(
    ("kind", "labels", "metric"),
    [
        (Kind.LOGITS, np.array([0, 1, 2]), TOP1),
        (Kind.PROBABILITIES, np.array([0, 1]), TOP1),
        (Kind.SCORES, np.array([0.0, 1.0]), AUC),
        (Kind.SCORES, np.array([[0.0], [1.0]]), AUC),
        (Kind.SCORES, np.array([0.5, 4.0]), RMSE),
        (Kind.SCORES, np.array([[0, 1], [1, 1]]), RMSE),
        (Kind.REGRESSION, np.array([0.0, 1.0]), RMSE),
    ],
)
def test_what_an_output_is_judged_by(kind: Kind, labels: np.ndarray, metric: str) -> None:
    assert metric_of(kind, labels) == metric


def test_labels_of_zero_and_one_are_a_yes_or_no() -> None:
    assert is_yes_or_no(np.array([0, 1, 1]))
    assert not is_yes_or_no(np.array([0, 2]))
    assert not is_yes_or_no(np.array([[0, 1], [1, 0]]))


def test_top1_and_its_change_by_hand() -> None:
    old = np.eye(2)[[0, 0, 1, 1]]
    new = np.eye(2)[[0, 1, 1, 1]]
    labels = np.array([0, 1, 1, 0])
    yardstick = Yardstick(TOP1)
    assert yardstick.score(old, labels).estimate == pytest.approx(0.5)
    change = yardstick.change(new, old, labels, "old")
    assert change.amount == pytest.approx(25)
    assert change.low < change.amount < change.high
    assert change.over == "old"
    assert yardstick.retention(old, new, labels) == pytest.approx(0.5 / 0.75)


def test_auc_is_that_of_scikit_learn_and_a_noisier_score_is_worse() -> None:
    yardstick = Yardstick(AUC)
    told = yardstick.score(SCORES, LIKED)
    assert told.estimate == pytest.approx(roc_auc_score(LIKED, SCORES))
    assert told.low is not None
    assert told.high is not None
    assert told.low < roc_auc_score(LIKED, SCORES) < told.high
    change = yardstick.change(SCORES, WORSE, LIKED, "worse")
    assert change.amount == pytest.approx(roc_auc_score(LIKED, SCORES) - roc_auc_score(LIKED, WORSE))
    assert change.low > 0
    kept = yardstick.retention(WORSE, SCORES, LIKED)
    assert kept == pytest.approx((roc_auc_score(LIKED, WORSE) - 0.5) / (roc_auc_score(LIKED, SCORES) - 0.5))


def test_auc_within_groups_is_the_mean_over_groups_that_have_both() -> None:
    groups = np.array([0, 0, 0, 1, 1, 2])
    liked = np.array([1, 0, 0, 1, 0, 1])
    scores = np.array([0.9, 0.1, 0.95, 0.2, 0.8, 0.5])[:, None]
    assert Yardstick(AUC, groups).score(scores, liked).estimate == pytest.approx((0.5 + 0) / 2)
    taken = Yardstick(AUC, groups).take(np.arange(3))
    assert taken.score(scores[:3], liked[:3]).estimate == pytest.approx(0.5)


def test_two_probabilities_of_a_score_that_is_a_share_and_none_of_another() -> None:
    yardstick = Yardstick(AUC)
    probable = yardstick.probabilities(SCORES, Kind.SCORES)
    assert probable is not None
    np.testing.assert_allclose(probable.sum(axis=1), 1)
    np.testing.assert_allclose(probable[:, 1], SCORES[:, 0])
    accuracy = yardstick.accuracy(SCORES, Kind.SCORES, LIKED)
    assert accuracy is not None
    assert accuracy.top1.estimate == pytest.approx(np.mean((SCORES[:, 0] > 0.5) == LIKED))
    assert yardstick.probabilities(10 * SCORES, Kind.SCORES) is None
    assert Yardstick(RMSE).probabilities(SCORES, Kind.REGRESSION) is None


def test_rmse_is_that_of_scikit_learn_and_less_is_better() -> None:
    truth = RNG.normal(size=(300, 2))
    near, far = truth + RNG.normal(0, 0.1, truth.shape), truth + RNG.normal(0, 0.3, truth.shape)
    yardstick = Yardstick(RMSE)
    told = yardstick.score(near, truth)
    assert told.estimate == pytest.approx(np.sqrt(np.mean((near - truth) ** 2)))
    assert told.estimate == pytest.approx(root_mean_squared_error(truth.ravel(), near.ravel()))
    change = yardstick.change(near, far, truth, "far")
    assert change.low > 0
    assert change.amount == pytest.approx(np.sqrt(np.mean((far - truth) ** 2)) - np.sqrt(np.mean((near - truth) ** 2)))
    kept = yardstick.retention(far, near, truth)
    assert kept is not None
    assert 0 < kept < 1


@pytest.mark.parametrize("groups", [None, np.arange(200) % 7])
def test_a_value_is_the_estimate_of_its_score(groups: np.ndarray | None) -> None:
    cases = [(TOP1, np.concatenate([1 - SCORES, SCORES], axis=1), LIKED), (AUC, SCORES, LIKED), (RMSE, SCORES, LIKED + 0.25)]
    for metric, output, labels in cases:
        yardstick = Yardstick(metric, groups)
        assert yardstick.value(output, labels) == pytest.approx(yardstick.score(output, labels).estimate, rel=1e-12)


def test_a_teacher_that_knows_nothing_leaves_nothing_to_keep() -> None:
    flat = np.full((200, 1), 0.5)
    assert Yardstick(AUC).retention(SCORES, flat, LIKED) is None
