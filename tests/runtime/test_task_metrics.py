"""Every metric against scikit-learn, scipy or a case by hand; rows that have no figure are marked, wrong ones refused."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn import metrics as sk

from monograph.errors import DataError
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.data.rows import Codes
from monograph.runtime.metrics import score
from monograph.runtime.metrics.ranks import auc, average_precision, spearman
from monograph.runtime.results import Scorecard


def contract(kind: Kind, names: tuple[str, ...] | None = None) -> Contract:
    return Contract((TensorSpec("x", "float32", ("batch", 4)),), (TensorSpec("y", "float32", ("batch", "c")),), kind, names)


def card(kind: Kind, outputs, labels, **more) -> Scorecard:
    return score(np.asarray(outputs, np.float32), np.asarray(labels), contract(kind), **more)[0]


def codes(values) -> Codes:
    unique, numbers = np.unique(values, return_inverse=True)
    return Codes(numbers.astype(np.int32), tuple(map(str, unique)))


def bracketed(one) -> bool:
    return one.low <= one.estimate <= one.high and one.low < one.high


def test_classification_is_scikit_learns_for_each_class():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(7), 600).astype(np.float32)
    labels = np.array([rng.choice(7, p=row / row.sum()) for row in probabilities.astype(float)])
    got, accuracy = score(probabilities, labels, contract(Kind.PROBABILITIES))
    predicted, doubles = probabilities.argmax(1), probabilities.astype(float)
    assert got.task == "classification"
    assert got.scores["top1"].estimate == accuracy.top1.estimate == sk.accuracy_score(labels, predicted)
    assert got.scores["top5"].estimate == sk.top_k_accuracy_score(labels, probabilities, k=5)
    assert got.scores["macro_f1"].estimate == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert got.scores["nll"].estimate == pytest.approx(sk.log_loss(labels, doubles / doubles.sum(1, keepdims=True)), rel=1e-5)
    assert all(bracketed(got.scores[name]) for name in ("top1", "top5", "macro_f1", "nll"))
    precision, recall, f1, support = sk.precision_recall_fscore_support(labels, predicted)
    for number, one in enumerate(got.classes):
        assert one.row_count == support[number]
        assert one.scores["precision"].estimate == pytest.approx(precision[number])
        assert one.scores["recall"].estimate == pytest.approx(recall[number])
        assert one.scores["f1"].estimate == pytest.approx(f1[number])
        assert bracketed(one.scores["recall"])
    matrix = np.zeros((7, 7), int)
    for cell in got.confusion:
        matrix[cell.label, cell.predicted] = cell.row_count
    np.testing.assert_array_equal(matrix, sk.confusion_matrix(labels, predicted))


def test_a_class_without_rows_is_marked():
    got = card(Kind.PROBABILITIES, [[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.3, 0.7, 0.0]], [0, 1, 1])
    empty = got.classes[2]
    assert (empty.row_count, empty.scores["recall"].estimate) == (0, None)
    assert empty.scores["recall"].note == "no row has this class"
    assert empty.scores["precision"].note == "no row was given this class"


def test_rows_of_one_class_have_no_macro_f1():
    one = card(Kind.PROBABILITIES, np.tile([0.6, 0.4], (40, 1)), np.zeros(40, int)).scores
    assert (one["macro_f1"].estimate, one["macro_f1"].note) == (None, "rows of one class only")
    assert one["top1"].estimate == 1


def test_the_interval_of_macro_f1_covers_as_often_as_it_says():
    rng, covered = np.random.default_rng(1), 0
    confusion = np.array([[0.30, 0.10, 0.05], [0.05, 0.20, 0.05], [0.02, 0.03, 0.20]])
    truth = np.mean([2 * confusion[k, k] / (confusion[k].sum() + confusion[:, k].sum()) for k in range(3)])
    for _ in range(100):
        cells = rng.choice(9, 300, p=confusion.ravel())
        one = card(Kind.PROBABILITIES, np.eye(3)[cells % 3] * 0.8 + 0.1, cells // 3).scores["macro_f1"]
        covered += one.low <= truth <= one.high
    assert covered >= 88, "of 100 intervals at 95%"


@pytest.mark.parametrize("ties", [False, True])
def test_multi_label_is_scikit_learns(ties: bool):
    rng = np.random.default_rng(2)
    labels = (rng.random((400, 5)) < [0.5, 0.3, 0.1, 0.02, 0.6]).astype(int)
    outputs = np.clip(0.3 * labels + rng.random((400, 5)) * 0.7, 0, 1)
    outputs = np.round(outputs, 1) if ties else outputs
    outputs = outputs.astype(np.float32)
    got = card(Kind.SCORES, outputs, labels, class_names=("a", "b", "c", "d", "e"))
    assert got.task == "multi-label"
    given = outputs > 0.5
    for average in ("micro", "macro"):
        assert got.scores[f"{average}_f1"].estimate == pytest.approx(sk.f1_score(labels, given, average=average))
    assert got.scores["map"].estimate == pytest.approx(sk.average_precision_score(labels, outputs, average="macro"))
    assert all(bracketed(one) for one in got.scores.values())
    for number, one in enumerate(got.classes):
        assert one.scores["auc"].estimate == pytest.approx(sk.roc_auc_score(labels[:, number], outputs[:, number]))
        assert (one.name, one.row_count) == ("abcde"[number], labels[:, number].sum())


@pytest.mark.parametrize("seed", range(5))
def test_order_metrics_of_drawn_rows_are_those_of_the_rows_repeated(seed: int):
    """The bootstrap's counts stand for rows that occur so often: scikit-learn and scipy on the repeated rows agree."""
    rng = np.random.default_rng(seed)
    scores, values = np.round(rng.random(60), 1), np.round(rng.random(60), 1)
    positive = rng.random(60) < 0.4
    counts = np.bincount(rng.integers(0, 60, 60), minlength=60)
    drawn = np.repeat(np.arange(60), counts)
    assert auc(scores, positive)(counts) == pytest.approx(sk.roc_auc_score(positive[drawn], scores[drawn]))
    assert average_precision(scores, positive)(counts) == pytest.approx(
        sk.average_precision_score(positive[drawn], scores[drawn])
    )
    assert spearman(scores, values)(counts) == pytest.approx(spearmanr(scores[drawn], values[drawn]).statistic)


def test_multi_label_figures_that_do_not_exist_are_marked():
    outputs = np.random.default_rng(3).standard_normal((50, 3))
    labels = np.zeros((50, 3), int)
    labels[:, 1], labels[:20, 2] = 1, 1
    got = card(Kind.SCORES, outputs, labels)
    assert "outside 0 to 1" in got.scores["micro_f1"].note
    assert got.classes[0].scores["auc"].note == "no row has this label"
    assert got.classes[1].scores["auc"].note == "every row has this label"
    assert got.classes[2].scores["auc"].estimate == pytest.approx(
        sk.roc_auc_score(labels[:, 2], outputs[:, 2].astype(np.float32))
    )
    assert got.scores["map"].note == "over the 2 labels that some row has; 1 have none"
    assert card(Kind.SCORES, np.zeros((40, 2)), np.zeros((40, 2), int)).scores["map"].note == "no row has any label"


def test_labels_other_than_0_and_1_are_refused():
    with pytest.raises(DataError, match="row 1 has labels other than 0 and 1"):
        card(Kind.SCORES, np.zeros((2, 2)), [[0, 1], [2, 0]])


def test_regression_is_scikit_learns_and_scipys():
    rng = np.random.default_rng(4)
    targets = rng.standard_normal(300)
    outputs = (targets + 0.5 * rng.standard_normal(300)).astype(np.float32)
    for shaped in (outputs, outputs[:, None]):
        got = card(Kind.REGRESSION, shaped, targets)
        assert got.scores["mae"].estimate == pytest.approx(sk.mean_absolute_error(targets, outputs))
        assert got.scores["rmse"].estimate == pytest.approx(sk.root_mean_squared_error(targets, outputs))
        assert got.scores["r2"].estimate == pytest.approx(sk.r2_score(targets, outputs))
        assert got.scores["spearman"].estimate == pytest.approx(spearmanr(targets, outputs).statistic)
        assert all(bracketed(one) for one in got.scores.values())


def test_several_targets_are_averaged_over():
    rng = np.random.default_rng(5)
    targets = rng.standard_normal((80, 3))
    outputs = (targets + 0.3 * rng.standard_normal((80, 3))).astype(np.float32)
    got = card(Kind.REGRESSION, outputs, targets)
    assert got.scores["r2"].estimate == pytest.approx(sk.r2_score(targets, outputs))
    each = [spearmanr(targets[:, k], outputs[:, k]).statistic for k in range(3)]
    assert got.scores["spearman"].estimate == pytest.approx(np.mean(each))


def test_constant_predictions_and_targets_are_marked():
    targets = np.arange(40.0)
    constant = card(Kind.REGRESSION, np.full(40, 3.0), targets)
    assert constant.scores["spearman"].note == "an output is the same in all rows"
    assert constant.scores["r2"].estimate < 0
    same = card(Kind.REGRESSION, targets, np.full(40, 3.0))
    assert same.scores["r2"].note == same.scores["spearman"].note == "a target is the same in all rows"
    assert same.scores["mae"].estimate == pytest.approx(np.abs(targets - 3).mean())
    assert card(Kind.REGRESSION, [1.0], [1.0]).scores["r2"].note == "a single row"


def test_ranking_is_the_mean_over_groups():
    rng = np.random.default_rng(6)
    groups = np.repeat(np.arange(40), 12)
    relevance = rng.integers(0, 4, 480)
    outputs = np.round(relevance + 1.5 * rng.standard_normal(480), 1).astype(np.float32)
    shuffled = rng.permutation(480)
    got = card(Kind.SCORES, outputs[shuffled, None], relevance[shuffled], groups=groups[shuffled])
    ndcg = [sk.ndcg_score(relevance[groups == g][None], outputs[groups == g][None], k=10) for g in range(40)]
    areas = [
        sk.roc_auc_score(relevance[groups == g] > 0, outputs[groups == g])
        for g in range(40)
        if (relevance[groups == g] == 0).any()
    ]
    assert got.scores["ndcg@10"].estimate == pytest.approx(np.mean(ndcg))
    assert got.scores["auc"].estimate == pytest.approx(np.mean(areas))
    assert got.scores["auc"].note.startswith(f"mean over {len(areas)} of 40 groups")
    assert all(bracketed(one) for one in got.scores.values())


def test_ndcg_by_hand():
    """The relevant item comes second of three: 1/log2(3) of the best."""
    got = card(Kind.SCORES, [0.9, 0.8, 0.1], [0, 1, 0], groups=np.zeros(3, int))
    assert got.scores["ndcg@10"].estimate == pytest.approx(1 / np.log2(3))
    assert got.scores["auc"].estimate == 0.5


def test_groups_without_a_figure_are_left_out_and_told():
    got = card(Kind.SCORES, [0.1, 0.2, 0.3], [0, 0, 1], groups=np.array([0, 0, 1]))
    assert got.scores["auc"].estimate is None
    assert got.scores["auc"].note == "none of 2 groups has relevant rows and others"
    with pytest.raises(DataError, match="row 1 has relevance -1"):
        card(Kind.SCORES, [0.1, 0.2], [0, -1], groups=np.zeros(2, int))


def test_scores_without_groups_are_one_ranking():
    rng = np.random.default_rng(7)
    labels, outputs = rng.integers(0, 2, 100), rng.random(100).astype(np.float32)
    assert card(Kind.SCORES, outputs, labels).scores["auc"].estimate == pytest.approx(sk.roc_auc_score(labels, outputs))
    assert card(Kind.SCORES, outputs, np.ones(100, int)).scores["auc"].note == "all rows are relevant, or none is"


def test_cosine_to_a_reference():
    rng = np.random.default_rng(8)
    reference = rng.standard_normal((90, 6))
    outputs = (reference + 0.4 * rng.standard_normal((90, 6))).astype(np.float32)
    each = [sk.pairwise.cosine_similarity(a[None], b[None])[0, 0] for a, b in zip(outputs, reference, strict=True)]
    got = card(Kind.EMBEDDING, outputs, reference)
    assert got.scores["cosine"].estimate == pytest.approx(np.mean(each))
    assert bracketed(got.scores["cosine"])


def test_retrieval_is_a_plain_search():
    rng = np.random.default_rng(9)
    labels = rng.integers(0, 12, 150)
    outputs = (rng.standard_normal((12, 5))[labels] + 1.2 * rng.standard_normal((150, 5))).astype(np.float32)
    similarity = sk.pairwise.cosine_similarity(outputs.astype(np.float64))
    np.fill_diagonal(similarity, -np.inf)
    nearest = labels[np.argsort(-similarity, axis=1)]
    got = card(Kind.EMBEDDING, outputs, labels)
    for k in (1, 5, 10):
        expected = (nearest[:, :k] == labels[:, None]).any(axis=1).mean()
        assert got.scores[f"retrieval@{k}"].estimate == pytest.approx(expected)
        assert bracketed(got.scores[f"retrieval@{k}"])


def test_equal_vectors_find_nothing():
    got = card(Kind.EMBEDDING, np.ones((60, 4)), np.arange(60) % 20)
    assert [one.estimate for one in got.scores.values()] == [0, 0, 0]
    assert card(Kind.EMBEDDING, np.eye(20), np.arange(20)).scores["retrieval@1"].note == "no two rows share a label"


def test_a_vector_without_direction_is_refused():
    with pytest.raises(DataError, match="row 2 has no direction"):
        card(Kind.EMBEDDING, [[1, 0], [0, 1], [0, 0]], [0, 1, 0])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        (Kind.LOGITS, [0, 1, 0]),
        (Kind.PROBABILITIES, [0, 1, 0]),
        (Kind.REGRESSION, [[0.0, 1.0]] * 3),
        (Kind.SCORES, [[0, 1]] * 3),
        (Kind.EMBEDDING, [[0.0, 1.0]] * 3),
        (Kind.EMBEDDING, [0, 0, 1]),
    ],
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_refused_by_row(kind: Kind, labels, bad: float):
    with pytest.raises(DataError, match=r"row 1 (is not finite|has no direction)"):
        card(kind, [[1, 2], [bad, 1], [0, 1]], labels)


@pytest.mark.parametrize("kind", [Kind.REGRESSION, Kind.EMBEDDING, Kind.SCORES])
def test_shapes_that_do_not_go_together_are_refused(kind: Kind):
    with pytest.raises(DataError, match="shape"):
        card(kind, np.ones((4, 2)), np.ones((4, 3)))


def test_slices_are_scored_as_if_alone():
    rng = np.random.default_rng(10)
    labels, outputs = rng.integers(0, 3, 200), rng.standard_normal((200, 3))
    city = np.array(["Aarhus", "Bergen", "Cork"])[rng.choice(3, 200, p=[0.6, 0.3, 0.1])]
    got = card(Kind.LOGITS, outputs, labels, slices={"city": codes(city)})
    assert [one.value for one in got.slices] == ["Aarhus", "Bergen", "Cork"]
    assert sum(one.row_count for one in got.slices) == 200
    for one in got.slices[:2]:
        inside = city == one.value
        alone = card(Kind.LOGITS, outputs[inside], labels[inside])
        assert one.scores == alone.scores
    assert got.slices[2].scores == {}
    assert got.slices[2].note == f"not enough rows: {(city == 'Cork').sum()}, and 30 are needed"


def test_slices_of_groups_keep_their_groups():
    rng = np.random.default_rng(11)
    groups, labels, outputs = np.repeat(np.arange(20), 5), rng.integers(0, 2, 100), rng.random(100)
    half = np.where(groups < 10, "old", "new")
    got = card(Kind.SCORES, outputs, labels, groups=groups, slices={"age": codes(half)})
    alone = card(Kind.SCORES, outputs[:50], labels[:50], groups=groups[:50])
    assert got.slices[1].scores == alone.scores


def test_a_column_of_many_values_makes_no_slices():
    with pytest.raises(DataError, match="--slice id: 300 different values, at most 200"):
        card(Kind.LOGITS, np.ones((300, 2)), np.zeros(300, int), slices={"id": codes(np.arange(300))})


def test_memory_mapped_outputs_score_alike(tmp_path):
    rng = np.random.default_rng(12)
    outputs, labels = rng.standard_normal((500, 4)).astype(np.float32), rng.integers(0, 4, 500)
    np.save(tmp_path / "o.npy", outputs)
    mapped = np.load(tmp_path / "o.npy", mmap_mode="r")
    assert score(mapped, labels, contract(Kind.LOGITS)) == score(outputs, labels, contract(Kind.LOGITS))
