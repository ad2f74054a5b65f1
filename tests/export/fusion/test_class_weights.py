"""Weights by member and class: the formula, the fit, the file, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from monograph.errors import FusionError
from monograph.export.fusion import Fused, fit_fusion, plan_fusion
from monograph.export.fusion.class_weights import check_class_weights, fit_class_weights, read_class_weights
from monograph.export.fusion.forms import FORMS, Mixing
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
WriteModel = Callable[..., OnnxFile]
FuseFiles = Callable[..., Fused]
X = TensorSpec("x", "float32", ("batch", 4))
ROWS = np.random.default_rng(3).standard_normal((200, 4), dtype=np.float32)
MATRIX = ((0.9, 0.2, 0.5), (0.1, 0.3, 0.5), (0.0, 0.5, 0.0))


def run(file: OnnxFile, x: Array = ROWS) -> Array:
    (output,) = open_session(file.path)({"x": x}).values()
    return output.astype(np.float64)


def contract_of(class_names: Sequence[str], kind: Kind = Kind.LOGITS) -> Contract:
    return Contract((X,), (TensorSpec(kind.value, "float32", ("batch", len(class_names))),), kind, tuple(class_names))


def by_hand(probabilities: Sequence[Array], matrix: Sequence[Sequence[float]]) -> Array:
    """Row by row and class by class, as the formula stands."""
    result = np.zeros_like(probabilities[0])
    for row in range(len(result)):
        for position in range(result.shape[1]):
            result[row, position] = sum(
                weights[position] * member[row, position] for weights, member in zip(matrix, probabilities, strict=True)
            )
        result[row] /= result[row].sum()
    return result


@pytest.fixture
def three(write_linear: WriteModel) -> list[OnnxFile]:
    return [write_linear(f"m{seed}", seed=seed) for seed in range(3)]


class TestForm:
    def test_formula(self, three: list[OnnxFile], fuse_files: FuseFiles):
        fused = fuse_files(three, class_weights=MATRIX)
        got = run(fused.file)
        np.testing.assert_allclose(got, by_hand([softmax(run(file), 1) for file in three], MATRIX), atol=1e-6)
        np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-6)
        assert fused.file.contract.kind is Kind.PROBABILITIES
        assert [member.weight for member in fused.plan.members] == pytest.approx([1.6 / 3, 0.9 / 3, 0.5 / 3])
        assert "0.5333 x m0  (by class 0.2 to 0.9)" in fused.plan.describe()

    @pytest.mark.parametrize("weights", [(0.2, 0.5, 0.3), (0.0, 0.25, 0.75), (1.0, 0.0, 0.0)])
    def test_equal_columns_are_the_plain_mean_of_probabilities(
        self, three: list[OnnxFile], fuse_files: FuseFiles, weights: tuple[float, ...]
    ):
        plain = run(fuse_files(three, combine="probs", weights=weights).file)
        by_class = fuse_files(three, class_weights=[(weight,) * 3 for weight in weights])
        np.testing.assert_allclose(run(by_class.file), plain, atol=1e-6)
        assert len(by_class.plan.running) == sum(weight > 0 for weight in weights)

    def test_the_first_member_alone(self, three: list[OnnxFile], fuse_files: FuseFiles):
        fused = fuse_files(three[:2], class_weights=[(1, 1, 1), (0, 0, 0)])
        np.testing.assert_allclose(run(fused.file), softmax(run(three[0]), 1), atol=1e-6)
        assert not [tensor for tensor in onnx.load(fused.file.path).graph.initializer if "class_weights" in tensor.name]

    def test_classes_in_another_order_and_members_that_lack_some(self, write_linear: WriteModel, fuse_files: FuseFiles):
        files = [
            write_linear("abc", classes=3, contract=contract_of("abc")),
            write_linear("cba", classes=3, seed=1, contract=contract_of("cba")),
            write_linear("ca", classes=2, seed=2, contract=contract_of("ca")),
        ]
        matrix = ((0.5, 0.4, 0.1), (0.2, 0.6, 0.2), (0.3, 0.0, 0.7))
        part = softmax(run(files[2]), 1)
        wide = np.stack([part[:, 1], np.zeros(len(part)), part[:, 0]], axis=1)
        expected = by_hand([softmax(run(files[0]), 1), softmax(run(files[1]), 1)[:, ::-1], wide], matrix)
        np.testing.assert_allclose(run(fuse_files(files, class_weights=matrix).file), expected, atol=1e-6)
        with pytest.raises(FusionError, match=r"ca lacks class 'b', so its weight there must be 0, not 0\.2"):
            plan_fusion(files, class_weights=((0.5, 0.2, 0.1), (0.2, 0.6, 0.2), (0.3, 0.2, 0.7)))

    def test_probabilities_beside_logits_and_one_row_of_classes_a_token(self, write_model: WriteModel, fuse_files: FuseFiles):
        x = TensorSpec("x", "float32", ("batch", "s", 3))
        files = []
        for name, op, kind in (("a", "Sigmoid", Kind.LOGITS), ("b", "Softmax", Kind.PROBABILITIES)):
            text = f'<ir_version: 8, opset_import: ["": 17]> m (float[batch, s, 3] x) => (float[batch, s, 3] y) {{ y = {op}(x) }}'
            files.append(write_model(name, text, contract=Contract((x,), (TensorSpec("y", "float32", x.shape),), kind)))
        tokens = np.random.default_rng(0).standard_normal((5, 7, 3), dtype=np.float32)
        got = run(fuse_files(files, class_weights=((0.9, 0.5, 0.0), (0.1, 0.5, 1.0))).file, tokens)
        members = [softmax(run(files[0], tokens), -1).reshape(-1, 3), run(files[1], tokens).reshape(-1, 3)]
        np.testing.assert_allclose(got.reshape(-1, 3), by_hand(members, ((0.9, 0.5, 0.0), (0.1, 0.5, 1.0))), atol=1e-6)

    def test_a_row_on_whose_classes_nobody_has_a_say_is_uniform(self):
        mixing = Mixing(("a", "b"), (0.5, 0.5), class_weights=((0.0, 1.0), (1.0, 0.0)))
        sure = [np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])]
        assert FORMS["class-weights"].combine(sure, mixing).tolist() == [[0.5, 0.5]]

    @given(seed=st.integers(0, 10**6), members=st.integers(2, 4), classes=st.integers(2, 5))
    @settings(max_examples=25, deadline=None)
    def test_members_order_does_not_matter_and_rows_sum_to_one(self, seed: int, members: int, classes: int):
        rng = np.random.default_rng(seed)
        probabilities = [rng.dirichlet(np.ones(classes), 8) for _ in range(members)]
        matrix = rng.dirichlet(np.ones(members), classes).T
        names, turn = tuple(map(str, range(members))), rng.permutation(members)
        form = FORMS["class-weights"]
        output = form.combine(probabilities, Mixing(names, (1 / members,) * members, class_weights=tuple(map(tuple, matrix))))
        turned = Mixing(names, (1 / members,) * members, class_weights=tuple(map(tuple, matrix[turn])))
        np.testing.assert_allclose(form.combine([probabilities[i] for i in turn], turned), output, atol=1e-12)
        np.testing.assert_allclose(output.sum(axis=1), 1, atol=1e-12)


class TestRefused:
    @pytest.mark.parametrize(
        ("matrix", "message"),
        [
            (((1, 1, 1),), "class weights have 1 rows for 2 members: give one row a member"),
            (((0.5, 0.5), (0.5, 0.5)), "class weights of a are 2 for 3 classes: give one a class"),
            (((0.5, 0.5, 0.5), (0.5, 0.5)), "class weights of b are 2 for 3 classes: give one a class"),
            (((0.5, float("nan"), 1), (0.5, 1, 0)), "the weight of a for class 'q' is nan: give a number from 0 to 1"),
            (((1.5, 0, 1), (-0.5, 1, 0)), "the weight of b for class 'p' is -0.5: give a number from 0 to 1"),
            (((0.5, 0, 0), (0.5, 0, 1)), "the weights for class 'q' are all zero: at least one member must count"),
            (((0.5, 0.5, 0.5), (0.5, 0.5, 0.7)), "the weights for class 'r' sum to 1.2, expected 1: pass --normalize"),
        ],
    )
    def test_matrix(self, matrix: Sequence[Sequence[float]], message: str):
        with pytest.raises(FusionError) as info:
            check_class_weights(matrix, ("a", "b"), ("p", "q", "r"), 3, (None, None))
        assert str(info.value) == message

    def test_two_decimals_are_enough_and_any_sum_on_request(self):
        third = check_class_weights([(0.33, 1)] * 3, "abc", None, 2, (None,) * 3, normalize=True)
        assert np.array(third).sum(axis=0) == pytest.approx([1, 1])
        assert check_class_weights([(3, 1), (1, 1)], "ab", None, 2, (None,) * 2, normalize=True) == ((0.75, 0.5), (0.25, 0.5))

    def test_with_other_choices(self, three: list[OnnxFile]):
        with pytest.raises(
            FusionError, match="class-weights takes a weight a member and class: give --class-weights FILE or --fit"
        ):
            plan_fusion(three, combine="class-weights", weights=(0.2, 0.3, 0.5))
        with pytest.raises(FusionError, match="--combine logits takes no weights by class"):
            plan_fusion(three, combine="logits", class_weights=MATRIX)
        with pytest.raises(FusionError, match="weights and class weights exclude each other"):
            plan_fusion(three, weights=(0.2, 0.3, 0.5), class_weights=MATRIX)


class TestFile:
    def read(self, folder: Path, text: str, class_names: Sequence[str] | None = ("p", "q")) -> Any:
        (folder / "weights.csv").write_text(text, encoding="utf-8")
        return read_class_weights(folder / "weights.csv", ("a", "b"), class_names, 2)

    def test_members_and_classes_in_any_order(self, tmp_path: Path):
        assert self.read(tmp_path, "member,q,p\nb,0.3,0.9\na, 0.7 ,0.1\n\n") == ((0.1, 0.7), (0.9, 0.3))
        assert self.read(tmp_path, "\ufeffmember,0,1\na,1,0\nb,0,1\n", None) == ((1, 0), (0, 1))
        assert self.read(tmp_path, 'member,p,"q"\r\na,1,0\r\nb,0,1\r\n') == ((1, 0), (0, 1))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("member,p,q\n", "1 lines, expected a header of class names and a line a member"),
            ("member,p,z\na,1,0\nb,0,1\n", "classes in the header: 'z' is unknown; expected p, q, each once"),
            ("member,p\na,1\nb,0\n", "classes in the header: 'q' is missing; expected p, q, each once"),
            ("member,p,q,q\na,1,0,0\nb,0,1,0\n", "classes in the header: 'q' is given twice; expected p, q, each once"),
            ("member,p,q\na,1,0\nc,0,1\n", "members: 'c' is unknown; expected a, b, each once"),
            ("member,p,q\na,1,0\n", "members: 'b' is missing; expected a, b, each once"),
            ("member,p,q\na,1,0\nb,0\n", "the line of b has 1 weights for 2 classes"),
            ("member,p,q\na,1,0\nb,0,one\n", "the weight of b for class 'q' is 'one', expected a number"),
        ],
    )
    def test_refused(self, tmp_path: Path, text: str, message: str):
        with pytest.raises(FusionError) as info:
            self.read(tmp_path, text)
        assert str(info.value) == f"{tmp_path / 'weights.csv'}: {message}"

    def test_no_such_file(self, tmp_path: Path):
        with pytest.raises(FusionError, match=r"none.csv: cannot be read as a CSV table \(No such file or directory\)"):
            read_class_weights(tmp_path / "none.csv", ("a", "b"), None, 2)


def specialists(rows: int, seed: int = 0, counts: Sequence[int] | None = None) -> tuple[list[Array], Array]:
    """Probabilities of two members, each of which sees only one half of the six classes clearly."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, rows) if counts is None else np.repeat(np.arange(6), counts)
    clear = np.array([[3.0] * 3 + [0.5] * 3, [0.5] * 3 + [3.0] * 3])
    noise = rng.standard_normal((2, len(labels), 6))
    return [softmax(strength * np.eye(6)[labels] + one, axis=1) for strength, one in zip(clear, noise, strict=True)], labels


def nll(matrix: Any, probabilities: list[Array], labels: Array) -> float:
    return nll_of(by_hand(probabilities, matrix), labels)


def nll_of(probabilities: Array, labels: Array) -> float:
    return float(-np.mean([np.log(row[label]) for row, label in zip(probabilities, labels, strict=True)]))


class TestFit:
    def test_members_count_more_for_the_classes_that_they_know(self):
        matrix = np.array(fit_class_weights(*specialists(600), (0.5, 0.5)))
        assert (matrix[0, :3] > 0.6).all()
        assert (matrix[0, 3:] < 0.4).all()
        np.testing.assert_allclose(matrix.sum(axis=0), 1, atol=1e-12)
        fresh = specialists(2000, seed=1)
        assert nll(matrix, *fresh) < nll(np.full((2, 6), 0.5), *fresh) - 0.02

    def test_it_is_the_minimum_that_the_docstring_states(self):
        """No weight of a class can be moved to either side without the penalised loss growing."""
        (first, second), labels = specialists(60)
        matrix = np.array(fit_class_weights([first, second], labels, (0.6, 0.4)))

        counts = np.array([(labels == position).sum() for position in range(6)])
        given = (0.6 * first + 0.4 * second).sum(axis=0)

        def loss(tried: Array) -> float:
            divergence = (np.array([[0.6], [0.4]]) * np.log(np.array([[0.6], [0.4]]) / tried)).sum(axis=0)
            prior = 20 * np.maximum(1, given / counts) * divergence
            return 60 * nll(tried, [first, second], labels) + float(prior.sum())

        for position in range(6):
            for step in (-0.01, 0.01):
                moved = matrix.copy()
                moved[:, position] += (step, -step)
                assert loss(moved) > loss(matrix)

    def test_classes_with_few_rows_stay_near_the_plain_weights(self):
        probabilities, labels = specialists(0, counts=(1, 300, 300, 300, 0, 300))
        matrix = np.array(fit_class_weights(probabilities, labels, (0.5, 0.5)))
        assert abs(matrix[0, 0] - 0.5) < 0.1 < abs(matrix[0, 1] - 0.5)
        assert matrix[:, 4].tolist() == [0.5, 0.5]

    def test_members_that_are_alike_keep_the_plain_weights_nearly(self):
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 6, 300)
        twins = [softmax(2 * np.eye(6)[labels] + rng.standard_normal((300, 6)), 1)] * 2
        assert np.abs(np.array(fit_class_weights(twins, labels, (0.3, 0.7))) - [[0.3], [0.7]]).max() < 1e-3

    @given(seed=st.integers(0, 1000), rows=st.integers(1, 40), weight=st.sampled_from([0.0, 0.2, 0.5, 1.0]))
    @settings(max_examples=40, deadline=None)
    def test_never_worse_than_the_plain_weights(self, seed: int, rows: int, weight: float):
        probabilities, labels = specialists(rows, seed)
        matrix = fit_class_weights(probabilities, labels, (weight, 1 - weight))
        plain = [(weight,) * 6, (1 - weight,) * 6]
        assert nll(matrix, probabilities, labels) <= nll(plain, probabilities, labels) + 1e-9
        np.testing.assert_allclose(np.sum(matrix, axis=0), 1, atol=1e-12)

    def test_end_to_end(self, three: list[OnnxFile], fuse_files: FuseFiles):
        logits = run(three[0]) + run(three[1]) + np.random.default_rng(0).gumbel(size=(len(ROWS), 3))
        rows = Rows({"x": ROWS}, logits.argmax(1))
        fit = fit_fusion(three, [rows] * 3, "class-weights", temperature=True)
        fused = fuse_files(three, fit=fit)
        assert fused.plan.form == "class-weights"
        assert nll_of(run(fused.file), rows.required_labels()) == pytest.approx(fit.loss, abs=1e-5)
        assert fit.gain is not None
        assert fit.gain.amount > 0
        assert fit.loss <= min(fit.member_loss)
        assert fit_fusion(three, [rows] * 3, "class-weights", search="greedy").class_weights is not None

    def test_a_member_that_lacks_a_class_gets_no_weight_there(self, write_linear: WriteModel, fuse_files: FuseFiles):
        files = [
            write_linear("abc", classes=3, contract=contract_of("abc")),
            write_linear("ca", classes=2, seed=2, contract=contract_of("ca")),
        ]
        labels = (run(files[0]) + np.random.default_rng(0).gumbel(size=(len(ROWS), 3))).argmax(1)
        fit = fit_fusion(files, [Rows({"x": ROWS}, labels)] * 2, "class-weights")
        assert fit.class_weights is not None
        assert [column[1] for column in fit.class_weights] == [1, 0]
        assert nll_of(run(fuse_files(files, fit=fit).file), labels) == pytest.approx(fit.loss, abs=1e-5)
