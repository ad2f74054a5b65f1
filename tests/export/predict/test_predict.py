"""Parts, shares, members and dimensions of predictions on graphs small enough to count by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.tools.mobile_helpers.usability_checker import check_coreml_partitions, check_nnapi_partitions

from monograph.export.fusion import fuse, plan_fusion
from monograph.export.fusion.cascade import fuse_cascade, plan_cascade
from monograph.export.fusion.macs import count_macs, macs_by_node
from monograph.export.predict import RULE_BOOKS, RuleBook, predict
from monograph.export.predict.coreml import coreml
from monograph.export.predict.graph import show
from monograph.export.predict.nnapi import nnapi
from monograph.export.predict.predict import judge
from monograph.export.predict.xnnpack import XNNPACK
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.runtime.results import Prediction

Write = Callable[..., OnnxFile]
PICTURE = "(float[1, 4, 8, 8] x)"


def _weight(*shape: int) -> np.ndarray:
    return (np.arange(1, 1 + int(np.prod(shape))).reshape(shape) % 7 + 1).astype(np.float32)


@pytest.fixture
def predicted(write_text: Callable[..., Path]) -> Callable[..., Prediction]:
    def run(rules: RuleBook, text: str, arrays: Mapping[str, Any] | None = None, **sizes: int) -> Prediction:
        return predict(read_onnx(write_text(text, arrays)), rules, **sizes)

    return run


def _parts(prediction: Prediction) -> list[list[str]]:
    found: dict[int, list[str]] = {}
    for node in prediction.nodes:
        if node.partition is not None:
            found.setdefault(node.partition, []).append(node.op_type)
    return [sorted(found[index]) for index in sorted(found)]


def test_an_unsupported_node_in_a_chain_makes_two_parts(predicted: Callable[..., Prediction]):
    one = predicted(nnapi(), "(float[1, 4] x) => (float[1, 4] y) { a = Exp(x) b = Erf(a) y = Sigmoid(b) }")
    assert _parts(one) == [["Exp"], ["Sigmoid"]]
    assert one.partition_sizes == (1, 1)
    assert one.node_share == pytest.approx(2 / 3)
    assert one.reasons == {"NNAPI has no Erf": 1}


def test_a_branch_that_is_unsupported_does_not_split_what_can_run_before_it(predicted: Callable[..., Prediction]):
    text = "(float[1, 4] x) => (float[1, 4] y) { a = Exp(x) b = Erf(a) c = Sigmoid(a) d = Tanh(c) y = Add(b, d) }"
    assert _parts(predicted(nnapi(), text)) == [["Exp", "Sigmoid", "Tanh"], ["Add"]]


def test_two_branches_that_are_supported_are_one_part(predicted: Callable[..., Prediction]):
    text = "(float[1, 4] x) => (float[1, 4] y) { a = Exp(x) b = Tanh(a) c = Sigmoid(a) y = Add(b, c) }"
    assert _parts(predicted(nnapi(), text)) == [["Add", "Exp", "Sigmoid", "Tanh"]]


def test_a_graph_that_is_wholly_unsupported_has_no_parts(predicted: Callable[..., Prediction]):
    one = predicted(nnapi(), "(float[1, 4] x) => (float[1, 4] y) { y = Erf(x) }")
    assert (one.partition_sizes, one.node_share, one.macs_share) == ((), 0.0, None)


def test_nnapi_leaves_a_lone_reshape_to_the_processor(predicted: Callable[..., Prediction]):
    shape = {"s": np.array([4, 1])}
    alone = predicted(nnapi(), "(float[1, 4] x) => (float[4, 1] y) { a = Erf(x) y = Reshape(a, s) }", shape)
    assert alone.supported_count == 0
    assert "Reshape: a part that only moves data is not worth its copies" in alone.reasons
    followed = predicted(nnapi(), "(float[1, 4] x) => (float[4, 1] y) { e = Erf(x) a = Reshape(e, s) y = Exp(a) }", shape)
    assert _parts(followed) == [["Exp", "Reshape"]]


def test_the_share_of_the_work_is_counted_in_multiply_accumulates(predicted: Callable[..., Prediction]):
    # The first product takes 2·4·3 = 24, the second 2·3·5 = 30 of a computed matrix, which XNNPACK does not take.
    text = "(float[2, 4] x, float[3, 5] v) => (float[2, 5] y) { a = MatMul(x, w) y = MatMul(a, v) }"
    one = predicted(XNNPACK, text, {"w": _weight(4, 3)})
    assert [node.macs for node in one.nodes] == [24, 30]
    assert one.macs_share == pytest.approx(24 / 54)
    assert one.node_share == 0.5


def test_macs_by_node_sum_to_the_macs_of_the_model(write_text: Callable[..., Path]):
    text = """(float[n, 4, 8, 8] x) => (float[n, 3] y)
    { c = Conv(x, k) p = GlobalAveragePool(c) f = Flatten(p) y = Gemm(f, w) }"""
    path = write_text(text, {"k": _weight(6, 4, 3, 3), "w": _weight(6, 3)})
    model = onnx.load(path)
    for node in model.graph.node:
        node.name = f"the {node.op_type}"
    onnx.save(model, path)
    counts = macs_by_node(path)
    assert counts == {
        "the Conv": 6 * 36 * 4 * 9, "the GlobalAveragePool": 0, "the Flatten": 0, "the Gemm": 6 * 3,
    }  # fmt: skip
    assert sum(counts.values()) == count_macs(path)


def test_free_dimensions_are_fixed_and_the_file_as_it_stands_is_told_too(predicted: Callable[..., Prediction]):
    text = "(float[batch, time] x) => (float[batch, time] y) { y = Sigmoid(x) }"
    one = predicted(nnapi(), text, batch_size=2, sequence_length=16)
    assert one.fixed_dimensions == {"batch": 2, "time": 16}
    assert (one.node_share, one.free_node_share) == (1.0, 0.0)
    fixed = predicted(nnapi(), "(float[2, 16] x) => (float[2, 16] y) { y = Sigmoid(x) }")
    assert (fixed.fixed_dimensions, fixed.free_node_share) == ({}, 1.0)


def test_nodes_of_a_fused_graph_name_their_members(write_linear: Write, tmp_path: Path):
    members = [write_linear("one", seed=1), write_linear("two", seed=2)]
    fused = fuse(plan_fusion(members, share=False), tmp_path / "fused.onnx").file
    one = predict(fused, nnapi())
    served = {node.members for node in one.nodes}
    assert {("one",), ("two",), ("one", "two")} <= served
    assert one.macs_share == 1.0


@pytest.mark.parametrize("provider", RULE_BOOKS)
def test_the_large_member_of_a_cascade_stands_in_a_branch(write_linear: Write, tmp_path: Path, provider: str):
    members = [write_linear("small", seed=1), write_linear("large", seed=2)]
    cascade = fuse_cascade(plan_cascade(members, thresholds=[0.6]), tmp_path / "cascade.onnx").file
    one = predict(cascade, RULE_BOOKS[provider]({}))
    work = {node.members: node for node in one.nodes if node.macs}
    assert set(work) == {("small",), ("large",)}
    assert work[("small",)].is_supported
    choice = next(node for node in one.nodes if node.op_type == "If")
    assert choice.reason is not None
    assert "has no If" in choice.reason
    assert work[("large",)].is_supported == (provider == "XnnpackExecutionProvider")
    assert one.macs_share == (1.0 if provider == "XnnpackExecutionProvider" else 0.5)


class _Rows(CalibrationDataReader):
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.rows = iter([{"x": rng.standard_normal((1, 4, 8, 8), dtype=np.float32)} for _ in range(4)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.rows, None)


@pytest.mark.parametrize(
    ("activations", "weights", "taken"),
    [(QuantType.QUInt8, QuantType.QUInt8, ("nnapi", "xnnpack")), (QuantType.QInt8, QuantType.QInt8, ("xnnpack",))],
)
def test_quantised_convolutions_are_taken_as_one_with_what_quantises_them(
    write_text: Callable[..., Path], tmp_path: Path, activations: QuantType, weights: QuantType, taken: tuple[str, ...]
):
    path = write_text(f"{PICTURE} => (float[1, 6, 6, 6] y) {{ y = Conv(x, w, b) }}", {"w": _weight(6, 4, 3, 3), "b": _weight(6)})
    output = tmp_path / "quantised.onnx"
    quantize_static(path, output, _Rows(), quant_format=QuantFormat.QDQ, activation_type=activations, weight_type=weights)
    file = read_onnx(output)
    for name, rules in (("nnapi", nnapi()), ("xnnpack", XNNPACK), ("coreml", coreml("NeuralNetwork"))):
        conv = next(node for node in predict(file, rules).nodes if node.op_type == "Conv")
        assert conv.is_supported == (name in taken), (name, conv.reason)


@pytest.mark.parametrize(
    ("text", "arrays"),
    [
        ("(float[1, 4] x) => (float[1, 4] y) { a = Exp(x) b = Erf(a) y = Sigmoid(b) }", {}),
        (f"{PICTURE} => (float[1, 6, 6, 6] y) {{ c = Conv(x, w) y = Relu(c) }}", {"w": _weight(6, 4, 3, 3)}),
        ("(float[1, 4] x) => (float[1, 4] y) { a = Exp(x) b = Erf(a) c = Sigmoid(a) d = Tanh(c) y = Add(b, d) }", {}),
        ("(float[2, 4] x) => (float[2, 3] y) { a = Gemm(x, w, b) y = Softmax(a) }", {"w": _weight(4, 3), "b": _weight(3)}),
    ],
)
def test_where_only_the_lists_decide_onnx_runtimes_own_checker_agrees(
    write_text: Callable[..., Path], text: str, arrays: Mapping[str, Any]
):
    path = write_text(text, arrays)
    proto = show(path, {}).proto
    for rules, checked in (
        (nnapi(), check_nnapi_partitions(proto, True)),
        (coreml(), check_coreml_partitions(proto, True, "coreml_supported_mlprogram_ops.md")),
        (coreml("NeuralNetwork"), check_coreml_partitions(proto, True, "coreml_supported_neuralnetwork_ops.md")),
    ):
        one = predict(read_onnx(path), rules)
        assert one.supported_count == checked.num_supported_nodes, rules.name
        assert len(one.partition_sizes) == checked.num_partitions, rules.name


def test_every_provider_with_rules_says_where_they_are_written_down():
    for make in RULE_BOOKS.values():
        rules = make({})
        assert rules.sources
        assert all(source.startswith(("https://", "onnxruntime/tools")) for source in rules.sources)


def test_a_node_with_an_unknown_shape_is_not_taken(write_text: Callable[..., Path]):
    path = write_text("(float[4] x, bool[4] c) => (float[n] y) { k = Compress(x, c) y = Sigmoid(k) }")
    reasons = judge(show(path, {}).nodes, nnapi())
    assert "axis 0 of input 0 is free" in reasons.values()


def test_weights_beside_the_file_and_larger_ones_are_constants_too(write_model: Write):
    text = '<ir_version: 10, opset_import: ["": 18]> g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }'
    one = predict(write_model("large", text, {"w": _weight(64, 64)}, external="large.data"), XNNPACK)
    assert [(node.is_supported, node.macs) for node in one.nodes] == [(True, 64 * 64)]


def test_unnamed_nodes_and_namesakes_are_told_apart(predicted: Callable[..., Prediction]):
    one = predicted(nnapi(), "(float[1, 4] x) => (float[1, 4] y) { a = Exp(x) b = Exp(a) y = Erf(b) }")
    assert len({node.name for node in one.nodes}) == 3
