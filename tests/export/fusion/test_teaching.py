import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from monograph.errors import FusionError, ParityError, SourceError
from monograph.export.fusion import FUSION_KEY, Fused, fit_fusion, fuse, plan_fusion
from monograph.export.fusion.record import MemberOutput, match_members, member_outputs, plan_again, read_record
from monograph.export.fusion.teaching import teaching_path, with_member_outputs
from monograph.export.trace import PROOF_KEY
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
WriteModel = Callable[..., OnnxFile]
Teach = Callable[..., tuple[Fused, Fused]]

X = np.random.default_rng(5).standard_normal((7, 4)).astype(np.float32)
MATRIX = np.random.default_rng(7).standard_normal((4, 3), dtype=np.float32)
FEATURES = (TensorSpec("x", "float32", ("batch", 4)),)


def classes(names: str, kind: Kind = Kind.LOGITS) -> Contract:
    return Contract(FEATURES, (TensorSpec("logits", "float32", ("batch", len(names))),), kind, tuple(names))


def run(file: OnnxFile | Path, x: Array = X) -> dict[str, Array]:
    return open_session(file if isinstance(file, Path) else file.path)({"x": x})


@pytest.fixture
def teach(tmp_path: Path) -> Teach:
    """Write ``fused.onnx`` and its teaching graph."""

    def build(files: list[OnnxFile], *, rows: Rows | None = None, **choices: Any) -> tuple[Fused, Fused]:
        plan = plan_fusion(files, **choices)
        path = tmp_path / "out" / "fused.onnx"
        shipped = fuse(plan, path, rows=rows)
        return shipped, fuse(with_member_outputs(plan), teaching_path(path), rows=rows, shipped=path)

    return build


@pytest.fixture
def one_trunk(write_model: WriteModel) -> list[OnnxFile]:
    """Two linear heads on one trunk."""
    text = """<ir_version: 8, opset_import: ["": 20]>
    m (float[batch, 4] x) => (float[batch, 3] logits) { h = MatMul(x, trunk) r = Relu(h) logits = Gemm(r, w, b) }"""
    trunk = np.random.default_rng(1).standard_normal((4, 4), dtype=np.float32)
    return [
        write_model(name, text, {"trunk": trunk, "w": MATRIX * scale, "b": MATRIX[0]}) for name, scale in (("a", 1), ("b", -2))
    ]


@pytest.mark.parametrize("form", ["logits", "probs", "geometric", "vote"])
@pytest.mark.parametrize("share", [True, False])
def test_each_member_alone_and_the_fused_output(write_linear: WriteModel, teach: Teach, form: str, share: bool):
    files = [write_linear(name, seed=seed) for seed, name in enumerate("ab")]
    rows = Rows({"x": np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)})
    shipped, teaching = teach(files, rows=rows, combine=form, weights=(0.3, 0.7), temperatures=(2.0, 0.5), share=share)
    given = run(teaching.file)
    assert list(given) == [shipped.file.contract.output.name, "member_0_a_logits", "member_1_b_logits"]
    for name, file in zip(list(given)[1:], files, strict=True):
        assert given[name].dtype == np.float32
        np.testing.assert_allclose(given[name], run(file)["logits"], atol=1e-6)
    (fused,) = run(shipped.file).values()
    np.testing.assert_allclose(next(iter(given.values())), fused, atol=1e-6)
    assert member_outputs(teaching.file) == (
        MemberOutput("member_0_a_logits", Kind.LOGITS, 0.3, 2.0),
        MemberOutput("member_1_b_logits", Kind.LOGITS, 0.7, 0.5),
    )


def test_what_ships_has_no_such_outputs(write_linear: WriteModel, teach: Teach, tmp_path: Path):
    files = [write_linear("a"), write_linear("b", seed=1)]
    shipped, teaching = teach(files)
    fuse(plan_fusion(files), tmp_path / "alone" / "fused.onnx")
    assert shipped.file.path.read_bytes() == (tmp_path / "alone" / "fused.onnx").read_bytes()
    assert list(run(shipped.file)) == ["logits"]
    assert member_outputs(shipped.file) == ()
    assert teaching.file.path.name == "fused.teaching.onnx"


def test_the_contract_names_all_outputs(write_linear: WriteModel, teach: Teach):
    _, teaching = teach([write_linear("a"), write_linear("b", seed=1)], combine="probs")
    contract = read_onnx(teaching.file.path).contract
    assert contract.kind is Kind.PROBABILITIES
    assert [spec.describe() for spec in contract.outputs] == [
        "probabilities: float32 [batch x 3]",
        "member_0_a_logits: float32 [batch x 3]",
        "member_1_b_logits: float32 [batch x 3]",
    ]


def test_proven_beside_the_shipped_graph_and_the_members(write_linear: WriteModel, teach: Teach):
    _, teaching = teach([write_linear("a"), write_linear("b", seed=1)])
    proof = json.loads(teaching.file.metadata[PROOF_KEY])
    assert proof["reference"] == "fused.onnx and the members run apart"
    assert {(batch["output"], batch["batch_size"]) for batch in proof["batches"]} == {
        (name, size) for name in ("logits", "member_0_a_logits", "member_1_b_logits") for size in (1, 2, 5, 16)
    }


def test_a_shipped_graph_of_other_numbers_is_told(write_linear: WriteModel, tmp_path: Path):
    files = [write_linear("a"), write_linear("b", seed=1)]
    other = fuse(plan_fusion(files, weights=(0.9, 0.1)), tmp_path / "other.onnx")
    with pytest.raises(ParityError, match=r"fused\.teaching\.onnx does not compute the same as other\.onnx and the members"):
        fuse(with_member_outputs(plan_fusion(files)), tmp_path / "fused.teaching.onnx", shipped=other.file.path)
    assert not (tmp_path / "fused.teaching.onnx").exists()


class TestHeads:
    def test_heads_that_the_shipped_graph_folds_stay_apart(self, one_trunk: list[OnnxFile], teach: Teach):
        shipped, teaching = teach(one_trunk, weights=(0.25, 0.75))
        folded = [fused.cost.sharing.heads_folded for fused in (shipped, teaching) if fused.cost.sharing]
        assert folded == [2, 0]
        given = run(teaching.file)
        for name, file in zip(("member_0_a_logits", "member_1_b_logits"), one_trunk, strict=True):
            np.testing.assert_allclose(given[name], run(file)["logits"], atol=1e-5)
        np.testing.assert_allclose(given["logits"], run(shipped.file)["logits"], atol=1e-5)

    def test_the_trunk_still_runs_once(self, one_trunk: list[OnnxFile], teach: Teach):
        _, teaching = teach(one_trunk)
        assert [node.op_type for node in onnx.load(teaching.file.path).graph.node].count("Relu") == 1

    def test_members_run_apart_where_the_shipped_graph_batches_them(self, write_linear: WriteModel, teach: Teach):
        from monograph.export.fusion.horizontal.choice import ASKED

        files = [write_linear(name, seed=seed) for seed, name in enumerate("ab")]
        shipped, teaching = teach(files, combine="probs", horizontal=ASKED)
        assert (shipped.batching is None, teaching.batching is None) == (False, True)
        assert "horizontal" not in json.loads(teaching.file.metadata[FUSION_KEY])
        np.testing.assert_allclose(run(teaching.file)["member_1_b_logits"], run(files[1])["logits"], atol=1e-6)


class TestClasses:
    def test_come_in_the_fused_order(self, write_linear: WriteModel, teach: Teach):
        files = [write_linear("a", contract=classes("pqr")), write_linear("b", seed=1, contract=classes("rpq"))]
        _, teaching = teach(files, temperatures=(1.0, 3.0))
        np.testing.assert_allclose(run(teaching.file)["member_1_b_logits"], run(files[1])["logits"][:, [1, 2, 0]], atol=1e-6)

    def test_that_a_member_does_not_know_have_no_probability(
        self, write_linear: WriteModel, write_model: WriteModel, teach: Teach
    ):
        text = """<ir_version: 8, opset_import: ["": 20]>
        m (float[batch, 4] x) => (float[batch, 2] logits) { z = MatMul(x, w) logits = Softmax(z) }"""
        files = [
            write_linear("all", contract=classes("pqr")),
            write_linear("part", seed=1, classes=2, contract=classes("rp")),
            write_model("sure", text, {"w": MATRIX[:, :2]}, contract=classes("qr", Kind.PROBABILITIES)),
        ]
        _, teaching = teach(files, combine="probs", temperatures=(1.0, 2.0, 1.0))
        given = run(teaching.file)
        part, sure = run(files[1])["logits"], run(files[2])["logits"]
        expected = np.stack([part[:, 1], np.full(len(X), -np.inf), part[:, 0]], 1)
        np.testing.assert_allclose(given["member_1_part_logits"], expected, atol=1e-6)
        np.testing.assert_allclose(given["member_2_sure_probabilities"], np.insert(sure, 0, 0, 1), atol=1e-6)
        assert [one.kind for one in member_outputs(teaching.file)] == [Kind.LOGITS, Kind.LOGITS, Kind.PROBABILITIES]
        assert len([note for note in teaching.plan.notes if "does not know all classes" in note]) == 2

    def test_the_proof_sees_an_error_beside_them(self, write_linear: WriteModel, tmp_path: Path):
        """-1e9 in place of -inf would be the scale that errors are measured by."""
        files = [write_linear("all", contract=classes("pqr")), write_linear("part", seed=1, classes=2, contract=classes("rp"))]
        plan = with_member_outputs(plan_fusion(files, combine="probs"))
        teaching = fuse(plan, tmp_path / "teaching.onnx")
        scales = [batch.scale for batch in teaching.proof.batches if batch.output == "member_1_part_logits"]
        assert max(scales) < 100

    def test_weights_by_class_are_told(self, write_linear: WriteModel, teach: Teach):
        files = [write_linear("a", contract=classes("pqr")), write_linear("b", seed=1, contract=classes("pqr"))]
        _, teaching = teach(files, class_weights=((0.75, 0.5, 0.25), (0.25, 0.5, 0.75)))
        told = member_outputs(teaching.file)
        assert [one.class_weights for one in told] == [(0.75, 0.5, 0.25), (0.25, 0.5, 0.75)]
        assert [one.weight for one in told] == [0.5, 0.5]


class TestMembers:
    def test_of_weight_zero_are_left_out(self, write_linear: WriteModel, teach: Teach):
        files = [write_linear(name, seed=seed) for seed, name in enumerate(("kept", "dropped", "also"))]
        _, teaching = teach(files, weights=(0.5, 0, 0.5))
        assert [one.output for one in member_outputs(teaching.file)] == ["member_0_kept_logits", "member_2_also_logits"]

    def test_one_twice_has_two_outputs(self, write_linear: WriteModel, teach: Teach):
        file = write_linear("a")
        _, teaching = teach([file, file])
        given = run(teaching.file)
        assert list(given) == ["logits", "member_0_a_logits", "member_1_a-2_logits"]
        assert np.array_equal(given["member_0_a_logits"], given["member_1_a-2_logits"])

    def test_without_classes(self, write_model: WriteModel, teach: Teach):
        text = """<ir_version: 8, opset_import: ["": 20]>
        m (float[batch, 4] x) => (float[batch, 1] price) { price = MatMul(x, w) }"""
        contract = Contract(FEATURES, (TensorSpec("price", "float32", ("batch", 1)),), Kind.REGRESSION)
        files = [write_model(name, text, {"w": MATRIX[:, at : at + 1]}, contract=contract) for at, name in enumerate("ab")]
        _, teaching = teach(files)
        np.testing.assert_allclose(run(teaching.file)["member_1_b_regression"], run(files[1])["price"], atol=1e-6)

    def test_of_float16_come_in_float32(self, write_model: WriteModel, teach: Teach):
        text = """<ir_version: 8, opset_import: ["": 20]>
        m (float[batch, 4] x) => (float16[batch, 3] logits) { z = MatMul(x, w) logits = Cast<to = 10>(z) }"""
        files = [write_model(name, text, {"w": MATRIX * scale}) for name, scale in (("a", 1), ("b", 2))]
        _, teaching = teach(files)
        given = run(teaching.file)["member_1_b_logits"]
        assert given.dtype == np.float32
        np.testing.assert_allclose(given, run(files[1])["logits"], atol=1e-6)

    def test_names_that_are_taken(self, write_linear: WriteModel, teach: Teach):
        files = [write_linear(name, seed=seed, input_name="member_0_a_logits") for seed, name in enumerate("ab")]
        _, teaching = teach(files)
        assert [one.output for one in member_outputs(teaching.file)] == ["member_0_a_logits_", "member_1_b_logits"]


class TestStack:
    def test_has_a_combiner_and_no_weights(self, write_linear: WriteModel, tmp_path: Path):
        files = [write_linear("a"), write_linear("b", seed=1)]
        labels = np.random.default_rng(3).integers(0, 3, 60)
        rows = Rows({"x": np.random.default_rng(2).standard_normal((60, 4)).astype(np.float32)}, labels)
        plan = plan_fusion(files, fit=fit_fusion(files, [rows, rows], "stack"))
        shipped = fuse(plan, tmp_path / "fused.onnx")
        teaching = fuse(with_member_outputs(plan), tmp_path / "fused.teaching.onnx", shipped=shipped.file.path)
        assert [one.weight for one in member_outputs(teaching.file)] == [None, None]
        np.testing.assert_allclose(run(teaching.file)["member_0_a_logits"], run(files[0])["logits"], atol=1e-6)


class TestRecord:
    def test_the_plan_made_again_has_the_outputs(self, write_linear: WriteModel, teach: Teach):
        files = [write_linear("a"), write_linear("b", seed=1)]
        _, teaching = teach(files, weights=(0.25, 0.75))
        record = read_record(teaching.file)
        assert record is not None
        again = plan_again(record, teaching.file, match_members(record, files))
        assert again.contract == teaching.plan.contract

    def test_an_output_that_is_not_there(self, write_linear: WriteModel, teach: Teach):
        _, teaching = teach([write_linear("a"), write_linear("b", seed=1)])
        metadata: Mapping[str, str] = teaching.file.metadata
        renamed = {**metadata, FUSION_KEY: metadata[FUSION_KEY].replace("member_1_b", "member_1_c")}
        with pytest.raises(SourceError, match="name the output 'member_1_c_logits', its contract"):
            member_outputs(replace(teaching.file, metadata=renamed))

    def test_a_kind_that_is_none(self, write_linear: WriteModel, teach: Teach):
        _, teaching = teach([write_linear("a"), write_linear("b", seed=1)])
        metadata: Mapping[str, str] = teaching.file.metadata
        damaged = {**metadata, FUSION_KEY: metadata[FUSION_KEY].replace('"kind": "logits"', '"kind": "loggits"')}
        with pytest.raises(SourceError, match="is damaged"):
            member_outputs(replace(teaching.file, metadata=damaged))

    def test_a_model_that_is_no_fusion_has_none(self, write_linear: WriteModel):
        assert member_outputs(write_linear("a")) == ()


def test_outputs_side_by_side_are_refused(write_model: WriteModel):
    text = """<ir_version: 8, opset_import: ["": 20]>
    m (float[batch, 4] x) => (float[batch, 3] hidden) { hidden = MatMul(x, w) }"""
    files = [write_model(name, text, {"w": MATRIX * scale}) for name, scale in (("a", 1), ("b", 2))]
    with pytest.raises(FusionError, match="side by side, so the fused output holds each of them as it is"):
        with_member_outputs(plan_fusion(files, combine="concat"))
