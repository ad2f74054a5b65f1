"""How differently two classifiers err: by hand, against scikit-learn and statsmodels, and by properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, zero_one_loss
from statsmodels.stats.contingency_tables import Table2x2

from monograph.errors import DataError
from monograph.runtime.metrics.diversity import (
    PairCounts,
    churn,
    disagreement,
    double_fault,
    error_consistency,
    oracle_accuracy,
    pair_counts,
    with_interval,
    yules_q,
)
from monograph.runtime.statistics import proportion_interval

STATISTICS = (disagreement, double_fault, oracle_accuracy, yules_q, error_consistency)
COUNTS = st.builds(PairCounts, *[st.integers(0, 60)] * 3, st.integers(1, 60))
LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1])
FIRST = np.array([0, 1, 2, 0, 1, 0, 1, 2])  # the first five are right
SECOND = np.array([0, 1, 2, 1, 2, 2, 1, 0])  # the first three and the sixth are right


def rows_of(counts: PairCounts) -> tuple[np.ndarray, np.ndarray]:
    cells = [counts.both_right, counts.only_first, counts.only_second, counts.both_wrong]
    return np.repeat([True, True, False, False], cells), np.repeat([True, False, True, False], cells)


def swapped(counts: PairCounts) -> PairCounts:
    return PairCounts(counts.both_right, counts.only_second, counts.only_first, counts.both_wrong)


def test_by_hand():
    counts = pair_counts(FIRST == LABELS, SECOND == LABELS)
    assert counts == PairCounts(both_right=3, only_first=2, only_second=1, both_wrong=2)
    assert counts.row_count == 8
    assert disagreement(counts) == 3 / 8
    assert double_fault(counts) == 2 / 8
    assert oracle_accuracy(counts) == 6 / 8
    assert yules_q(counts) == pytest.approx((3 * 2 - 2 * 1) / (3 * 2 + 2 * 1))
    expected = 5 / 8 * 4 / 8 + 3 / 8 * 4 / 8
    assert error_consistency(counts) == pytest.approx((5 / 8 - expected) / (1 - expected))
    assert churn(FIRST, SECOND) == 4 / 8, "on the seventh row both are wrong alike, on the eighth otherwise"


@given(COUNTS)
@settings(max_examples=40, deadline=None)
def test_they_are_what_libraries_say(counts: PairCounts):
    first, second = rows_of(counts)
    assert pair_counts(first, second) == counts
    assert disagreement(counts) == pytest.approx(zero_one_loss(first, second))
    if (kappa := error_consistency(counts)) is not None:
        assert kappa == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)
    cells = np.array([[counts.both_right, counts.only_first], [counts.only_second, counts.both_wrong]])
    if (cells > 0).all():
        odds = Table2x2(cells).oddsratio
        assert yules_q(counts) == pytest.approx((odds - 1) / (odds + 1))


@given(COUNTS)
@settings(deadline=None)
def test_properties(counts: PairCounts):
    assert disagreement(counts) + double_fault(counts) <= 1
    assert oracle_accuracy(counts) == pytest.approx(1 - double_fault(counts))
    for statistic in STATISTICS:
        value = statistic(counts)
        assert value == statistic(swapped(counts)), "which model comes first does not matter"
        assert value is None or -1 <= value <= 1


def test_a_model_beside_itself():
    right = np.arange(50) % 5 > 0
    counts = pair_counts(right, right)
    assert (disagreement(counts), yules_q(counts), error_consistency(counts)) == (0, 1, 1)


def test_models_that_err_independently():
    counts = PairCounts(both_right=56, only_first=14, only_second=24, both_wrong=6)  # 70% and 80% of 100 rows
    assert (yules_q(counts), error_consistency(counts)) == (0, 0)


@pytest.mark.parametrize("counts", [PairCounts(40, 0, 0, 0), PairCounts(0, 0, 0, 40)])
def test_where_all_are_right_or_all_are_wrong_there_is_no_consistency(counts: PairCounts):
    assert yules_q(counts) is None
    assert error_consistency(counts) is None
    assert with_interval(counts, error_consistency).estimate is None
    assert "undefined" in with_interval(counts, yules_q).note


class TestIntervals:
    def test_too_few_rows_are_no_evidence(self):
        score = with_interval(PairCounts(20, 4, 3, 2), disagreement)
        assert (score.estimate, score.low, score.high) == (None, None, None)
        assert score.note == "not enough evidence: 29 rows, needed are 30 or more"
        assert with_interval(PairCounts(20, 4, 3, 3), disagreement).estimate == 7 / 30

    def test_a_share_has_wilsons(self):
        score, wilson = with_interval(PairCounts(80, 9, 11, 0), double_fault), proportion_interval(0, 100)
        assert (score.estimate, score.low, score.high) == (0, wilson.low, wilson.high)
        assert score.high > 0.03, "no double fault among 100 rows does not mean that there is none"

    @pytest.mark.parametrize("statistic", [yules_q, error_consistency])
    @pytest.mark.parametrize("cells", [(60, 10, 12, 18), (40, 5, 2, 0), (50, 0, 0, 3), (30, 1, 0, 4)])
    def test_a_drawn_one_holds_the_estimate_and_repeats(self, statistic, cells: tuple[int, int, int, int]):
        counts = PairCounts(*cells)
        score = with_interval(counts, statistic, seed=3)
        assert score == with_interval(counts, statistic, seed=3)
        assert -1 <= score.low <= score.estimate <= score.high <= 1
        assert score.low < score.high

    def test_more_rows_narrow_it(self):
        few, many = (with_interval(PairCounts(30 * k, 6 * k, 4 * k, 10 * k), error_consistency) for k in (1, 16))
        assert few.estimate == pytest.approx(many.estimate)
        assert (few.high - few.low) / (many.high - many.low) == pytest.approx(4, rel=0.25)

    @pytest.mark.parametrize("shares", [(0.6, 0.1, 0.1, 0.2), (0.85, 0.05, 0.06, 0.04)])
    def test_it_holds_the_truth_about_as_often_as_it_says(self, shares: tuple[float, ...]):
        rng = np.random.default_rng(0)
        truth = error_consistency(PairCounts(*(round(share * 100) for share in shares)))
        scores = [with_interval(PairCounts(*rng.multinomial(120, shares).tolist()), error_consistency) for _ in range(60)]
        assert sum(score.low <= truth <= score.high for score in scores) >= 53  # of 57 expected


def test_errors():
    right = np.array([True, False])
    with pytest.raises(DataError, match=r"bool \[n\]"):
        pair_counts(right, np.array([1, 0]))
    with pytest.raises(DataError, match="have 2 and 1 rows"):
        pair_counts(right, right[:1])
    with pytest.raises(DataError, match="of no rows"):
        pair_counts(right[:0], right[:0])
    with pytest.raises(DataError, match="of no rows"):
        PairCounts(3, -1, 0, 0)
    with pytest.raises(DataError, match=r"expected \[n\]"):
        churn(np.zeros((2, 3)), np.zeros(2))
    with pytest.raises(DataError, match="have 3 and 2 rows"):
        churn(np.zeros(3), np.zeros(2))
