"""Stitching against scikit-learn's least squares, by hand, and beside noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score

from monograph.errors import DataError
from monograph.runtime.metrics.stitching import fit_stitch, stitch_score

SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed: int, rows: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width))


HELD_OUT = np.arange(200) % 4 == 0


def test_by_hand():
    weight, bias = fit_stitch(np.array([[0.0], [1.0], [2.0]]), np.array([[1.0, 5.0], [3.0, 5.0], [5.0, 5.0]]))
    np.testing.assert_allclose(weight, [[2, 0]], atol=1e-12)
    np.testing.assert_allclose(bias, [1, 5], atol=1e-12)
    # With a ridge as large as the sum of squares about the mean, 2, the slope is halved.
    weight, bias = fit_stitch(np.array([[0.0], [1.0], [2.0]]), np.array([[1.0], [3.0], [5.0]]), ridge=2.0)
    assert (weight.item(), bias.item()) == (pytest.approx(1), pytest.approx(2))


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 10.0])
@pytest.mark.parametrize(("rows", "width"), [(50, 6), (8, 20)])
def test_it_is_scikit_learns(rows: int, width: int, ridge: float):
    x, y = drawn(0, rows, width) + 3, drawn(1, rows, 4) - 2
    model = (Ridge(alpha=ridge, solver="svd") if ridge else LinearRegression()).fit(x, y)
    weight, bias = fit_stitch(x, y, ridge)
    np.testing.assert_allclose(weight, model.coef_.T, atol=1e-9)
    np.testing.assert_allclose(bias, model.intercept_, atol=1e-9)


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_an_affine_map_is_found_again(seed: int):
    x, weight, bias = drawn(seed, 30, 5), drawn(seed + 1, 5, 3), drawn(seed + 2, 1, 3)[0]
    found = fit_stitch(x, x @ weight + bias)
    np.testing.assert_allclose(found[0], weight, atol=1e-9)
    np.testing.assert_allclose(found[1], bias, atol=1e-9)


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_no_other_map_errs_less(seed: int):
    x, y = drawn(seed, 20, 4), drawn(seed + 1, 20, 3)
    weight, bias = fit_stitch(x, y, ridge=0.5)

    def loss(weight: np.ndarray, bias: np.ndarray) -> float:
        return float(((x @ weight + bias - y) ** 2).sum() + 0.5 * (weight**2).sum())

    assert loss(weight, bias) < loss(weight + 1e-3 * drawn(seed + 2, 4, 3), bias + 1e-3 * drawn(seed + 3, 1, 3)[0])


def test_columns_that_do_not_vary_or_repeat_get_small_weights():
    x, y = drawn(0, 40, 3), drawn(1, 40, 2)
    weight, _ = fit_stitch(np.concatenate([x, x, np.full((40, 2), 1 / 3)], axis=1), y)
    expected = fit_stitch(x, y)[0] / 2
    np.testing.assert_allclose(weight, np.concatenate([expected, expected, np.zeros((2, 2))]), atol=1e-9)


class TestScore:
    def test_it_is_scikit_learns_on_held_out_rows(self):
        x = drawn(0, 200, 6)
        y = x @ drawn(1, 6, 4) * [1, 2, 3, 4] + drawn(2, 200, 4)
        score = stitch_score(x, y, HELD_OUT)
        predicted = LinearRegression().fit(x[~HELD_OUT], y[~HELD_OUT]).predict(x[HELD_OUT])
        assert (score.fitted_count, score.held_out_count) == (150, 50)
        assert score.r2 == pytest.approx(r2_score(y[HELD_OUT], predicted, multioutput="variance_weighted"))
        assert score.r2 > 0.8
        assert score.noise_r2 < 0.1
        assert score.class_noise_r2 is None

    def test_features_in_another_basis_are_exact(self):
        x = drawn(0, 200, 6)
        assert stitch_score(x, x @ drawn(1, 6, 9) + 4, HELD_OUT).r2 == pytest.approx(1)

    def test_noise_that_knows_the_class_can_be_stitched(self):
        """Two models that share nothing but the classes: the stitch looks well, and no better than that of noise."""
        labels = np.arange(200) % 5 + 10
        of_class = np.eye(5)[labels - 10]
        x, y = (3 * of_class @ drawn(seed, 5, 16) + drawn(seed + 1, 200, 16) for seed in (0, 2))
        score = stitch_score(x, y, HELD_OUT, ridge=1.0, labels=labels)
        assert score.r2 > 0.6
        assert score.noise_r2 < 0.1
        assert score.class_noise_r2 == pytest.approx(score.r2, abs=0.1)

    def test_it_repeats_by_its_seed(self):
        x, y, labels = drawn(0, 200, 3), drawn(1, 200, 3), np.arange(200) % 3
        assert stitch_score(x, y, HELD_OUT, labels=labels, seed=4) == stitch_score(x, y, HELD_OUT, labels=labels, seed=4)
        assert stitch_score(x, y, HELD_OUT, seed=4).noise_r2 != stitch_score(x, y, HELD_OUT, seed=5).noise_r2

    def test_features_that_do_not_vary_have_no_score(self):
        score = stitch_score(drawn(0, 200, 3), np.full((200, 2), 0.1), HELD_OUT, labels=np.arange(200) % 3)
        assert (score.r2, score.noise_r2, score.class_noise_r2) == (None, None, None)


def test_errors():
    x = drawn(0, 6, 3)
    with pytest.raises(DataError, match="the ridge is -1"):
        fit_stitch(x, x, -1.0)
    with pytest.raises(DataError, match="have 6 and 5 rows"):
        fit_stitch(x, x[:5])
    with pytest.raises(DataError, match=r"expected bool \[6\]"):
        stitch_score(x, x, np.arange(6))
    with pytest.raises(DataError, match="1 of 6 rows are held out"):
        stitch_score(x, x, np.arange(6) == 0)
    with pytest.raises(DataError, match="features to stitch to are not finite in row 0"):
        stitch_score(x, x * np.nan, np.arange(6) < 3)
    with pytest.raises(DataError, match="features and labels have 6 and 4 rows"):
        stitch_score(x, x, np.arange(6) < 3, labels=np.zeros(4, int))
