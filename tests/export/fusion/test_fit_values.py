"""Fits for outputs that are no classes: regression, scores, embeddings; and for classifiers at the edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from sklearn.linear_model import LinearRegression

from monograph.errors import DataError, FusionError
from monograph.export.fusion import Fused, fit_fusion
from monograph.export.fusion.calibrate import fit_linear_stacking, score_values, select_greedily
from monograph.export.fusion.forms import FORMS, Mixing
from monograph.export.fusion.weights import fit_mean_weights
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
WriteModel = Callable[..., OnnxFile]
FuseFiles = Callable[..., Fused]
FEATURES = np.random.default_rng(3).standard_normal((200, 4), dtype=np.float32)


def run(file: OnnxFile, x: Array = FEATURES) -> Array:
    (output,) = open_session(file.path)({"x": x}).values()
    return output.astype(np.float64)


def rmse(output: Array, targets: Array) -> float:
    return float(np.sqrt(np.mean((output - targets) ** 2)))


@pytest.fixture
def write_values(write_linear: WriteModel) -> Callable[..., OnnxFile]:
    """Write a linear model whose output is no classes."""

    def write(name: str, *, seed: int, outputs: int = 2, kind: Kind = Kind.REGRESSION) -> OnnxFile:
        specs = TensorSpec("x", "float32", ("batch", 4)), TensorSpec("y", "float32", ("batch", outputs))
        contract = Contract((specs[0],), (specs[1],), kind)
        return write_linear(name, classes=outputs, seed=seed, output_name="y", contract=contract)

    return write


@pytest.fixture
def three(write_values: Callable[..., OnnxFile]) -> list[OnnxFile]:
    return [write_values(f"m{seed}", seed=seed) for seed in range(3)]


@pytest.fixture
def rows(three: list[OnnxFile]) -> Rows:
    """Targets between the first two members, with noise."""
    noise = 0.3 * np.random.default_rng(0).standard_normal((200, 2))
    return Rows({"x": FEATURES}, 0.7 * run(three[0]) + 0.3 * run(three[1]) + noise, origin="rows.npz")


class TestMean:
    def test_weights_are_those_of_least_squares_on_the_simplex(self, three: list[OnnxFile], fuse_files: FuseFiles, rows: Rows):
        fit = fit_fusion(three, [rows] * 3)
        targets = rows.required_labels()
        # Non-negative least squares with a heavy row that asks for a sum of one: another solver of the same problem.
        columns = np.stack([run(file).ravel() for file in three], axis=1)
        expected, _ = nnls(np.vstack([columns, np.full((1, 3), 1e5)]), np.append(targets.ravel(), 1e5))
        assert fit.weights == pytest.approx(expected, abs=2e-3)
        assert fit.weights[:2] == pytest.approx((0.7, 0.3), abs=0.05)
        fused = fuse_files(three, fit=fit)
        assert (fused.plan.form, fused.file.contract.kind) == ("mean", Kind.REGRESSION)
        assert rmse(run(fused.file), targets) == pytest.approx(fit.loss, abs=1e-5)
        assert fit.loss_name == "RMSE"
        assert fit.member_loss == pytest.approx([rmse(run(file), targets) for file in three])
        assert fit.describe().startswith(f"fitted on 200 rows: RMSE {fit.loss:.4g} (equal weights")

    @given(
        seed=st.integers(0, 1000),
        members=st.integers(2, 5),
        scale=st.sampled_from([1e-6, 1.0, 1e6]),
        shift=st.sampled_from([0.0, 1e4]),
    )
    @settings(max_examples=40, deadline=None)
    def test_never_worse_than_equal_weights_or_than_the_best_member(self, seed: int, members: int, scale: float, shift: float):
        rng = np.random.default_rng(seed)
        targets = scale * (rng.standard_normal((30, 2)) + shift)
        outputs = [targets + scale * rng.uniform(0, 3) * rng.standard_normal((30, 2)) for _ in range(members)]
        fit = fit_mean_weights(outputs, targets, rows_sha256="")
        assert fit.loss <= min(fit.equal_weights_loss, *fit.member_loss) * (1 + 1e-9)
        assert sum(fit.weights) == pytest.approx(1, abs=1e-9)
        assert min(fit.weights) >= 0
        mixed = sum(weight * output for weight, output in zip(fit.weights, outputs, strict=True))
        assert fit.loss == pytest.approx(rmse(mixed, targets), rel=1e-6)

    def test_one_output_a_row_with_and_without_its_dimension(self, write_model: WriteModel, fuse_files: FuseFiles):
        text = """<ir_version: 8, opset_import: ["": 17]> m (float[batch, 4] x) => (float[batch] y)
        { y = ReduceSum<keepdims=0>(x, a) }"""
        scaled = text.replace("{ y = ReduceSum<keepdims=0>(x, a) }", "{ t = Mul(x, c)  y = ReduceSum<keepdims=0>(t, a) }")
        axis = np.array([1])
        files = [
            write_model("plain", text, {"a": axis}),
            write_model("scaled", scaled, {"a": axis, "c": np.float32([1, 2, 0, 1])}),
        ]
        targets = (run(files[0]) + run(files[1])) / 2
        for labels in (targets, targets[:, None]):
            fit = fit_fusion(files, [Rows({"x": FEATURES}, labels)] * 2)
            assert fit.weights == pytest.approx((0.5, 0.5), abs=1e-4)
        assert rmse(run(fuse_files(files, fit=fit).file), targets) < 1e-4
        with pytest.raises(FusionError, match="members give 1 dimensions, --combine stack takes one row of numbers a row"):
            fit_fusion(files, [Rows({"x": FEATURES}, targets)] * 2, "stack")
        assert fit_fusion(files, [Rows({"x": FEATURES}, targets)] * 2, "auto").form == "mean"

    @pytest.mark.parametrize("kind", [Kind.SCORES, Kind.EMBEDDING])
    def test_other_kinds_with_targets_of_their_shape(self, write_values: Callable[..., OnnxFile], kind: Kind):
        files = [write_values(f"m{seed}", seed=seed, outputs=5, kind=kind) for seed in range(2)]
        targets = 0.25 * run(files[0]) + 0.75 * run(files[1])
        assert fit_fusion(files, [Rows({"x": FEATURES}, targets)] * 2).weights == pytest.approx((0.25, 0.75), abs=1e-3)
        message = (
            "puts outputs side by side and has nothing to fit" if kind is Kind.EMBEDDING else "m0 gives scores, which --combine"
        )
        with pytest.raises(FusionError, match=message):
            fit_fusion(files, [Rows({"x": FEATURES}, targets)] * 2, "concat")


class TestStack:
    def test_it_is_the_regression_it_says(self, three: list[OnnxFile], fuse_files: FuseFiles, rows: Rows):
        fit = fit_fusion(three, [rows] * 3, "stack")
        fused = fuse_files(three, fit=fit)
        features = np.hstack([run(file) for file in three])
        model = LinearRegression().fit(features[:, :4], rows.required_labels())
        # Six features of four inputs are linearly dependent: the fit is a ridge, which predicts the same but for its pull.
        np.testing.assert_allclose(run(fused.file), model.predict(features[:, :4]), atol=0.02)
        assert rmse(run(fused.file), rows.required_labels()) == pytest.approx(fit.loss, abs=1e-5)
        gemms = [node for node in fused_nodes(fused) if node.op_type == "Gemm"]
        assert list(gemms[-1].input[1:]) == ["fusion/stacking/coefficients", "fusion/stacking/intercept"]

    def test_well_conditioned_members_are_combined_by_least_squares(self):
        rng = np.random.default_rng(0)
        outputs = [rng.standard_normal((100, 2)) * (1, 1000) + 50 for _ in range(2)]
        targets = 3 * outputs[0] - outputs[1] + 7 + 0.1 * rng.standard_normal((100, 2))
        stacking = fit_linear_stacking(outputs, targets)
        model = LinearRegression().fit(np.hstack(outputs), targets)
        np.testing.assert_allclose(stacking.coefficients, model.coef_.T, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(stacking.intercept, model.intercept_, rtol=1e-6)

    @pytest.mark.parametrize("row_count", [3, 40])
    def test_twins_and_few_rows_do_not_run_wild(self, row_count: int):
        rng = np.random.default_rng(1)
        targets = rng.standard_normal((row_count, 1))
        one = targets + 0.5 * rng.standard_normal((row_count, 1))
        stacking = fit_linear_stacking([one, one + 1e-9, np.zeros_like(one)], targets)
        assert np.abs(stacking.coefficients).max() < 2
        assert stacking.coefficients[2] == (0.0,)
        mixed = FORMS["stack"].combine([one, one, 0 * one], Mixing(("a", "b", "c"), (1 / 3,) * 3, stacking))
        assert rmse(mixed, targets) <= rmse(np.full_like(targets, targets.mean()), targets) + 1e-9

    def test_a_member_that_is_dead_but_for_rounding(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles
    ):
        specs = (TensorSpec("x", "float32", ("batch", 4)),), (TensorSpec("y", "float32", ("batch", 1)),)
        contract = Contract(*specs, Kind.REGRESSION)
        text = """<ir_version: 8, opset_import: ["": 17]> m (float[batch, 4] x) => (float[batch, 1] y)
        { s = ReduceSum<keepdims=1>(x, a)  t = Mul(s, c)  y = Add(t, d) }"""
        arrays = {"a": np.array([1]), "c": np.float32([1e-7]), "d": np.float32([5])}
        files = [
            write_linear("live", classes=1, output_name="y", contract=contract),
            write_model("dead", text, arrays, contract=contract),
        ]
        targets = run(files[0]) + np.random.default_rng(0).standard_normal((200, 1))
        fit = fit_fusion(files, [Rows({"x": FEATURES}, targets)] * 2, "stack")
        assert fit.stacking is not None
        assert fit.stacking.coefficients[1] == (0.0,)
        assert fit.stacking.coefficients[0][0] == pytest.approx(1, abs=0.2)
        fuse_files(files, fit=fit)

    def test_one_row(self):
        with pytest.raises(FusionError, match="stack cannot be fitted on 1 row: give more validation rows"):
            fit_linear_stacking([np.array([[1.0]]), np.array([[2.0]])], np.array([[3.0]]))

    def test_members_that_are_all_dead(self):
        stacking = fit_linear_stacking([np.ones((2, 1)), np.full((2, 1), 2.0)], np.array([[3.0], [5.0]]))
        assert stacking.coefficients == ((0.0,), (0.0,))
        assert stacking.intercept == pytest.approx((4.0,))

    def test_too_many_outputs(self):
        outputs = np.zeros((5, 101))
        with pytest.raises(
            FusionError, match="fits 2 x 101 x 101 numbers; it is made for 100 outputs at most: use --combine mean"
        ):
            fit_linear_stacking([outputs, outputs], outputs)

    def test_kinds_do_not_mix(self, three: list[OnnxFile], write_linear: WriteModel, rows: Rows):
        with pytest.raises(FusionError, match="members give logits, regression: outputs of different kinds"):
            fit_fusion([three[0], write_linear("logits", classes=2)], [rows] * 2, "stack")


def fused_nodes(fused: Fused) -> list[Any]:
    import onnx

    return list(onnx.load(fused.file.path).graph.node)


class TestGreedy:
    def test_picks_lower_the_error(self, three: list[OnnxFile], rows: Rows):
        fit = fit_fusion(three, [rows] * 3, search="greedy")
        assert fit.loss <= min(fit.member_loss)
        assert fit.weights == pytest.approx(fit_fusion(three, [rows] * 3).weights, abs=0.05)

    def test_a_weight_counts_picks(self):
        """Errors −1 and +3: of four picks, three of the first and one of the second leave none."""
        targets = np.zeros((6, 1))
        weights = select_greedily([targets - 1, targets + 3], score_values(targets))
        assert weights == (0.75, 0.25)


class TestGain:
    def test_in_the_unit_of_the_targets(self, three: list[OnnxFile], rows: Rows):
        gain = fit_fusion(three[:2], [rows] * 2).gain
        assert gain is not None
        assert (gain.unit, gain.best_member) == ("RMSE", "m0")
        best = rmse(run(three[0]), rows.required_labels())
        assert 0 < gain.low < gain.amount < gain.high < best
        assert gain.luck_probability == 0
        assert f"held out, RMSE lower by {gain.amount:.4g} [{gain.low:.4g}, {gain.high:.4g}] than m0's, 0%" in gain.describe()

    def test_twins_gain_nothing(self, three: list[OnnxFile], rows: Rows):
        gain = fit_fusion([three[0]] * 2, [rows] * 2).gain
        assert gain is not None
        assert gain.amount == pytest.approx(0, abs=1e-12)

    def test_auto_tries_both_forms(self, three: list[OnnxFile], rows: Rows):
        fit = fit_fusion(three, [rows] * 3, "auto")
        assert fit.gain is not None
        assert set(fit.gain.forms_tried) == {"mean", "stack"}
        shifted = Rows(rows.inputs, rows.required_labels() + 5)
        assert fit_fusion(three, [shifted] * 3, "auto").form == "stack"


class TestRefused:
    @pytest.mark.parametrize("shape", [(200,), (200, 3), (200, 2, 1), (100, 4)])
    def test_targets_of_another_shape(self, three: list[OnnxFile], shape: tuple[int, ...]):
        inputs = {"x": FEATURES[: shape[0]]}
        if shape == (200, 2, 1):  # one number for each of the output, written with one more dimension
            assert fit_fusion(three, [Rows(inputs, np.zeros(shape))] * 3).row_count == 200
            return
        with pytest.raises(DataError, match=r"targets have the shape .*, but m0 gives \[\d+, 2\]: give one target for each"):
            fit_fusion(three, [Rows(inputs, np.zeros(shape))] * 3)

    def test_targets_that_are_no_numbers(self, three: list[OnnxFile], rows: Rows):
        targets = rows.required_labels().copy()
        targets[3, 1] = np.nan
        with pytest.raises(DataError, match="targets are not all finite numbers"):
            fit_fusion(three, [Rows(rows.inputs, targets)] * 3)

    def test_temperatures(self, three: list[OnnxFile], rows: Rows):
        with pytest.raises(FusionError, match="--calibrate fits temperatures of logits, but m0 and m1 and m2 give regression"):
            fit_fusion(three, [rows] * 3, temperature=True)

    def test_shapes_that_turn_out_to_differ(self, write_model: WriteModel):
        text = '<ir_version: 8, opset_import: ["": 17]> m (float[batch, 4] x) => (float[batch, k] y) { y = Relu(x) }'
        narrow = text.replace("y = Relu(x)", "y = MatMul(x, w)")
        specs = (TensorSpec("x", "float32", ("batch", 4)),), (TensorSpec("y", "float32", ("batch", "k")),)
        contract = Contract(*specs, Kind.REGRESSION)
        files = [
            write_model("four", text, contract=contract),
            write_model("two", narrow, {"w": np.ones((4, 2), np.float32)}, contract=contract),
        ]
        with pytest.raises(FusionError, match=r"different shapes \(four \[200, 4\], two \[200, 2\]\)"):
            fit_fusion(files, [Rows({"x": FEATURES}, np.zeros((200, 4)))] * 2)


class TestClassifiersAtTheEdges:
    @pytest.fixture
    def mixed(self, write_linear: WriteModel, write_model: WriteModel) -> list[OnnxFile]:
        """A member that gives logits beside one that gives probabilities, of two classes."""
        text = """<ir_version: 8, opset_import: ["": 17]> m (float[batch, 4] x) => (float[batch, 2] p)
        { z = MatMul(x, w)  p = Softmax<axis=-1>(z) }"""
        weight = np.random.default_rng(5).standard_normal((4, 2), dtype=np.float32)
        specs = (TensorSpec("x", "float32", ("batch", 4)),), (TensorSpec("p", "float32", ("batch", 2)),)
        return [
            write_linear("z", classes=2),
            write_model("p", text, {"w": weight}, contract=Contract(*specs, Kind.PROBABILITIES)),
        ]

    @pytest.fixture
    def labels(self, mixed: list[OnnxFile]) -> Array:
        return (np.log(run(mixed[1])) + run(mixed[0]) + np.random.default_rng(0).gumbel(size=(200, 2))).argmax(1)

    def test_auto_over_logits_and_probabilities(self, mixed: list[OnnxFile], labels: Array, fuse_files: FuseFiles):
        fit = fit_fusion(mixed, [Rows({"x": FEATURES}, labels)] * 2, "auto", temperature=True)
        assert fit.gain is not None
        assert set(fit.gain.forms_tried) == {"probs", "class-weights", "geometric", "vote", "stack"}
        assert fit.temperatures is not None
        assert fit.temperatures[1] == 1
        assert fit.temperatures[0] != 1
        fuse_files(mixed, fit=fit)

    @pytest.mark.parametrize("form", ["probs", "class-weights", "geometric", "vote", "stack"])
    @pytest.mark.parametrize("search", ["nll", "greedy"])
    def test_loss_is_what_the_graph_gives(
        self, mixed: list[OnnxFile], labels: Array, fuse_files: FuseFiles, form: str, search: str
    ):
        fit = fit_fusion(mixed, [Rows({"x": FEATURES}, labels)] * 2, form, search=search)
        output = run(fuse_files(mixed, fit=fit).file)
        log = output - np.log(np.exp(output).sum(1, keepdims=True)) if form == "stack" else np.log(np.maximum(output, 1e-12))
        assert -log[np.arange(200), labels].mean() == pytest.approx(fit.loss, abs=1e-5)

    def test_a_class_with_one_row(self, write_linear: WriteModel, fuse_files: FuseFiles):
        files = [write_linear(f"m{seed}", seed=seed) for seed in range(2)]
        labels = (run(files[0])[:, :2] + np.random.default_rng(0).gumbel(size=(200, 2))).argmax(1)
        labels[17] = 2
        rows = [Rows({"x": FEATURES}, labels)] * 2
        fit = fit_fusion(files, rows, "auto", temperature=True)
        assert fit.gain is not None
        assert "stack" not in fit.gain.forms_tried
        fuse_files(files, fit=fit)
        stacked = fit_fusion(files, rows, "stack")
        assert stacked.gain is None
        assert stacked.cautions == ("no gain is told: half of the rows do not suffice for stack",)

    def test_fewer_than_twenty_rows(self, mixed: list[OnnxFile], labels: Array):
        few = Rows({"x": FEATURES[:12]}, labels[:12])
        fit = fit_fusion(mixed, [few] * 2, "auto")
        assert (fit.form, fit.gain) == ("probs", None)
        assert "too few rows to choose a form (20 needed), so probs is what fits the members" in fit.describe()
        assert "no gain is told: too few rows (20 needed)" in fit.describe()
        one = Rows({"x": FEATURES[:1]}, labels[:1])
        for form in ("probs", "class-weights", "geometric", "vote"):
            assert fit_fusion(mixed, [one] * 2, form, temperature=True, search="greedy").row_count == 1

    def test_outputs_that_are_not_finite(self, write_model: WriteModel, labels: Array):
        text = '<ir_version: 8, opset_import: ["": 17]> m (float[batch, 4] x) => (float[batch, 4] logits) { logits = Log(x) }'
        files = [write_model("log", text), write_model("other", text)]
        with pytest.raises(FusionError, match="log's output is not finite on the rows to fit on: weights cannot be fitted"):
            fit_fusion(files, [Rows({"x": FEATURES}, labels)] * 2, "auto", temperature=True, search="greedy")

    def test_labels_that_are_no_whole_numbers(self, write_linear: WriteModel, labels: Array):
        files = [write_linear("a"), write_linear("b", seed=1)]
        with pytest.raises(DataError, match=r"labels are float64 \[200\], but a is a classifier: give class numbers"):
            fit_fusion(files, [Rows({"x": FEATURES}, labels + 0.5)] * 2)
