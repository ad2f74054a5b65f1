"""The gain of a fusion in ranking, by hand and by its properties."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monograph.errors import DataError
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.runtime.metrics import score
from monograph.runtime.metrics.ranking_gain import MetricGain, RankingGain, ranking_gain
from monograph.runtime.results import to_record

# Three users. The first likes one film of three, the second both of two, the third one of two.
GROUPS = np.array([7, 7, 7, 2, 2, 9, 9])
LIKED = np.array([1, 0, 0, 1, 1, 0, 1])
FUSED = np.array([3.0, 2.0, 1.0, 1.0, 2.0, 1.0, 2.0])  # all in order
FIRST = np.array([2.0, 3.0, 1.0, 1.0, 2.0, 1.0, 2.0])  # the first user's film comes second
SECOND = np.array([1.0, 2.0, 3.0, 1.0, 2.0, 2.0, 1.0])  # it comes last, and the third user's too
RNG = np.random.default_rng(0)
MANY_GROUPS = RNG.integers(0, 60, 1500)
MANY_LIKED = RNG.integers(0, 2, 1500)


def by_metric(told: RankingGain) -> dict[str, MetricGain]:
    return {metric.metric: metric for metric in told.metrics}


def noisy(noise: float, seed: int) -> np.ndarray:
    return MANY_LIKED + noise * np.random.default_rng(seed).standard_normal(len(MANY_LIKED))


class TestByHand:
    told = by_metric(ranking_gain(FUSED, {"first": FIRST, "second": SECOND}, LIKED, GROUPS))

    def test_auc(self):
        auc = self.told["auc"]
        assert auc.group_count == 2, "who likes all films has no area"
        assert auc.fused.estimate == 1
        assert auc.members["first"].estimate == pytest.approx((0.5 + 1) / 2)
        assert auc.members["second"].estimate == 0
        assert (auc.best_member, auc.gain.estimate) == ("first", pytest.approx(0.25))
        assert auc.gains["second"].estimate == pytest.approx(1)

    def test_ndcg(self):
        ndcg = self.told["ndcg@10"]
        assert ndcg.group_count == 3
        assert ndcg.fused.estimate == pytest.approx(1)
        assert ndcg.members["first"].estimate == pytest.approx((1 / np.log2(3) + 1 + 1) / 3)
        assert ndcg.members["second"].estimate == pytest.approx((1 / np.log2(4) + 1 + 1 / np.log2(3)) / 3)
        assert (ndcg.best_member, ndcg.gain.estimate) == ("first", pytest.approx((1 - 1 / np.log2(3)) / 3))

    def test_it_is_told_in_one_line_and_written_as_json(self):
        told = ranking_gain(FUSED, {"first": FIRST, "second": SECOND}, LIKED, GROUPS)
        assert told.describe().startswith("AUC 1.0000, +0.2500 [")
        assert "; NDCG@10 1.0000, +0.1230 [" in told.describe()
        record = json.loads(json.dumps(to_record(told)))
        assert record["row_count"] == 7
        assert record["metrics"][0]["gains"]["first"]["estimate"] == pytest.approx(0.25)


def test_values_are_those_of_the_scorecard():
    contract = Contract((TensorSpec("x", "int64", ("b",)),), (TensorSpec("scores", "float32", ("b", 1)),), Kind.SCORES)
    fused = noisy(1, 1).astype(np.float32)
    card = score(fused[:, None], MANY_LIKED, contract, groups=MANY_GROUPS)[0]
    told = by_metric(ranking_gain(fused[:, None], {"a": noisy(2, 2)}, MANY_LIKED, MANY_GROUPS))
    assert {name: metric.fused for name, metric in told.items()} == dict(card.scores)


def test_the_gain_is_over_the_best_member_in_whatever_order_they_are_given():
    told = by_metric(ranking_gain(noisy(0.5, 1), {"worse": noisy(3, 2), "better": noisy(1, 3)}, MANY_LIKED, MANY_GROUPS))
    for metric in told.values():
        assert metric.best_member == "better"
        assert metric.gains["worse"].estimate > metric.gain.estimate > 0
        assert metric.gain.low < metric.gain.estimate < metric.gain.high
        assert metric.gain.confidence == 0.95


def test_the_interval_covers_as_often_as_it_says():
    """Two scores of equal merit: the true gain is 0."""
    covered = {"auc": 0, "ndcg@10": 0}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        groups, liked = np.repeat(np.arange(40), 8), rng.integers(0, 2, 320)
        shared = liked + rng.standard_normal(320)
        one, other = (shared + 0.5 * rng.standard_normal(320) for _ in range(2))
        for metric in ranking_gain(one, {"other": other}, liked, groups, seed).metrics:
            covered[metric.metric] += metric.gain.low <= 0 <= metric.gain.high
    assert min(covered.values()) >= 34, "of 40 intervals at 95%"


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_a_fusion_that_is_its_best_member_gains_nothing(data: st.DataObject):
    count = data.draw(st.integers(4, 30))
    numbers = st.lists(st.integers(-5, 5), min_size=count, max_size=count)
    best, relevance, groups = (np.array(data.draw(numbers)) for _ in range(3))
    relevance = np.abs(relevance)
    relevance[:2], groups[:2] = (1, 0), groups[0]
    told = ranking_gain(best, {"same": best, "other": -best}, relevance, groups)
    for metric in told.metrics:
        same = metric.gains["same"]
        assert (same.low, same.estimate, same.high) == (0, 0, 0)
        assert metric.gain.estimate <= 0, "the best member is at least as good as the fusion"
        assert metric.gain.low <= metric.gain.estimate <= metric.gain.high


def test_ranks_are_all_that_counts():
    """Logits and their probabilities rank alike, and so do any names of the groups."""
    fused, member = noisy(1, 1), noisy(2, 2)
    names = np.array([f"user {number:02}" for number in MANY_GROUPS])
    told = ranking_gain(1 / (1 + np.exp(-fused)), {"a": np.exp(member)}, MANY_LIKED, names)
    assert told == ranking_gain(fused, {"a": member}, MANY_LIKED, MANY_GROUPS)


def test_a_metric_that_no_group_has_is_left_out():
    told = ranking_gain(FUSED[3:5], {"first": FIRST[3:5]}, LIKED[3:5], GROUPS[3:5])
    assert [metric.metric for metric in told.metrics] == ["ndcg@10"]


@pytest.mark.parametrize(
    ("members", "relevance", "groups", "message"),
    [
        ({}, LIKED, GROUPS, "there are none: give each member's scores by its name"),
        ({"first": FIRST[1:]}, LIKED, GROUPS, "rows differ: the fusion has 7, first has 6, relevance has 7, groups has 7"),
        ({"first": np.full(7, np.nan)}, LIKED, GROUPS, "first's score of row 0 is not finite"),
        ({"first": FIRST}, LIKED - 1, GROUPS, "row 1 has relevance -1, expected 0 or more"),
        ({"first": FIRST}, LIKED, np.arange(7), "none of 7 groups has two rows and a relevant one"),
    ],
)
def test_rows_that_cannot_be_ranked_are_refused(members, relevance, groups, message: str):
    with pytest.raises(DataError) as caught:
        ranking_gain(FUSED, members, relevance, groups)
    assert message in str(caught.value)
