"""Linear CKA against its definition over all quadruples of rows, by hand, and by its invariances."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monograph.errors import DataError
from monograph.runtime.metrics.similarity import MinibatchCka, linear_cka

SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed: int, rows: int = 20, width: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width))


def hsic_by_quadruples(x: np.ndarray, y: np.ndarray) -> float:
    """E k(x, x') l(y, y') + E k E l − 2 E k(x, x') l(y, y''), each over different rows."""
    k, m = x @ x.T, y @ y.T
    return float(
        np.mean([k[a, b] * m[a, b] + k[a, b] * m[c, d] - 2 * k[a, b] * m[a, c] for a, b, c, d in permutations(range(len(x)), 4)])
    )


@pytest.mark.parametrize("n", [4, 5, 7])
def test_it_is_the_mean_over_all_quadruples(n: int):
    x, y = drawn(1, n, 3) + 2, drawn(2, n, 4) - 1
    expected = hsic_by_quadruples(x, y) / np.sqrt(hsic_by_quadruples(x, x) * hsic_by_quadruples(y, y))
    assert linear_cka(x, y) == pytest.approx(expected, abs=1e-12)


def test_by_hand():
    """One number a row, ±1: off the diagonal the Gram matrices are the products; Song et al.'s formula with n = 4."""
    x, y = np.array([1.0, 1.0, -1.0, -1.0]), np.array([1.0, -1.0, 1.0, -1.0])
    # Of x with itself: tr 12, sums −4 and −4, 1ᵀKK1 = 4: (12 + 16/6 − 4) / 4 = 8/3. Of x with y: tr −4, so (−4 + 16/6 − 4) / 4.
    assert linear_cka(x[:, None], x[:, None]) == pytest.approx(1)
    assert linear_cka(x[:, None], y[:, None]) == pytest.approx((-4 + 16 / 6 - 4) / (12 + 16 / 6 - 4))


def test_with_many_rows_it_is_that_of_the_biased_formula():
    x = drawn(0, 1500, 3)
    y = x @ drawn(1, 3, 4) + drawn(2, 1500, 4)
    a, b = x - x.mean(axis=0), y - y.mean(axis=0)
    biased = np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    assert linear_cka(x, y) == pytest.approx(biased, abs=3e-3)


@given(SEEDS, st.floats(1e-3, 1e3), st.floats(-100, 100))
@settings(max_examples=30, deadline=None)
def test_turning_scaling_and_shifting_change_nothing(seed: int, scale: float, shift: float):
    x, y = drawn(seed), drawn(seed + 1, width=7) + drawn(seed, width=7)
    turn = np.linalg.qr(drawn(seed + 2, 5, 5))[0]
    value = linear_cka(x, y)
    assert linear_cka(scale * x @ turn + shift, y) == pytest.approx(value, abs=1e-8)
    assert linear_cka(y, x) == pytest.approx(value, abs=1e-12)
    assert abs(value) <= 1
    assert linear_cka(x, scale * x @ turn + shift) == pytest.approx(1, abs=1e-8)


def test_it_is_not_blind_to_other_linear_maps():
    x = drawn(3, 200, 4)
    assert linear_cka(x, x * [10, 1, 1, 1]) < 0.8


def test_independent_features_have_none_on_average():
    """The biased formula says 0.7 of 20 rows with 50 numbers each."""
    values = [linear_cka(drawn(seed, 20, 50), drawn(seed + 1000, 20, 50)) for seed in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    assert np.std(values) < 0.2


class TestMinibatches:
    def layers(self, rows: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        x = drawn(0, rows, 6)
        return [x, np.tanh(x @ drawn(1, 6, 9))], [x[:, :3], drawn(2, rows, 4), x + drawn(3, rows, 6)]

    def by_batches(self, rows: int, size: int) -> MinibatchCka:
        a, b = self.layers(rows)
        cka = MinibatchCka((2, 3))
        for start in range(0, rows, size):
            cka.add([layer[start : start + size] for layer in a], [layer[start : start + size] for layer in b])
        assert cka.row_count == rows
        return cka

    def test_one_batch_is_the_whole(self):
        a, b = self.layers(30)
        whole = [[linear_cka(x, y) for y in b] for x in a]
        matrix = self.by_batches(30, 30).matrix()
        assert matrix.dtype == np.float64
        np.testing.assert_allclose(matrix, whole, atol=1e-12)

    def test_small_batches_tell_the_same_of_many_rows(self):
        np.testing.assert_allclose(self.by_batches(1600, 16).matrix(), self.by_batches(1600, 800).matrix(), atol=0.04)

    def test_each_batch_counts_by_its_rows(self):
        a, b = self.layers(12)
        x, y = a[0], b[2]
        cka = MinibatchCka((1, 1))
        for rows in (slice(0, 8), slice(8, 12)):
            cka.add([x[rows]], [y[rows]])

        def mean(p: np.ndarray, q: np.ndarray) -> float:
            return (8 * hsic_by_quadruples(p[:8], q[:8]) + 4 * hsic_by_quadruples(p[8:], q[8:])) / 12

        assert cka.matrix()[0, 0] == pytest.approx(mean(x, y) / np.sqrt(mean(x, x) * mean(y, y)), abs=1e-12)

    def test_half_precision_is_widened(self):
        x = drawn(0, 40, 8).astype(np.float16) * np.float16(1000)
        assert linear_cka(x, x) == pytest.approx(1)


def test_features_that_do_not_vary_have_no_likeness():
    x = drawn(0, 10, 3)
    one_differs = np.full((10, 2), 0.1)
    one_differs[3] = 7.3
    for still in (np.full((10, 2), 0.1), one_differs):
        assert linear_cka(x, still) is None
    cka = MinibatchCka((2, 1))
    cka.add([x, np.full((10, 4), 1 / 3)], [x])
    np.testing.assert_allclose(cka.matrix(), [[1], [np.nan]])


def test_errors():
    x = drawn(0, 6, 3)
    with pytest.raises(DataError, match="no batch of features"):
        MinibatchCka((1, 1)).matrix()
    with pytest.raises(DataError, match="one or more of each model"):
        MinibatchCka((0, 1))
    with pytest.raises(DataError, match="the second model gave 2 layers in this batch, expected are 1"):
        MinibatchCka((1, 1)).add([x], [x, x])
    with pytest.raises(DataError, match="have 6 and 5 rows"):
        linear_cka(x, x[:5])
    with pytest.raises(DataError, match="have 3 rows, needed are 4"):
        linear_cka(x[:3], x[:3])
    with pytest.raises(DataError, match=r"the second model's features of layer 0 have the shape \[6\]"):
        linear_cka(x, x[:, 0])
    with pytest.raises(DataError, match="not finite in row 2"):
        linear_cka(x, np.where(np.arange(6)[:, None] == 2, np.inf, x))
