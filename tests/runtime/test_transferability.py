"""LEEP and LogME: by hand, against the dense likelihood and scikit-learn, and by their properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy, multivariate_normal
from sklearn.linear_model import BayesianRidge
from sklearn.metrics import log_loss

from monograph.errors import DataError
from monograph.runtime.metrics.transferability import leep, logme, logme_regression, maximum_evidence

SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed: int, rows: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width))


def task(seed: int = 0, rows: int = 40, width: int = 5, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    features = drawn(seed, rows, width)
    return features, features @ drawn(seed + 1, width, 1)[:, 0] + noise * drawn(seed + 2, rows, 1)[:, 0]


def dense_log_evidence(features: np.ndarray, target: np.ndarray, alpha: float, beta: float) -> float:
    """Of y ~ N(0, FFᵀ/α + I/β), a row."""
    covariance = features @ features.T / alpha + np.eye(len(target)) / beta
    return float(multivariate_normal(np.zeros(len(target)), covariance).logpdf(target)) / len(target)


class TestLeep:
    def test_by_hand(self):
        probabilities = np.array([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]])
        # Class 5 came with 1.4 and 0.6 of the two source classes, class 7 with 0.1 and 0.9.
        five, seven = np.array([1.4 / 1.5, 0.6 / 1.5]), np.array([0.1 / 1.5, 0.9 / 1.5])
        likelihoods = [0.8 * five[0] + 0.2 * five[1], 0.6 * five[0] + 0.4 * five[1], 0.1 * seven[0] + 0.9 * seven[1]]
        assert leep(probabilities, np.array([5, 5, 7])) == pytest.approx(np.log(likelihoods).mean())

    def test_at_best_it_is_0(self):
        labels = np.array([0, 1, 2, 2, 1])
        assert leep(np.eye(4)[[3, 0, 2, 2, 0]], labels) == pytest.approx(0)

    def test_classes_that_tell_nothing_leave_the_entropy(self):
        labels = np.array([0, 0, 0, 1])
        assert leep(np.full((4, 3), 1 / 3), labels) == pytest.approx(-entropy([0.75, 0.25]))

    @given(SEEDS)
    @settings(max_examples=40, deadline=None)
    def test_it_is_a_log_loss_between_two_entropies(self, seed: int):
        rng = np.random.default_rng(seed)
        probabilities, labels = rng.dirichlet(np.full(6, 0.3), 30), np.append([0, 1, 2], rng.integers(0, 3, 27))
        joint = np.stack([probabilities[labels == label].sum(axis=0) for label in range(3)]) / 30
        expected = probabilities @ (joint / joint.sum(axis=0)).T
        value = leep(probabilities, labels)
        assert value == pytest.approx(-log_loss(labels, expected))
        conditional = entropy(joint.ravel()) - entropy(joint.sum(axis=0))
        assert -conditional - 1e-9 <= value <= 0
        order = rng.permutation(6)
        assert leep(probabilities[:, order], 10 - labels) == pytest.approx(value), "names of classes do not matter"


class TestEvidence:
    @pytest.mark.parametrize(("rows", "width"), [(40, 5), (12, 12), (10, 25), (30, 1)])
    def test_it_is_the_dense_likelihood_and_the_largest(self, rows: int, width: int):
        # Columns that weigh less and less leave noise to be told apart where they are as many as the rows.
        features = drawn(3, rows, width) * 0.3 ** np.arange(width)
        target = features @ drawn(4, width, 1)[:, 0] + drawn(5, rows, 1)[:, 0]
        found = maximum_evidence(features, target[:, None])
        alpha, beta = float(found.alpha[0]), float(found.beta[0])
        best = dense_log_evidence(features, target, alpha, beta)
        assert found.log_evidence[0] == pytest.approx(best, abs=1e-9)
        for a, b in [(1.1, 1), (0.9, 1), (1, 1.1), (1, 0.9), (1.1, 1.1), (0.9, 0.9), (1.1, 0.9), (0.01, 1), (100, 1), (1, 100)]:
            assert dense_log_evidence(features, target, a * alpha, b * beta) < best
        precision = alpha * np.eye(width) + beta * features.T @ features
        mean = beta * np.linalg.solve(precision, features.T @ target)
        determined = width - alpha * np.trace(np.linalg.inv(precision))
        assert alpha == pytest.approx(determined / (mean @ mean), rel=1e-6)
        assert beta == pytest.approx((rows - determined) / ((features @ mean - target) ** 2).sum(), rel=1e-6)

    def test_it_is_what_scikit_learn_finds(self):
        features, target = task(7, 80, 6)
        none = dict.fromkeys(("alpha_1", "alpha_2", "lambda_1", "lambda_2"), 0.0)
        ridge = BayesianRidge(max_iter=3000, tol=1e-12, fit_intercept=False, compute_score=True, **none).fit(features, target)
        found = maximum_evidence(features, target[:, None])
        assert (found.alpha[0], found.beta[0]) == pytest.approx((ridge.lambda_, ridge.alpha_), rel=1e-6)
        assert found.log_evidence[0] == pytest.approx(ridge.scores_[-1] / 80, abs=1e-9)

    @given(SEEDS, st.floats(1e-4, 1e4))
    @settings(max_examples=30, deadline=None)
    def test_scale_and_turns_of_features_do_not_matter(self, seed: int, scale: float):
        features, target = task(seed, 30, 4)
        turn = np.linalg.qr(drawn(seed + 5, 4, 4))[0]
        expected = logme_regression(features, target)
        assert logme_regression(scale * features @ turn, target) == pytest.approx(expected, abs=1e-6)
        assert logme_regression(features, scale * target) == pytest.approx(expected - np.log(scale), abs=1e-6)

    def test_features_twice_over_or_of_zeros_change_nothing(self):
        features, target = task(1)
        twice = np.concatenate([features, features, np.zeros((40, 2))], axis=1)
        assert logme_regression(twice, target) == pytest.approx(logme_regression(features, target), abs=1e-9)

    @pytest.mark.parametrize("width", [1, 5, 60])
    def test_targets_without_noise_stay_finite(self, width: int):
        features = drawn(0, 40, width)
        found = maximum_evidence(features, features @ np.ones((width, 1)))
        assert all(np.isfinite(values).all() for values in (found.log_evidence, found.alpha, found.beta))
        if width < 40:
            assert found.log_evidence[0] > 5

    def test_features_that_say_nothing_leave_the_noise(self):
        features, target = np.array([[1.0], [1.0], [-1.0], [-1.0]]), np.array([1.0, -1.0, 1.0, -1.0])
        found = maximum_evidence(features, target[:, None])
        assert found.beta[0] == pytest.approx(1)
        assert found.log_evidence[0] == pytest.approx(-0.5 * np.log(2 * np.pi) - 0.5)


class TestLogme:
    def test_it_is_the_mean_of_one_against_the_rest(self):
        features, labels = drawn(0, 60, 4), np.arange(60) % 3
        single = [maximum_evidence(features, (labels == label)[:, None]).log_evidence[0] for label in range(3)]
        assert logme(features, labels) == pytest.approx(np.mean(single), abs=1e-12)
        assert logme(features, 7 - 2 * labels) == pytest.approx(np.mean(single), abs=1e-12)

    def test_features_that_tell_classes_apart_score_higher(self):
        labels = np.arange(90) % 3
        values = [
            logme(strength * np.eye(3)[labels] @ drawn(1, 3, 8) + drawn(2, 90, 8), labels) for strength in (0, 0.5, 1, 2, 4)
        ]
        assert values == sorted(values)
        assert values[-1] - values[0] > 0.3

    def test_several_targets_are_averaged(self):
        features, target = task(0)
        other = drawn(9, 40, 1)[:, 0]
        both = logme_regression(features, np.stack([target, other], axis=1))
        assert both == pytest.approx((logme_regression(features, target) + logme_regression(features, other)) / 2)


def test_errors():
    features, target = task(0, 6, 3)
    labels = np.array([0, 1, 0, 1, 0, 1])
    with pytest.raises(DataError, match="probabilities of row 1"):
        leep(np.array([[0.5, 0.5], [2.0, -1.0]]), labels[:2])
    with pytest.raises(DataError, match="apply the softmax"):
        leep(features, labels)
    with pytest.raises(DataError, match="have 6 and 5 rows"):
        logme(features, labels[:5])
    with pytest.raises(DataError, match=r"expected class numbers int \[n\]"):
        logme(features, target)
    with pytest.raises(DataError, match="all rows have one class"):
        logme(features, labels * 0)
    with pytest.raises(DataError, match="features are 0 on all rows"):
        logme(features * 0, labels)
    with pytest.raises(DataError, match="target 1 is the same on all rows"):
        logme_regression(features, np.stack([target, np.ones(6)], axis=1))
    with pytest.raises(DataError, match="target 0 is 0 on all rows"):
        maximum_evidence(features, np.zeros((6, 1)))
    with pytest.raises(DataError, match="features are not finite in row 0"):
        logme(features * np.nan, labels)
