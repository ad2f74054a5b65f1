import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, log_loss

from monograph.errors import DataError, MonographError
from monograph.models.contract import Kind
from monograph.runtime.metrics import as_probabilities, expected_calibration_error, score_classifier


def random_probabilities(seed: int, n: int = 300, c: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [n x c] and labels [n] that follow them, so that some are right and some are wrong."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(c), size=n)
    return probabilities, np.array([rng.choice(c, p=row) for row in probabilities])


def sure(confidence: float, right: int, wrong: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that all say class 0 with this confidence, of which so many are right."""
    n = right + wrong
    return np.tile([confidence, 1 - confidence], (n, 1)), np.array([0] * right + [1] * wrong)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_scores_are_scikit_learns(seed: int):
    probabilities, labels = random_probabilities(seed)
    predictions = probabilities.argmax(axis=1)
    accuracy = score_classifier(probabilities, labels)
    assert accuracy.row_count == 300
    assert accuracy.top1.estimate == pytest.approx(accuracy_score(labels, predictions))
    assert accuracy.top1.low < accuracy.top1.estimate < accuracy.top1.high
    assert accuracy.macro_f1 == pytest.approx(f1_score(labels, predictions, average="macro"))
    assert accuracy.nll == pytest.approx(log_loss(labels, probabilities, labels=range(4)))


def test_scores_by_hand():
    """Three of four right: class 0 has F1 2/3, class 1 has F1 4/5."""
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7], [0.4, 0.6], [0.2, 0.8]])
    labels = np.array([0, 1, 0, 1])
    accuracy = score_classifier(probabilities, labels)
    assert accuracy.top1.estimate == 0.75
    assert accuracy.macro_f1 == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert accuracy.nll == pytest.approx(-math.log(0.9 * 0.7 * 0.4 * 0.8) / 4)
    # Four bins of one row each: the confidences 0.9, 0.7 and 0.8 were right, 0.6 was wrong.
    assert accuracy.ece == pytest.approx((0.1 + 0.3 + 0.6 + 0.2) / 4)


def test_a_sure_and_wrong_row_costs_much_but_not_everything():
    accuracy = score_classifier(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]))
    assert accuracy.top1.estimate == 0.5
    assert accuracy.nll == pytest.approx(-math.log(np.finfo(np.float64).eps) / 2, rel=1e-6)
    assert accuracy.ece == pytest.approx(0.5)


def test_probabilities_in_single_precision_are_taken_though_they_do_not_sum_to_one():
    probabilities, labels = random_probabilities(1, c=100)
    single = score_classifier(probabilities.astype(np.float32), labels)
    double = score_classifier(probabilities, labels)
    assert single.nll == pytest.approx(double.nll, rel=1e-5)
    assert single.top1 == double.top1


def test_classes_that_no_row_has_do_not_disturb():
    probabilities, labels = random_probabilities(2)
    wider = np.hstack([probabilities, np.zeros((300, 3))])
    assert score_classifier(wider, labels).top1 == score_classifier(probabilities, labels).top1
    assert score_classifier(wider, labels).macro_f1 == score_classifier(probabilities, labels).macro_f1
    assert score_classifier(wider, labels).nll == pytest.approx(score_classifier(probabilities, labels).nll)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2, 5], "label 2 in row 2 is out of range: the model has classes 0 to 1"),
        ([0, -1, 0, 0], "label -1 in row 1 is out of range: the model has classes 0 to 1"),
        ([7, 0, -3, 0], "label 7 in row 0 is out of range"),
    ],
)
def test_a_label_out_of_range_names_its_row(labels: list[int], message: str):
    with pytest.raises(DataError, match=message):
        score_classifier(np.full((4, 2), 0.5), np.array(labels))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", [Kind.LOGITS, Kind.PROBABILITIES])
def test_outputs_that_are_no_numbers_are_an_error_of_ours(bad: float, kind: Kind):
    outputs = np.array([[0.5, 0.5], [bad, 0.5]])
    with pytest.raises(MonographError):
        score_classifier(as_probabilities(outputs, kind), np.array([0, 1]))


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 5, 3)])
def test_outputs_that_are_no_rows_of_classes_are_refused(shape: tuple[int, ...]):
    with pytest.raises(DataError):
        score_classifier(np.full(shape, 0.5), np.array([0, 0]))


@pytest.mark.parametrize(("confidence", "right", "wrong"), [(0.8, 8, 2), (0.75, 3, 1), (0.5, 5, 5), (1.0, 4, 0), (0.9, 9, 1)])
def test_perfect_calibration_is_an_error_of_zero(confidence: float, right: int, wrong: int):
    assert expected_calibration_error(*sure(confidence, right, wrong)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("confidence", "right", "wrong", "error"), [(0.8, 10, 0, 0.2), (0.8, 0, 10, 0.8), (1.0, 0, 3, 1.0), (0.6, 4, 6, 0.2)]
)
def test_miscalibration_is_the_gap_between_confidence_and_accuracy(confidence: float, right: int, wrong: int, error: float):
    assert expected_calibration_error(*sure(confidence, right, wrong)) == pytest.approx(error)


def test_gaps_cancel_within_a_bin_but_not_between_bins():
    same = [sure(0.94, 10, 0), sure(0.96, 9, 1)]
    apart = [sure(0.6, 10, 0), sure(0.9, 5, 5)]
    for parts, error in ((same, 0.0), (apart, 0.4)):
        probabilities, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        assert expected_calibration_error(probabilities, labels) == pytest.approx(error)


def test_a_confidence_of_one_lies_in_the_last_bin():
    """Twenty right at 0.95 and one of ten wrong at 1: the gaps +1 and -1 cancel."""
    parts = [sure(0.95, 20, 0), sure(1.0, 9, 1)]
    probabilities, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0, abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), bins=st.integers(1, 30))
def test_calibration_error_is_that_of_a_plain_loop(seed: int, bins: int):
    probabilities, labels = random_probabilities(seed)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for k in range(bins):
        inside = (confidence >= k / bins) & ((confidence < (k + 1) / bins) | (k == bins - 1))
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(probabilities, labels, bins) == pytest.approx(expected)


def test_logits_become_probabilities_by_softmax():
    outputs = np.log(np.array([[1.0, 3.0], [1.0, 1.0]], np.float32)) + np.array([[5.0], [-7.0]], np.float32)
    probabilities = as_probabilities(outputs, Kind.LOGITS)
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities, [[0.25, 0.75], [0.5, 0.5]], rtol=1e-6)


def test_large_logits_do_not_overflow():
    for dtype, large in ((np.float16, 60_000), (np.float32, 3e38)):
        probabilities = as_probabilities(np.array([[large, -large, 0]], dtype), Kind.LOGITS)
        assert probabilities.tolist() == [[1, 0, 0]]


def test_probabilities_stay_as_they_are():
    outputs = np.array([[0.25, 0.75]], np.float32)
    probabilities = as_probabilities(outputs, Kind.PROBABILITIES)
    assert probabilities.dtype == np.float64
    assert probabilities.tolist() == [[0.25, 0.75]]


@pytest.mark.parametrize("kind", [Kind.REGRESSION, Kind.EMBEDDING, Kind.SCORES])
def test_outputs_of_other_kinds_have_no_classes(kind: Kind):
    with pytest.raises(DataError, match=f"outputs of kind '{kind.value}' have no classes to be right about"):
        as_probabilities(np.ones((1, 2)), kind)
