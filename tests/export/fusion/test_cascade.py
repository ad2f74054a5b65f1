from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from scipy.special import softmax

from monograph.errors import DataError, FusionError, ParityError
from monograph.export.fusion import FUSION_KEY
from monograph.export.fusion.cascade import GATES, Cascaded, fit_cascade, fuse_cascade, lint_rows, plan_cascade
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.runtime.session import open_session

Write = Callable[..., OnnxFile]
SCORES = {
    "max-probability": lambda p: p.max(1),
    "margin": lambda p: np.diff(np.sort(p, 1)[:, -2:], axis=1)[:, 0],
    "entropy": lambda p: 1 + (p * np.log(p)).sum(1) / np.log(p.shape[1]),
}


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Cascaded]:
    def build_one(files: Sequence[OnnxFile], *, rows: Rows | None = None, **choices: Any) -> Cascaded:
        return fuse_cascade(plan_cascade(files, **choices), tmp_path / "cascade.onnx", rows=rows)

    return build_one


def _features(count: int = 64, features: int = 4) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((count, features), dtype=np.float32) * 2


def _run(file: OnnxFile, x: np.ndarray) -> np.ndarray:
    (output,) = open_session(file.path)({file.contract.inputs[0].name: x}).values()
    return output.astype(np.float64)


def _labelled(file: OnnxFile, x: np.ndarray) -> Rows:
    return Rows({"x": x}, _run(file, x).argmax(1))


@pytest.mark.parametrize("gate", GATES)
def test_rows_below_the_threshold_are_the_large_members(write_linear: Write, build: Callable[..., Cascaded], gate: str) -> None:
    small, large = write_linear("small", seed=1), write_linear("large", seed=2)
    cascade = build([small, large], gate=gate, thresholds=[0.6])
    for batch_size in (1, 2, 5, 16, 64):
        x = _features(batch_size)
        hard = SCORES[gate](softmax(_run(small, x), axis=1)) < 0.6
        expected = np.where(hard[:, None], _run(large, x), _run(small, x))
        np.testing.assert_allclose(_run(cascade.file, x), expected, atol=1e-5)
    assert 0 < hard.sum() < len(x)
    assert cascade.file.contract.kind is Kind.LOGITS
    assert {(case.case, case.batch_size) for case in cascade.cases} == {
        (case, size) for case in ("easy", "hard", "mixed") for size in (1, 2, 5, 16)
    } - {("mixed", 1)}


def test_threshold_zero_is_the_small_member_and_above_one_the_large(write_linear: Write, build: Callable[..., Cascaded]) -> None:
    small, large, x = write_linear("small", seed=1), write_linear("large", seed=2), _features()
    np.testing.assert_allclose(_run(build([small, large], thresholds=[0.0]).file, x), _run(small, x), atol=1e-5)
    always = build([small, large], thresholds=[1.5])
    np.testing.assert_allclose(_run(always.file, x), _run(large, x), atol=1e-5)
    assert {case.case for case in always.cases if case.thresholds == (1.5,)} == {"hard"}
    assert {case.case for case in always.cases} == {"easy", "hard", "mixed"}
    assert "by other thresholds all easy" not in always.describe()
    assert "by other thresholds easy, mixed" in always.describe()


def test_weights_beside_the_file_are_taken_in(write_model: Write, build: Callable[..., Cascaded]) -> None:
    text = (
        """<ir_version: 8, opset_import: ["": 20]> m (float[batch, 4] x) => (float[batch, 3] logits) { logits = MatMul(x, w) }"""
    )
    draw = np.random.default_rng(5).standard_normal
    files = [write_model(name, text, {"w": draw((4, 3), np.float32)}, external=f"{name}.data") for name in ("small", "large")]
    cascade = build(files, thresholds=[1.5])  # the proof builds it with other thresholds too
    for file in files:
        file.path.unlink()
        file.path.with_name(f"{file.path.stem}.data").unlink()
    assert _run(cascade.file, _features()).shape == (64, 3)


def test_no_rows_at_all_give_no_rows(write_linear: Write, build: Callable[..., Cascaded]) -> None:
    cascade = build([write_linear("small", seed=1), write_linear("large", seed=2)], thresholds=[0.6])
    assert _run(cascade.file, _features(0)).shape == (0, 3)


def test_a_row_that_is_not_a_number_goes_to_the_large_member(write_linear: Write, write_model: Write, build: Any) -> None:
    large = write_model(
        "large",
        """<ir_version: 8, opset_import: ["": 20]> large (float[batch, 4] x) => (float[batch, 3] logits)
        { missing = IsNaN(x)
          zero = Constant<value_float = 0.0>()
          kept = Where(missing, zero, x)
          logits = MatMul(kept, w) }""",
        {"w": np.ones((4, 3), np.float32)},
    )
    cascade = build([write_linear("small", seed=1), large], thresholds=[0.1])
    x = _features(2)
    x[1, 0] = np.nan
    assert np.isfinite(_run(cascade.file, x)).all()


def test_three_stages(write_linear: Write, build: Callable[..., Cascaded]) -> None:
    files = [write_linear(name, seed=seed) for seed, name in enumerate(("small", "middle", "large"), 1)]
    cascade = build(files, gate="margin", thresholds=[0.7, 0.8])
    x = _features(200)
    outputs = [_run(file, x) for file in files]
    scores = [SCORES["margin"](softmax(output, axis=1)) for output in outputs]
    depths = np.where(scores[0] >= 0.7, 0, np.where(scores[1] >= 0.8, 1, 2))
    assert set(depths) == {0, 1, 2}
    np.testing.assert_allclose(_run(cascade.file, x), np.stack(outputs)[depths, np.arange(200)], atol=1e-5)
    assert any(min(case.answered) > 0 for case in cascade.cases if case.case == "mixed" and case.batch_size == 16)


def test_classes_of_another_order_come_back_in_the_first_members(write_linear: Write, build: Callable[..., Cascaded]) -> None:
    def contract(*names: str) -> Contract:
        x, logits = TensorSpec("x", "float32", ("batch", 4)), TensorSpec("logits", "float32", ("batch", 3))
        return Contract((x,), (logits,), Kind.LOGITS, names)

    small = write_linear("small", seed=1, contract=contract("a", "b", "c"))
    large = write_linear("large", seed=2, contract=contract("c", "a", "b"))
    cascade = build([small, large], thresholds=[1.5])
    assert cascade.file.contract.class_names == ("a", "b", "c")
    np.testing.assert_allclose(_run(cascade.file, _features()), _run(large, _features())[:, [1, 2, 0]], atol=1e-5)


def test_members_of_different_kinds_give_probabilities(write_linear: Write, write_model: Write, build: Any) -> None:
    small = write_linear("small", seed=1)
    text = """<ir_version: 8, opset_import: ["": 17]> large (float[batch, 4] x) => (float[batch, 3] probabilities)
    { z = MatMul(x, w)  probabilities = Softmax<axis = -1>(z) }"""
    shapes = TensorSpec("x", "float32", ("batch", 4)), TensorSpec("probabilities", "float32", ("batch", 3))
    weights = np.random.default_rng(3).standard_normal((4, 3), dtype=np.float32)
    large = write_model("large", text, {"w": weights}, contract=Contract(shapes[:1], shapes[1:], Kind.PROBABILITIES))
    cascade = build([small, large], thresholds=[0.8])
    assert cascade.file.contract.kind is Kind.PROBABILITIES
    np.testing.assert_allclose(_run(cascade.file, _features()).sum(1), 1, atol=1e-5)


def test_an_lstm_that_would_end_the_process_on_zero_rows(write_linear: Write, write_model: Write, build: Any) -> None:
    text = """<ir_version: 8, opset_import: ["": 20]> large (float[batch, 4] x) => (float[batch, 3] logits)
    { axes = Constant<value_ints = [0]>()
      sequence = Unsqueeze(x, axes)
      all, last, cell = LSTM<hidden_size = 3>(sequence, w, r)
      logits = Squeeze(last, axes) }"""
    rng = np.random.default_rng(4)
    arrays = {"w": rng.standard_normal((1, 12, 4), np.float32), "r": rng.standard_normal((1, 12, 3), np.float32)}
    large = write_model("large", text, arrays)
    cascade = build([write_linear("small", seed=1), large], thresholds=[0.6])
    x = _features()
    easy = np.flatnonzero(softmax(_run(write_linear("small", seed=1), x), axis=1).max(1) > 0.61)
    assert len(easy)
    assert _run(cascade.file, x[easy]).shape == (len(easy), 3)
    assert cascade.plan.cost.worst == pytest.approx((4 * 3 + 4 * 3 * (4 + 3)) / (4 * 3 * (4 + 3)))


def test_rows_of_every_input_are_sent_on_and_cast(write_model: Write, build: Any) -> None:
    def classifier(name: str, ids: str, seed: int) -> OnnxFile:
        text = f"""<ir_version: 8, opset_import: ["": 20]>
        g ({ids}[batch, length] input_ids, int64[batch, length] attention_mask) => (float[batch, 3] logits)
        {{ words = Gather(table, input_ids)  axes = Constant<value_ints = [2]>()  ones = Cast<to = 1>(attention_mask)
          mask = Unsqueeze(ones, axes)  kept = Mul(words, mask)  along = Constant<value_ints = [1]>()
          logits = ReduceSum<keepdims = 0>(kept, along) }}"""
        file = write_model(name, text, {"table": np.random.default_rng(seed).standard_normal((2, 3), np.float32)})
        return replace(file, contract=replace(file.contract, kind=Kind.LOGITS))

    small, large = classifier("small", "int64", 1), classifier("large", "int32", 2)
    cascade = build([small, large], thresholds=[0.9])
    ids = np.random.default_rng(3).integers(0, 2, (32, 6))
    mask = (np.arange(6) < np.arange(32)[:, None] % 6 + 1).astype(np.int64)
    outputs = [
        open_session(file.path)({"input_ids": ids.astype(dtype), "attention_mask": mask})["logits"]
        for file, dtype in ((small, np.int64), (large, np.int32))
    ]
    hard = softmax(outputs[0], axis=1).max(1) < 0.9
    assert 0 < hard.sum() < 32
    got = open_session(cascade.file.path)({"input_ids": ids, "attention_mask": mask})["logits"]
    np.testing.assert_allclose(got, np.where(hard[:, None], outputs[1], outputs[0]), atol=1e-5)


def test_onnx_runtime_optimises_the_large_member_inside_the_branch(write_model: Write, build: Any, tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 20]> g (float[batch, 1, 4, 4] x) => (float[batch, 3] logits)
    { c = Conv<kernel_shape = [4, 4]>(x, w)  n = BatchNormalization(c, s, s, s, s)  logits = Flatten(n) }"""
    draw = np.random.default_rng(6).standard_normal
    files = [
        write_model(name, text, {"w": draw((3, 1, 4, 4), np.float32), "s": np.ones(3, np.float32)}) for name in ("small", "large")
    ]
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(build(files, thresholds=[0.5]).file.path), options, providers=["CPUExecutionProvider"])
    nodes = [node.op_type for node in ir.load(tmp_path / "optimised.onnx").graph.all_nodes()]
    assert "If" in nodes
    assert "BatchNormalization" not in nodes


MIXING = """<ir_version: 8, opset_import: ["": 20]> large (float[batch, 4] x) => (float[batch, 3] logits)
{ [across_rows] share = Softmax<axis = 0>(x)  logits = MatMul(share, w) }"""


def test_an_operator_across_rows_is_named_and_not_written(write_linear: Write, write_model: Write, tmp_path: Path) -> None:
    large = write_model("large", MIXING, {"w": np.ones((4, 3), np.float32)})
    plan = plan_cascade([write_linear("small", seed=1), large], thresholds=[0.6])
    assert "Softmax 'across_rows' works over axis 0" in plan.describe()
    with pytest.raises(ParityError, match="may not take a part of the rows: large: Softmax 'across_rows'"):
        fuse_cascade(plan, tmp_path / "cascade.onnx")
    assert not (tmp_path / "cascade.onnx").exists()


@pytest.mark.parametrize(
    ("body", "shape", "named"),
    [
        ("axes = Constant<value_ints = [0]>()  y = ReduceMean<keepdims = 0>(x, axes)", "[k]", "reduces axis 0"),
        ("y = ReduceMax<keepdims = 1>(x)", "[j, k]", "reduces all axes"),
        ("y = Transpose<perm = [1, 0]>(x)", "[j, k]", "moves axis 0"),
        ("shape = Constant<value_ints = [2, 2, 2]>()  y = Reshape(x, shape)", "[j, k, l]", "has the batch size 2 baked in"),
        ("y, m, v = BatchNormalization<training_mode = 1>(x, s, s, s, s)", "[j, k]", "in training mode"),
        ("y = Concat<axis = 0>(x, x)", "[j, k]", "works over axis 0"),
    ],
)
def test_linter_names(write_model: Write, body: str, shape: str, named: str) -> None:
    text = f'<ir_version: 8, opset_import: ["": 20]> g (float[batch, 4] x) => (float{shape} y) {{ {body} }}'
    findings = lint_rows(write_model("model", text, {"s": np.ones(4, np.float32)}).path)
    assert [named in finding.reason for finding in findings] == [True]


def test_linter_passes_what_keeps_rows_apart(write_model: Write) -> None:
    text = """<ir_version: 8, opset_import: ["": 20]> g (float[batch, 4] x) => (float[batch, 2] y)
    { shape = Constant<value_ints = [-1, 2, 2]>()  cube = Reshape(x, shape)  turned = Transpose<perm = [0, 2, 1]>(cube)
      share = Softmax<axis = -1>(turned)  axes = Constant<value_ints = [1]>()  y = ReduceSum<keepdims = 0>(share, axes) }"""
    assert lint_rows(write_model("model", text).path) == ()


def test_training_mode_and_fixed_batches_are_refused(write_linear: Write, write_model: Write) -> None:
    text = """<ir_version: 8, opset_import: ["": 20]> g (float[batch, 4] x) => (float[batch, 4] logits)
    { logits, m, v = BatchNormalization<training_mode = 1>(x, s, s, s, s) }"""
    training = write_model("training", text, {"s": np.ones(4, np.float32)})
    with pytest.raises(FusionError, match="training cannot take a part of the rows: BatchNormalization"):
        plan_cascade([write_linear("small", classes=4), training], thresholds=[0.5])
    with pytest.raises(FusionError, match=r"fixed takes .* a fixed batch"):
        plan_cascade([write_linear("small"), write_linear("fixed", batch=3)], thresholds=[0.5])


def test_a_batch_fixed_at_one_row(write_linear: Write, build: Callable[..., Cascaded]) -> None:
    small, large = write_linear("small", seed=1, batch=1), write_linear("large", seed=2, batch=1)
    cascade = build([small, large], thresholds=[0.6])
    assert {case.case for case in cascade.cases} == {"easy", "hard"}
    for row in _features(8)[:, None]:
        expected = large if softmax(_run(small, row), axis=1).max() < 0.6 else small
        np.testing.assert_allclose(_run(cascade.file, row), _run(expected, row), atol=1e-5)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"thresholds": [0.5, 0.6]}, "2 thresholds .* for 2 members: give 1"),
        ({"thresholds": [float("nan")]}, "not all 0 or more"),
        ({"thresholds": [-1.0]}, "not all 0 or more"),
        ({}, "neither of thresholds and a fit"),
        ({"thresholds": [0.5], "gate": "luck"}, "unknown gate 'luck': choose --gate from max-probability, margin, entropy"),
    ],
)
def test_plans_that_cannot_be(write_linear: Write, choices: dict[str, Any], message: str) -> None:
    with pytest.raises(FusionError, match=message):
        plan_cascade([write_linear("small"), write_linear("large")], **choices)


@pytest.mark.parametrize("gate", GATES)
def test_fit_keeps_the_allowed_loss_with_the_fewest_hard_rows(write_linear: Write, build: Any, gate: str) -> None:
    small, large, x = write_linear("small", seed=1), write_linear("large", seed=2), _features(400)
    rows = _labelled(large, x)
    fit = fit_cascade([small, large], [rows, rows], gate=gate, max_drop=5.0, confidence=0)
    assert not fit.is_promised
    assert fit.member_accuracy[1] == 1.0
    assert fit.cascade_accuracy >= 0.95
    assert 0 < fit.shares[1] < 1
    cascade = build([small, large], fit=fit, rows=rows)
    right = _run(cascade.file, x).argmax(1) == rows.labels
    assert right.mean() == pytest.approx(fit.cascade_accuracy, abs=0.003)
    # One hard row fewer would lose too much.
    scores = GATES[gate].score(softmax(_run(small, x) / fit.temperatures[0], axis=1))
    surest_hard = np.flatnonzero(scores < fit.thresholds[0])[np.argmax(scores[scores < fit.thresholds[0]])]
    hard = (scores < fit.thresholds[0]) & (np.arange(400) != surest_hard)
    fewer = np.where(hard, _run(large, x).argmax(1), _run(small, x).argmax(1)) == rows.labels
    assert fewer.mean() < 0.95
    assert cascade.proof.worst.rows == "real"
    assert {case.thresholds for case in cascade.cases} == {fit.thresholds}


def test_fit_of_three_stages_is_recorded_with_the_file(write_linear: Write, build: Any) -> None:
    files = [write_linear(name, seed=seed) for seed, name in enumerate(("small", "middle", "large"), 1)]
    rows = _labelled(files[2], _features(300))
    fit = fit_cascade(files, [rows] * 3, max_drop=4.0)
    assert fit.cascade_accuracy >= 0.96
    cascade = build(files, fit=fit, rows=rows)
    record = json.loads(read_onnx(cascade.file.path).metadata[FUSION_KEY])
    assert record["form"] == "cascade"
    assert record["thresholds"] == list(fit.thresholds)
    assert record["fit"]["rows_sha256"] == rows.sha256()
    assert [member["sha256"] for member in record["members"]] == [file.sha256 for file in files]
    assert f"{fit.shares[2]:.1%} of rows in the fit" in cascade.plan.describe()


def test_temperature_of_overconfident_logits_is_found(write_linear: Write, write_model: Write) -> None:
    large, x = write_linear("large", seed=2), _features(2000)
    probabilities = softmax(_run(large, x), axis=1)
    rng = np.random.default_rng(0)
    labels = np.array([rng.choice(3, p=row / row.sum()) for row in probabilities])
    text = """<ir_version: 8, opset_import: ["": 20]> loud (float[batch, 4] x) => (float[batch, 3] logits)
    { z = Gemm(x, w, b)  four = Constant<value_float = 4.0>()  logits = Mul(z, four) }"""
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(large.path).graph.initializer}
    loud = write_model("loud", text, weights)
    fit = fit_cascade([loud, large], [Rows({"x": x}, labels)] * 2)
    assert fit.temperatures == pytest.approx((4.0, 1.0), rel=0.15)


def test_fit_refuses_other_gates_and_labels(write_linear: Write) -> None:
    files = [write_linear("small", seed=1), write_linear("large", seed=2)]
    rows = _labelled(files[1], _features())
    fit = fit_cascade(files, [rows, rows])
    with pytest.raises(FusionError, match="fit again for 'margin'"):
        plan_cascade(files, fit=fit, gate="margin")
    with pytest.raises(DataError, match="labels run from 9 to 9"):
        fit_cascade(files, [replace(rows, labels=np.full(64, 9))] * 2)
    with pytest.raises(FusionError, match="max-drop"):
        fit_cascade(files, [rows, rows], max_drop=-1)


def test_rows_without_an_input_are_refused(write_linear: Write, build: Callable[..., Cascaded]) -> None:
    with pytest.raises(DataError, match="has the columns z, but the cascade takes 'x' too"):
        build([write_linear("small"), write_linear("large")], thresholds=[0.5], rows=Rows({"z": _features()}))


def test_cost_is_stated_before_building(write_linear: Write) -> None:
    files = [write_linear("small", seed=1), write_linear("large", seed=2)]
    rows = _labelled(files[1], _features(400))
    fit = fit_cascade(files, [rows, rows], max_drop=5.0)
    cost = plan_cascade(files, fit=fit).cost
    assert cost.member_macs == (12, 12)
    assert cost.worst == 2.0
    assert cost.expected == pytest.approx(1 + fit.shares[1])
    assert "expected unknown without a fit, worst case 2.000" in plan_cascade(files, thresholds=[0.5]).describe()
