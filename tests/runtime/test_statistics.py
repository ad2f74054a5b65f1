import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from scipy.stats import t as student_t

from monograph.runtime.statistics import (
    bootstrap_interval,
    noninferiority_z,
    paired_loss_bound,
    proportion_interval,
    quantile_interval,
    resampled_mean_interval,
    rows_for_loss_bound,
    smallest_loss_bound,
)

# The 97.5% point of the standard normal distribution, from a table.
Z = 1.959963984540054
Z_ONE_SIDED = 1.6448536269514722


def binomial_at_most(k: int, n: int, p: float) -> float:
    return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))


@settings(deadline=None)
@given(n=st.integers(1, 5000), data=st.data())
def test_a_proportions_interval_is_wilsons(n: int, data: st.DataObject):
    successes = data.draw(st.integers(0, n))
    p = successes / n
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    interval = proportion_interval(successes, n)
    assert interval.estimate == p
    assert interval.low == pytest.approx(max(centre - half, 0), abs=1e-12)
    assert interval.high == pytest.approx(min(centre + half, 1), abs=1e-12)
    assert interval.confidence == 0.95


def test_a_proportions_interval_at_the_ends():
    """Ten of ten: n / (n + z²) to 1."""
    assert proportion_interval(10, 10).low == pytest.approx(10 / (10 + Z**2))
    assert proportion_interval(10, 10).high == 1
    assert proportion_interval(0, 10).high == pytest.approx(Z**2 / (10 + Z**2))
    assert proportion_interval(0, 10).low == 0


def test_more_confidence_is_a_wider_interval():
    narrow, wide = proportion_interval(70, 100, 0.9), proportion_interval(70, 100, 0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert (narrow.confidence, wide.confidence) == (0.9, 0.99)


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("n", [40, 97, 200, 368, 400])
def test_a_quantiles_interval_is_the_narrowest_pair_of_order_statistics(quantile: float, n: int):
    """Conover 1999, section 3.2, by sums of binomial terms: values are their own ranks."""
    interval = quantile_interval(np.random.default_rng(0).permutation(np.arange(1, n + 1)), quantile)
    if interval is None:
        assert quantile == 0.99
        assert n < 368
        return
    low, high = round(interval.low), round(interval.high)
    assert (low, high) == (interval.low, interval.high), "order statistics, not values between them"
    assert binomial_at_most(low - 1, n, quantile) <= 0.025 < binomial_at_most(low, n, quantile)
    assert binomial_at_most(high - 1, n, quantile) >= 0.975 > binomial_at_most(high - 2, n, quantile)
    assert interval.estimate == pytest.approx(1 + quantile * (n - 1))


@pytest.mark.parametrize(("quantile", "fewest"), [(0.5, 6), (0.9, 36), (0.99, 368)])
def test_the_fewest_samples_for_a_finite_interval(quantile: float, fewest: int):
    """The largest of n lies below the quantile with probability qⁿ, which must be at most 2.5%."""
    assert quantile**fewest <= 0.025 < quantile ** (fewest - 1)
    samples = np.random.default_rng(0).exponential(size=fewest)
    assert quantile_interval(samples[:-1], quantile) is None
    interval = quantile_interval(samples, quantile)
    assert interval is not None
    assert math.isfinite(interval.low)
    assert interval.high == samples.max()


@pytest.mark.parametrize("quantile", [0.5, 0.9])
def test_a_quantiles_interval_holds_the_true_quantile_as_often_as_it_says(quantile: float):
    rng = np.random.default_rng(2024)
    truth = -math.log(1 - quantile)  # of the exponential distribution, skewed as latencies are
    intervals = [quantile_interval(rng.exponential(size=200), quantile) for _ in range(1000)]
    covered = sum(interval.low <= truth <= interval.high for interval in intervals)
    assert 930 <= covered <= 990


@settings(deadline=None, max_examples=50)
@given(
    samples=st.lists(st.floats(0, 1e9), min_size=40, max_size=60),
    quantile=st.sampled_from([0.5, 0.9]),
    scale=st.sampled_from([0.5, 4.0, 1024.0]),
)
def test_a_quantiles_interval_holds_its_estimate_and_scales_with_the_unit(samples: list[float], quantile: float, scale: float):
    interval = quantile_interval(samples, quantile)
    assert interval.low <= interval.estimate <= interval.high
    scaled = quantile_interval([scale * value for value in samples], quantile)
    assert (scaled.low, scaled.high) == (scale * interval.low, scale * interval.high)


def test_a_bootstrap_interval_is_that_of_a_plain_bootstrap_a_little_wider():
    values = np.random.default_rng(3).lognormal(size=30)
    interval = bootstrap_interval(values, np.mean)
    rng = np.random.default_rng(99)
    means = np.array([rng.choice(values, size=30).mean() for _ in range(20_000)])
    spread = means.std()
    assert interval.estimate == pytest.approx(values.mean())
    expanded = norm.cdf(np.sqrt(30 / 29) * student_t.ppf(0.025, 29))
    assert 0.01 < expanded < 0.025
    assert interval.low == pytest.approx(np.quantile(means, expanded), abs=0.15 * spread)
    assert interval.high == pytest.approx(np.quantile(means, 1 - expanded), abs=0.15 * spread)


@pytest.mark.parametrize("count", [5, 6, 7, 10])
def test_the_interval_of_a_median_of_few_blocks_holds_the_truth(count: int):
    """The bare percentile bootstrap misses it in 12% of cases at 7 blocks."""
    rng = np.random.default_rng(count)
    intervals = [bootstrap_interval(rng.standard_normal(count), np.median, resamples=500) for _ in range(300)]
    missed = np.mean([not interval.low <= 0 <= interval.high for interval in intervals])
    assert missed <= 0.0625 + 2 * np.sqrt(0.0625 * 0.9375 / 300), "5 blocks cannot do better than 2/32"


def test_two_blocks_give_their_range():
    interval = bootstrap_interval(np.array([1.0, 3.0]), np.median)
    assert (interval.estimate, interval.low, interval.high) == (2, 1, 3)


def test_a_bootstrap_interval_covers_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    intervals = [bootstrap_interval(rng.standard_normal(50), np.mean, seed=seed, resamples=500) for seed in range(200)]
    covered = sum(interval.low <= 0 <= interval.high for interval in intervals)
    assert 176 <= covered <= 200, "percentile intervals of 50 values cover a little less than 95%"


def test_a_bootstrap_of_the_median_stays_within_the_values():
    values = np.array([1.0, 2.0, 3.0, 4.0, 50.0])
    interval = bootstrap_interval(values, np.median)
    assert interval.estimate == 3
    assert interval.low in values
    assert interval.high in values
    assert interval.low < 3 < interval.high


def test_a_bootstrap_is_repeatable_by_its_seed():
    values = np.random.default_rng(0).standard_normal(20)
    assert bootstrap_interval(values, np.mean, seed=1) == bootstrap_interval(values, np.mean, seed=1)
    assert bootstrap_interval(values, np.mean, seed=1) != bootstrap_interval(values, np.mean, seed=2)


@pytest.mark.parametrize("values", [[2.5], [2.5] * 10])
def test_a_bootstrap_of_equal_values_is_one_point(values: list[float]):
    interval = bootstrap_interval(np.array(values), np.median)
    assert (interval.estimate, interval.low, interval.high) == (2.5, 2.5, 2.5)


def score_by_hand(lost: int, gained: int, n: int, margin: float) -> float:
    """Tango's statistic with its constrained maximum of the likelihood found by a search instead of the formula."""

    def minus_log_likelihood(q: float) -> float:
        cells = (lost, q + margin), (gained, q), (n - lost - gained, 1 - 2 * q - margin)
        return -sum(count * math.log(share) for count, share in cells if count)

    highest = (1 - margin) / 2
    q = minimize_scalar(minus_log_likelihood, bounds=(1e-12, highest - 1e-12), method="bounded", options={"xatol": 1e-12}).x
    return (lost - gained - n * margin) / math.sqrt(n * (2 * q + margin * (1 - margin)))


@settings(deadline=None, max_examples=50)
@given(n=st.integers(20, 3000), margin=st.floats(0.001, 0.3), data=st.data())
def test_tangos_statistic_is_the_score_at_the_constrained_maximum(n: int, margin: float, data: st.DataObject):
    lost = data.draw(st.integers(0, n // 3))
    gained = data.draw(st.integers(1, n // 3))
    assert float(noninferiority_z(lost, gained, n, margin)) == pytest.approx(score_by_hand(lost, gained, n, margin), abs=1e-3)


def test_tangos_statistic_of_many_counts_at_once():
    z = noninferiority_z(np.array([25, 0, 40]), np.array([15, 0, 15]), 1000, 0.02)
    assert z.tolist() == [float(noninferiority_z(b, c, 1000, 0.02)) for b, c in ((25, 15), (0, 0), (40, 15))]
    assert noninferiority_z(0, 0, 100, 0.0).tolist() == 0


def test_a_loss_bound_of_a_known_case():
    """McNemar's p is 0.154, and still up to 2.1 points may be lost."""
    assert 100 * paired_loss_bound(25, 15, 1000) == pytest.approx(2.1, abs=0.05)


@settings(deadline=None, max_examples=60)
@given(n=st.integers(10, 5000), confidence=st.sampled_from([0.8, 0.95, 0.99]), data=st.data())
def test_a_loss_bound_is_where_the_test_just_passes(n: int, confidence: float, data: st.DataObject):
    lost = data.draw(st.integers(0, n // 2))
    gained = data.draw(st.integers(0, n // 2))
    bound = paired_loss_bound(lost, gained, n, confidence)
    assert (lost - gained) / n < bound <= 1
    critical = {0.8: 0.8416212335729143, 0.95: Z_ONE_SIDED, 0.99: 2.3263478740408408}[confidence]
    if bound < 1:
        assert float(noninferiority_z(lost, gained, n, bound)) == pytest.approx(-critical, abs=1e-4)
    if lost < n // 2:
        assert paired_loss_bound(lost + 1, gained, n, confidence) >= bound


@pytest.mark.parametrize(("share_lost", "share_gained"), [(0.03, 0.02), (0.01, 0.01), (0.1, 0.05), (0.004, 0.0)])
def test_a_loss_bound_covers_as_often_as_it_says(share_lost: float, share_gained: float):
    rng = np.random.default_rng(11)
    draws = rng.multinomial(800, [share_lost, share_gained, 1 - share_lost - share_gained], size=1500)
    bounds = {(b, c): paired_loss_bound(b, c, 800) for b, c in {(int(b), int(c)) for b, c, _ in draws}}
    covered = np.mean([bounds[int(b), int(c)] >= share_lost - share_gained for b, c, _ in draws])
    assert covered >= 0.93


def test_the_least_loss_that_rows_can_rule_out():
    for n in (100, 539, 1000, 10_000):
        assert smallest_loss_bound(n) == pytest.approx(Z_ONE_SIDED**2 / (n + Z_ONE_SIDED**2), rel=1e-6)
    assert rows_for_loss_bound(0.005) == 539
    assert smallest_loss_bound(539) <= 0.005 < smallest_loss_bound(538)
    assert rows_for_loss_bound(0.0) is None


def test_a_mean_over_splits_of_one_data_set_is_less_sure_than_over_independent_ones():
    drops = [0.1, 0.4, 0.2, 0.5, 0.3]
    interval = resampled_mean_interval(drops, 1 / 3)
    half = student_t.ppf(0.975, 4) * np.std(drops, ddof=1) * math.sqrt(1 / 5 + 1 / 3)
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((0.3, 0.3 - half, 0.3 + half))
    alone = resampled_mean_interval(drops, 0.0)
    assert interval.low < alone.low < alone.high < interval.high
