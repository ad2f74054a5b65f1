"""Each check on counts and times that were worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from monograph.errors import DataError
from monograph.models.data.rows import Codes
from monograph.pipelines.gate.check import Outcome, compare, conclude, judge, outcome_of
from monograph.pipelines.gate.cost import quantile_check, ratio_check
from monograph.pipelines.gate.policy import AccuracyLimits, CalibrationLimits, ErrorLimits, FlipLimits, ParityLimits, PartLimits
from monograph.pipelines.gate.quality import (
    Pair,
    accuracy_check,
    calibration_checks,
    error_check,
    flip_checks,
    loss_family,
    parity_check,
    part_checks,
)
from monograph.runtime.compare import Comparison
from monograph.runtime.metrics.paired import Answers
from monograph.runtime.results import Interval
from monograph.runtime.statistics import noninferiority_z

Z = float(norm.ppf(0.95))


@pytest.fixture
def pair(answers_of_counts):
    def build(lost: int, gained: int, row_count: int, groups: np.ndarray | None = None) -> Pair:
        return Pair(*answers_of_counts(lost, gained, row_count), "cpu", groups)

    return build


def test_any_fail_fails_and_anything_open_blocks():
    passed, failed, undecided = Outcome
    assert conclude([passed, passed]) is passed
    assert conclude([passed, undecided]) is undecided
    assert conclude([undecided, failed, passed]) is failed
    assert [outcome.exit_code for outcome in (passed, failed, undecided)] == [0, 1, 3]


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(-1, 0.9, "pass"), (-1, 1.0, "pass"), (0.5, 1.1, "inconclusive"), (1.1, 2, "fail")]
)
def test_both_bounds_decide(low: float, high: float, expected: str):
    assert outcome_of(Interval((low + high) / 2, low, high), 1.0) == expected


def test_how_many_more_are_needed_follows_from_the_square_root_law():
    check = judge("x", Interval(0.0, -2.0, 2.0), 1.0, "ms", 100, "runs", "", target=None)
    assert check.outcome is Outcome.INCONCLUSIVE
    needed = ((Z + norm.ppf(0.8)) / (Z / 2)) ** 2 * 100
    assert check.needed == int(np.ceil(needed))
    assert f"{check.needed - 100:,} more runs" in check.describe()
    at_the_limit = judge("x", Interval(1.0, -2.0, 4.0), 1.0, "ms", 100, "runs", "", target=None)
    assert at_the_limit.needed is None
    assert "no number decides" in at_the_limit.describe()


def test_what_no_chance_is_in_is_compared():
    assert compare("size", 1.0, 1.0, "×", target=None).outcome is Outcome.PASS
    assert compare("size", 1.01, 1.0, "×", target=None).outcome is Outcome.FAIL
    assert compare("share", 0.9, 0.95, "", target=None, is_least=True).outcome is Outcome.FAIL
    infinite = compare("parity", float("inf"), 1.0, "", target=None)
    assert (infinite.outcome, infinite.estimate) == (Outcome.FAIL, None)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(50, 3000), data=st.data())
def test_accuracy_passes_and_fails_where_tangos_score_says(pair, n: int, data: st.DataObject):
    lost = data.draw(st.integers(0, n // 4))
    gained = data.draw(st.integers(0, n // 4))
    z = float(noninferiority_z(lost, gained, n, 0.02))
    check = accuracy_check(pair(lost, gained, n), AccuracyLimits(max_loss_points=2))
    expected = Outcome.PASS if z <= -Z else Outcome.FAIL if z >= Z else Outcome.INCONCLUSIVE
    assert check.outcome is expected or abs(abs(z) - Z) < 1e-6
    assert check.estimate == pytest.approx(100 * (lost - gained) / n)
    assert check.count == n


def test_the_rows_that_are_told_to_decide_do_decide(pair):
    undecided = accuracy_check(pair(20, 20, 1000), AccuracyLimits(max_loss_points=1))
    assert undecided.outcome is Outcome.INCONCLUSIVE
    factor = undecided.needed / 1000
    more = accuracy_check(pair(round(20 * factor), round(20 * factor), undecided.needed), AccuracyLimits(max_loss_points=1))
    assert more.outcome is Outcome.PASS
    # Rows needed are about 6.18 times the churn over the squared margin.
    assert undecided.needed == pytest.approx(6.18 * 0.04 / 0.01**2, rel=0.15)


def test_flips_are_bounded_exactly(pair):
    negative, churn = flip_checks(pair(12, 3, 500), FlipLimits(max_negative_points=5, max_churn_points=5))
    assert (negative.estimate, churn.estimate) == (pytest.approx(2.4), pytest.approx(3.0))
    # At the exact upper bound 12 changed rows or fewer come up in one of twenty samples.
    assert binom.cdf(12, 500, negative.high / 100) == pytest.approx(0.05)
    assert binom.sf(14, 500, churn.low / 100) == pytest.approx(0.05)
    assert (negative.outcome, churn.outcome) == (Outcome.PASS, Outcome.PASS)
    (none,) = flip_checks(pair(0, 0, 500), FlipLimits(max_negative_points=1))
    assert (none.low, none.outcome) == (0.0, Outcome.PASS)
    assert none.high == pytest.approx(100 * (1 - 0.05 ** (1 / 500)))


def test_the_worst_class_is_named_and_small_ones_are_told(pair):
    # The first 100 rows are class a, where 30 are lost; b keeps all; c is too small to test.
    codes = Codes(np.repeat([0, 1, 2], [100, 380, 20]).astype(np.int32), ("a", "b", "c"))
    (check,) = part_checks(pair(30, 0, 500), PartLimits(max_loss_points=10), {"class": codes})
    assert (check.outcome, check.count) == (Outcome.FAIL, 100)
    assert check.estimate == pytest.approx(30)
    assert "class a is the worst of 2: 30 lost, 0 gained; 1 with fewer than 30 rows not tested" in check.note
    with pytest.raises(DataError, match="no class has 600 rows"):
        list(part_checks(pair(30, 0, 500), PartLimits(fewest_rows=600), {"class": codes}))


def test_a_part_alone_would_fail_and_among_many_does_not(pair):
    worse, fine = pair(9, 0, 60), pair(0, 0, 60)
    alone = loss_family("parts", {"a": worse}, 5)
    among = loss_family("parts", {"a": worse, **{str(number): fine for number in range(30)}}, 5)
    assert alone["a"].outcome is Outcome.FAIL
    assert among["a"].outcome is Outcome.INCONCLUSIVE
    assert "Holm" in among["a"].method
    assert "Holm" not in alone["a"].method


def test_calibration_of_equals_passes_and_of_a_boaster_fails():
    rng = np.random.default_rng(0)
    right = rng.random(4000) < 0.8
    honest, boaster = (
        Answers(right.astype(int), right, -np.log(np.where(right, share, 1 - share)), np.full(4000, share))
        for share in (0.8, 0.99)
    )
    limits = CalibrationLimits(max_ece_increase=0.03, max_nll_increase_nats=0.05)
    assert {check.outcome for check in calibration_checks(Pair(honest, honest, "cpu"), limits)} == {Outcome.PASS}
    ece, nll = calibration_checks(Pair(boaster, honest, "cpu"), limits)
    assert ece.estimate == pytest.approx(0.19, abs=0.02)
    assert (ece.outcome, nll.outcome) == (Outcome.FAIL, Outcome.FAIL)


def test_rows_of_a_group_count_together(pair):
    """Ten rows of each of 100 people, who are all right or all wrong: 100 witnesses, not 1,000."""
    groups = np.arange(1000) // 10
    apart = accuracy_check(pair(50, 30, 1000), AccuracyLimits(max_loss_points=5))
    together = accuracy_check(pair(50, 30, 1000, groups), AccuracyLimits(max_loss_points=5))
    assert apart.outcome is Outcome.PASS
    assert (together.count, together.counted, together.outcome) == (100, "groups", Outcome.INCONCLUSIVE)
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_errors_of_a_regression_are_compared_in_per_cent():
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(600, 1))
    noise = rng.normal(size=(600, 1))
    reference = labels + noise
    for factor, outcome in ((1.001, Outcome.PASS), (1.1, Outcome.FAIL)):
        check = error_check(labels + factor * noise, reference, labels, ErrorLimits(), "cpu", None, 0)
        assert check.estimate == pytest.approx(100 * (factor - 1))
        assert check.outcome is outcome


def test_parity_names_the_worst_row():
    expected = np.ones((5, 3))
    got = expected.copy()
    got[3, 1] += 0.01
    check = parity_check(got, expected, ParityLimits(max_relative_error=1e-3), "cpu")
    assert (check.outcome, check.note) == (Outcome.FAIL, "row 3 is the worst of 5")
    assert parity_check(expected, expected, ParityLimits(), "cpu").outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("quantile", "count", "limit", "expected"),
    [
        (0.99, 298, 10, "inconclusive"),
        (0.99, 299, 10, "pass"),
        (0.5, 4, 10, "inconclusive"),
        (0.5, 5, 10, "pass"),
        (0.5, 5, 0.5, "fail"),
    ],
)
def test_a_quantile_needs_as_many_runs_as_the_binomial_says(quantile: float, count: int, limit: float, expected: str):
    check = quantile_check("p", np.linspace(1, 2, count), quantile, limit, "ms", "runs", "cpu")
    assert check.outcome == expected
    if expected == "inconclusive":
        assert check.high is None
        assert check.more > 0


@pytest.mark.parametrize(("factor", "expected"), [(0.8, "pass"), (1.3, "fail"), (1.0, "inconclusive")])
def test_a_ratio_is_judged_over_blocks(factor: float, expected: str):
    blocks = np.array([1.0, 1.02, 0.98, 1.01, 0.99, 1.03, 0.97])
    found = Comparison({"candidate": tuple(factor * blocks), "reference": tuple(np.ones(7))})
    check = ratio_check(found, "candidate", "reference", 1.0, "cpu")
    assert (check.outcome, check.count, check.counted) == (expected, 7, "blocks")


def test_no_test_asks_mcnemar():
    """A large p is no evidence of equality: no file of checks knows it."""
    import monograph.pipelines.gate.quality as quality

    assert "mcnemar" not in Path(quality.__file__).read_text(encoding="utf-8").lower()
