"""Each form against its formula, written out here a second time, over the members' own files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from monograph.errors import FusionError
from monograph.export.fusion import Fused, fit_fusion, plan_fusion
from monograph.export.fusion.forms import FORMS
from monograph.export.fusion.forms.vote import tie_share
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
WriteModel = Callable[..., OnnxFile]
FuseFiles = Callable[..., Fused]
X = TensorSpec("x", "float32", ("batch", 4))
ROWS = np.random.default_rng(3).standard_normal((200, 4), dtype=np.float32)


def run(file: OnnxFile, x: Array = ROWS) -> Array:
    (output,) = open_session(file.path)({"x": x}).values()
    return output.astype(np.float64)


def contract_of(class_names: Sequence[str]) -> Contract:
    return Contract((X,), (TensorSpec("logits", "float32", ("batch", len(class_names))),), Kind.LOGITS, tuple(class_names))


@pytest.fixture
def three(write_linear: WriteModel) -> list[OnnxFile]:
    return [write_linear(f"m{seed}", seed=seed) for seed in range(3)]


class TestFormulas:
    WEIGHTS = (0.2, 0.5, 0.3)

    def test_geometric(self, three: list[OnnxFile], fuse_files: FuseFiles):
        fused = fuse_files(three, combine="geometric", weights=self.WEIGHTS)
        product = np.prod([softmax(run(file), 1) ** weight for file, weight in zip(three, self.WEIGHTS, strict=True)], axis=0)
        np.testing.assert_allclose(run(fused.file), product / product.sum(1, keepdims=True), atol=1e-6)
        assert fused.file.contract.kind is Kind.PROBABILITIES

    def test_vote(self, three: list[OnnxFile], fuse_files: FuseFiles):
        fused = fuse_files(three, combine="vote")
        votes = np.stack([run(file).argmax(1) for file in three])
        for row, output in zip(votes.T, run(fused.file), strict=True):
            counts = np.bincount(row, minlength=3)
            assert output.sum() == pytest.approx(1, abs=1e-6)
            if counts.max() > 1:
                assert output.argmax() == counts.argmax()

    def test_a_tied_vote_goes_to_the_larger_mean_probability(self, three: list[OnnxFile], fuse_files: FuseFiles):
        fused = fuse_files(three[:2], combine="vote")
        first, second = (softmax(run(file), 1) for file in three[:2])
        tied = first.argmax(1) != second.argmax(1)
        assert tied.sum() > 20
        contested = np.zeros_like(first)
        for one in (first, second):
            contested[np.arange(len(one)), one.argmax(1)] = 1
        expected = np.where(contested > 0, first + second, -1).argmax(1)
        assert (run(fused.file).argmax(1) == expected).all()

    @pytest.mark.parametrize("weights", [(0.5, 0.5), (0.4, 0.35, 0.25), (0.1,) * 10])
    def test_ties_never_outweigh_a_vote(self, weights: tuple[float, ...]):
        sums = np.unique(np.round([sum(np.array(weights)[list(part)]) for part in coalitions(len(weights))], 9))
        assert 0 < tie_share(weights) <= np.diff(sums).min() / 2 + 1e-9

    def test_too_many_voters(self):
        with pytest.raises(FusionError, match="13 members vote: the tie rule is made for 12 at most; use --combine probs"):
            tie_share((1 / 13,) * 13)

    def test_concatenation(self, write_linear: WriteModel, fuse_files: FuseFiles):
        files = []
        for width in (3, 5):
            spec = TensorSpec("embedding", "float32", ("batch", width))
            made = write_linear(
                f"e{width}", classes=width, seed=width, output_name="embedding", contract=Contract((X,), (spec,), Kind.EMBEDDING)
            )
            files.append(made)
        fused = fuse_files(files, combine="concat")
        assert fused.file.contract.output.shape == ("batch", 8)
        np.testing.assert_allclose(run(fused.file), np.hstack([run(file) for file in files]), atol=1e-6)
        with pytest.raises(FusionError, match="--combine concat puts outputs side by side and takes no weights"):
            plan_fusion(files, combine="concat", weights=(0.5, 0.5))

    def test_stack_needs_rows(self, three: list[OnnxFile]):
        with pytest.raises(FusionError, match="--combine stack is a combiner that is fitted: give labelled validation rows"):
            plan_fusion(three, combine="stack")

    def test_every_form_says_where_it_comes_from(self):
        assert all(form.source.startswith("https://") and form.formula.startswith("O = ") for form in FORMS.values())


def coalitions(count: int) -> list[tuple[int, ...]]:
    return [tuple(i for i in range(count) if mask >> i & 1) for mask in range(2**count)]


class TestTemperatures:
    def test_divide_the_logits_first(self, three: list[OnnxFile], fuse_files: FuseFiles):
        fused = fuse_files(three[:2], combine="probs", temperatures=(2.0, 0.5))
        expected = softmax(run(three[0]) / 2, 1) / 2 + softmax(run(three[1]) / 0.5, 1) / 2
        np.testing.assert_allclose(run(fused.file), expected, atol=1e-6)
        assert "logits divided by temperature 2" in fused.plan.describe()

    @pytest.mark.parametrize(
        ("temperatures", "message"),
        [
            ((1.0,), "1 temperatures for 2 members: give one a member"),
            ((1.0, 0.0), "m1 has temperature 0, expected a positive number: logits are divided by it"),
            ((1.0, float("nan")), "m1 has temperature nan, expected a positive number: logits are divided by it"),
        ],
    )
    def test_refused(self, three: list[OnnxFile], temperatures: tuple[float, ...], message: str):
        with pytest.raises(FusionError) as info:
            plan_fusion(three[:2], temperatures=temperatures)
        assert str(info.value) == message


class TestSubsets:
    def test_classes_that_a_member_lacks_get_nothing_from_it(self, write_linear: WriteModel, fuse_files: FuseFiles):
        whole = write_linear("whole", classes=4, contract=contract_of("abcd"))
        part = write_linear("part", classes=2, seed=5, contract=contract_of("ca"))
        fused = fuse_files([part, whole], weights=(0.25, 0.75))
        assert fused.plan.form == "probs"
        assert fused.file.contract.class_names == tuple("abcd")
        lifted = np.zeros((len(ROWS), 4))
        lifted[:, [2, 0]] = softmax(run(part), 1)
        np.testing.assert_allclose(run(fused.file), lifted / 4 + softmax(run(whole), 1) * 0.75, atol=1e-6)
        assert "lacks 2 of 4 classes" in fused.plan.describe()

    def test_votes(self, write_linear: WriteModel, fuse_files: FuseFiles):
        whole = write_linear("whole", classes=4, contract=contract_of("abcd"))
        part = write_linear("part", classes=2, seed=5, contract=contract_of("ca"))
        fused = fuse_files([whole, part], combine="vote", weights=(0.25, 0.75))
        assert set(run(fused.file).argmax(1)) == {0, 2}

    def test_logits_of_unknown_classes_do_not_exist(self, write_linear: WriteModel):
        files = [
            write_linear("w", classes=3, contract=contract_of("abc")),
            write_linear("p", classes=2, contract=contract_of("ab")),
        ]
        with pytest.raises(FusionError, match="--combine logits cannot take: use --combine probs, class-weights or vote"):
            plan_fusion(files, combine="logits")

    def test_a_class_that_nobody_else_knows(self, write_linear: WriteModel):
        files = [
            write_linear("abc", classes=3, contract=contract_of("abc")),
            write_linear("ax", classes=2, contract=contract_of("ax")),
        ]
        with pytest.raises(FusionError, match=r"abc and ax name different classes \(x unknown to abc\)"):
            plan_fusion(files)


@pytest.fixture
def rows(three: list[OnnxFile]) -> Rows:
    """Labels as the first two members together see them, with some noise."""
    logits = run(three[0]) + run(three[1]) + np.random.default_rng(0).gumbel(size=(len(ROWS), 3))
    return Rows({"x": ROWS}, logits.argmax(1))


class TestFit:
    def test_stacking_is_the_regression_it_says(self, three: list[OnnxFile], fuse_files: FuseFiles, rows: Rows):
        fit = fit_fusion(three, [rows] * 3, "stack")
        fused = fuse_files(three, fit=fit)
        features = np.hstack([np.log(softmax(run(file), 1)) for file in three])
        model = LogisticRegression(C=1.0, max_iter=1000).fit(features, rows.required_labels())
        np.testing.assert_allclose(softmax(run(fused.file), 1), model.predict_proba(features), atol=1e-5)

    def test_stacking_of_two_classes(self, write_linear: WriteModel, fuse_files: FuseFiles):
        files = [write_linear(f"b{seed}", classes=2, seed=seed) for seed in range(2)]
        labels = (run(files[0]) + np.random.default_rng(0).gumbel(size=(200, 2))).argmax(1)
        fused = fuse_files(files, fit=fit_fusion(files, [Rows({"x": ROWS}, labels)] * 2, "stack"))
        features = np.hstack([np.log(softmax(run(file), 1)) for file in files])
        model = LogisticRegression(C=1.0, max_iter=1000).fit(features, labels)
        np.testing.assert_allclose(softmax(run(fused.file), 1), model.predict_proba(features), atol=1e-5)

    def test_temperature_undoes_a_scale(self, write_model: WriteModel, rows: Rows):
        text = (
            '<ir_version: 8, opset_import: ["": 20]> m (float[batch, 4] x) => (float[batch, 3] logits) { logits = MatMul(x, w) }'
        )
        weight = np.random.default_rng(1).standard_normal((4, 3), dtype=np.float32)
        files = [write_model("plain", text, {"w": weight}), write_model("loud", text, {"w": 4 * weight})]
        plain, loud = fit_fusion(files, [rows] * 2, "probs", temperature=True).temperatures or (0, 0)
        assert loud / plain == pytest.approx(4, rel=1e-3)

    def test_no_other_temperature_is_better(self, three: list[OnnxFile], rows: Rows):
        labels = rows.required_labels()
        for file, found in zip(three, fit_fusion(three, [rows] * 3, "probs", temperature=True).temperatures or (), strict=True):
            nll = [
                log_loss(labels, softmax(run(file) / temperature, 1)) for temperature in (found, found * 0.98, found * 1.02, 1)
            ]
            assert nll[0] == min(nll)

    def test_greedy_selection_counts_picks(self, three: list[OnnxFile], fuse_files: FuseFiles, rows: Rows):
        fit = fit_fusion(three, [rows] * 3, "probs", search="greedy")
        picks = np.array(fit.weights) / min(weight for weight in fit.weights if weight > 0)
        assert sum(fit.weights) == pytest.approx(1)
        fused = run(fuse_files(three, fit=fit).file).argmax(1) == rows.required_labels()
        best = max((run(file).argmax(1) == rows.required_labels()).mean() for file in three)
        assert fused.mean() >= best
        assert picks.max() >= 1

    def test_auto_takes_the_form_that_is_right_most_often_on_rows_not_fitted_on(self, three: list[OnnxFile], rows: Rows):
        fit = fit_fusion(three, [rows] * 3, "auto")
        assert fit.form in FORMS
        assert fit.gain is not None
        assert set(fit.gain.forms_tried) == {"logits", "probs", "class-weights", "geometric", "vote", "stack"}

    def test_a_gain_that_is_real_is_told_from_luck(self, three: list[OnnxFile], rows: Rows):
        real = fit_fusion(three[:2], [rows] * 2).gain
        assert real is not None
        assert real.amount > 0
        assert real.luck_probability < 0.05
        twins = fit_fusion([three[0]] * 2, [rows] * 2).gain
        assert twins is not None
        assert (twins.amount, twins.luck_probability) == (0, 1)
        assert "100% likely to be luck" in twins.describe()

    def test_too_few_rows_tell_no_gain(self, three: list[OnnxFile], rows: Rows):
        assert fit_fusion(three, [rows.take(slice(0, 10))] * 3).gain is None

    def test_stack_wants_every_class(self, three: list[OnnxFile], rows: Rows):
        some = rows.take(np.flatnonzero(rows.required_labels() != 1))
        with pytest.raises(FusionError, match="no validation row is of class 1: --combine stack needs rows of every class"):
            fit_fusion(three, [some] * 3, "stack")

    def test_unknown_search(self, three: list[OnnxFile], rows: Rows):
        with pytest.raises(FusionError, match="unknown search 'grid': choose from nll, greedy"):
            fit_fusion(three, [rows] * 3, search="grid")
