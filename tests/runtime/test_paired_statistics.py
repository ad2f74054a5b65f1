"""Tests of paired rows against oracles: the likelihood itself, published examples, the binomial, scipy's own bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize_scalar

from monograph.runtime.metrics.paired import answers_of, count_flips, ece_change, mean_change
from monograph.runtime.statistics import (
    exact_interval,
    holm_adjusted,
    mcnemar_p,
    noninferiority_z,
    paired_bootstrap_interval,
    paired_loss_interval,
    quantile_bounds,
    units_to_decide,
)


@pytest.mark.parametrize(("lost", "gained", "n"), [(25, 15, 1000), (3, 0, 40), (0, 7, 90), (12, 12, 200), (0, 0, 50)])
def test_both_bounds_of_a_loss_are_where_the_score_of_the_likelihood_says(lost: int, gained: int, n: int):
    """The nuisance share is found by maximising the likelihood numerically, not by Tango's closed form."""

    def score(loss: float) -> float:
        least = max(0.0, -loss)

        def minus_log_likelihood(share: float) -> float:
            cells = (share + loss, share, 1 - 2 * share - loss)
            return -sum(k * np.log(max(p, 1e-300)) for k, p in zip((lost, gained, n - lost - gained), cells, strict=True) if k)

        share = minimize_scalar(
            minus_log_likelihood, bounds=(least, (1 - loss) / 2), options={"xatol": 1e-12}, method="bounded"
        ).x
        return (lost - gained - n * loss) / np.sqrt(n * (2 * share + loss - loss**2))

    found = paired_loss_interval(lost, gained, n)
    assert found.estimate == (lost - gained) / n
    assert score(found.high) == pytest.approx(-1.6448536, abs=2e-3)
    assert score(found.low) == pytest.approx(1.6448536, abs=2e-3)


def test_tangos_published_example():
    """Tango 1998, section 5: of 44 pairs 43 agree and one is lost; the 90% interval of the difference is -0.096 to 0.037."""
    found = paired_loss_interval(1, 0, 44)
    assert (round(-found.high, 3), round(-found.low, 3)) == (-0.096, 0.037)


def test_a_gain_is_a_loss_turned_round():
    loss, gain = paired_loss_interval(30, 10, 500), paired_loss_interval(10, 30, 500)
    assert (gain.estimate, gain.low, gain.high) == pytest.approx((-loss.estimate, -loss.high, -loss.low))


def test_the_proportion_is_bounded_by_the_binomial():
    found = exact_interval(3, 100)
    assert stats.binom.cdf(3, 100, found.high) == pytest.approx(0.05)
    assert stats.binom.sf(2, 100, found.low) == pytest.approx(0.05)
    assert (exact_interval(0, 100).low, exact_interval(100, 100).high) == (0.0, 1.0)


@pytest.mark.parametrize("n", [298, 299, 2000])
def test_a_quantile_is_bounded_by_order_statistics(n: int):
    values = np.arange(n, dtype=float)
    found = quantile_bounds(values, 0.99)
    assert np.isfinite(found.high) == (n >= 299)
    if n == 2000:
        # As many or more below the bound as 95% of samples have below the true quantile.
        assert stats.binom.cdf(found.high, n, 0.99) >= 0.95 > stats.binom.cdf(found.high - 1, n, 0.99)


def test_mcnemar_is_the_sign_test():
    assert mcnemar_p(25, 15) == pytest.approx(0.154, abs=5e-4)
    assert mcnemar_p(0, 0) == 1.0


def test_holm_by_hand():
    np.testing.assert_allclose(holm_adjusted([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])


def test_as_many_units_as_the_square_root_law_says():
    z = float(noninferiority_z(30, 30, 1000, 0.01))
    needed = units_to_decide(z, 1000)
    assert needed == pytest.approx(6.18 * 0.06 / 0.01**2, rel=0.05)
    assert units_to_decide(0.0, 1000) is None
    assert units_to_decide(-5.0, 1000) == 1001


def test_rows_are_drawn_as_scipy_draws_pairs():
    rng = np.random.default_rng(0)
    own, other = rng.exponential(1, 80), rng.exponential(0.8, 80)
    ours = mean_change(own, other)
    theirs = stats.bootstrap(
        (own, other), lambda a, b, axis=-1: a.mean(axis) - b.mean(axis), paired=True, method="BCa",
        confidence_level=0.9, n_resamples=2000, rng=0,
    ).confidence_interval  # fmt: skip
    assert ours.estimate == pytest.approx(own.mean() - other.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_many_rows_are_drawn_in_clusters_and_groups_whole():
    rng = np.random.default_rng(1)
    values = rng.normal(0, 1, 6000)
    found = mean_change(values, np.zeros(6000))
    assert found.high - found.low == pytest.approx(2 * 1.645 / np.sqrt(6000), rel=0.1)
    repeated = mean_change(np.repeat(values[:300], 10), np.zeros(3000), np.arange(3000) // 10)
    once = mean_change(values[:300], np.zeros(300))
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high), abs=0.01)


def test_what_does_not_vary_has_no_width():
    same = paired_bootstrap_interval(np.ones((50, 2)), lambda sums: sums[..., 1] / sums[..., 0])
    assert (same.low, same.estimate, same.high) == (1.0, 1.0, 1.0)


def test_answers_are_numbered_as_the_reference_numbers_them():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]])
    own = answers_of(probabilities, np.array([0, 1, 1]), numbering=np.array([2, 0, 1]))
    np.testing.assert_array_equal(own.predicted, [2, 0, 1])
    np.testing.assert_array_equal(own.is_right, [True, True, False])
    np.testing.assert_allclose(own.nll, -np.log([0.7, 0.6, 0.2]))
    np.testing.assert_allclose(own.confidence, [0.7, 0.6, 0.6])
    other = answers_of(probabilities[[0, 0, 0]], np.array([0, 0, 0]))
    flips = count_flips(own, other)
    assert (flips.row_count, flips.changed, flips.lost, flips.gained) == (3, 2, 1, 0)


def test_calibration_of_the_same_answers_does_not_change():
    rng = np.random.default_rng(2)
    raw = rng.random((500, 4))
    own = answers_of(raw / raw.sum(axis=1, keepdims=True), rng.integers(0, 4, 500))
    found = ece_change(own, own)
    assert (found.low, found.estimate, found.high) == (0.0, 0.0, 0.0)
