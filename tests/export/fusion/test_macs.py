"""Multiply-accumulates against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from monograph.export.fusion import estimate_cost, plan_fusion
from monograph.export.fusion.macs import count_macs
from monograph.models.onnx_file import OnnxFile

Write = Callable[..., OnnxFile]
OPSET = '<ir_version: 8, opset_import: ["": 20, "com.microsoft": 1]>'


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("text", "arrays", "expected"),
    [
        pytest.param(
            """g (float[batch, 4, 10, 10] x) => (float[batch, 6, 8, 8] y)
            { c = Conv<group = 2, kernel_shape = [3, 3]>(x, w) t = Transpose<perm = [0, 1, 3, 2]>(c) y = MatMul(c, t) }""",
            {"w": ones(6, 2, 3, 3)},
            6 * 8 * 8 * 2 * 9 + 6 * 8 * 8 * 8,
            id="grouped convolution and a product of activations",
        ),
        pytest.param(
            """g (float[batch, 7, 12] x) => (float[batch, 7, 12] y)
            { y = com.microsoft.Attention<num_heads = 3>(x, w, b) }""",
            {"w": ones(12, 36), "b": ones(36)},
            7 * 12 * 36 + 2 * 7 * 7 * 12,
            id="attention with its projections",
        ),
        pytest.param(
            """g (float[batch, 7, 12] x, float[batch, 5, 12] k) => (float[batch, 7, 12] y)
            { y = com.microsoft.MultiHeadAttention<num_heads = 3>(x, k, k) }""",
            {},
            2 * 7 * 5 * 12,
            id="attention to another sequence",
        ),
        pytest.param(
            """g (float[batch, 4, 5, 5] x) => (float[batch, 6, 3, 3] y) {
            q = com.microsoft.QuantizeLinear(x, scale, zero) d = com.microsoft.DequantizeLinear(q, scale, zero)
            y = Conv<kernel_shape = [3, 3]>(d, w) }""",
            {"w": ones(6, 4, 3, 3), "scale": np.float32(0.1), "zero": np.uint16(0)},
            6 * 9 * 4 * 9,
            id="quantised to 16 bits in a domain that tells no shapes",
        ),
        pytest.param(
            "g (float[batch, 4, 5, 5] x) => (float[batch, 3, 10, 10] y) { y = ConvTranspose<strides = [2, 2]>(x, w) }",
            {"w": ones(4, 3, 2, 2)},
            4 * 25 * 3 * 4,
            id="transposed convolution",
        ),
        pytest.param(
            """g (float[batch, s, 8] x) => (float[batch, s, 3] y) {
            shape = Shape<start = 0, end = 2>(x) whole = Concat<axis = 0>(shape, minus) folded = Reshape(x, whole)
            y = MatMul(folded, w) }""",
            {"w": ones(8, 3), "minus": np.array([-1], np.int64)},
            64 * 8 * 3,
            id="a shape that is put together while it runs",
        ),
        pytest.param(
            """g (float[batch, 8] x) => (float[batch, 1, 1, 5] y) {
            row = Unsqueeze(x, axis) y, last = LSTM<hidden_size = 5>(row, w, r) }""",
            {"w": ones(1, 20, 8), "r": ones(1, 20, 5), "axis": np.array([1], np.int64)},
            4 * 5 * (8 + 5),
            id="LSTM",
        ),
        pytest.param(
            'g (float[batch, 6] x) => (float[batch, 4] y) { y = Einsum<equation = "bi,ij->bj">(x, w) }',
            {"w": ones(6, 4)},
            6 * 4,
            id="Einsum",
        ),
        pytest.param(
            """g (float[batch, 6] x) => (float[batch, 6] y) {
            s = ReduceSum<keepdims = 0>(x) c = Cast<to = 9>(s)
            y = If (c) < then_branch = t () => (float[n, 6] a) { a = MatMul(x, w) },
                else_branch = e () => (float[n, 6] b) { h = MatMul(x, w) b = MatMul(h, w) } > }""",
            {"w": ones(6, 6)},
            2 * 36,
            id="the dearer branch of an If",
        ),
    ],
)
def test_macs(text: str, arrays: dict[str, np.ndarray], expected: int, write_model: Write) -> None:
    file = write_model("m", f"{OPSET} {text}", arrays)
    assert count_macs(file.path) == expected


def test_a_loop_is_not_counted(write_model: Write) -> None:
    text = f"""{OPSET} g (float[batch, 6] x) => (float[batch, 6] logits) {{
        logits = Loop (many, yes, x) < body = b (int64 i, bool c, float[batch, 6] v) => (bool d, float[batch, 6] u)
        {{ d = Identity(c) u = MatMul(v, w) }} > }}"""
    arrays = {"w": ones(6, 6), "many": np.array(3, np.int64), "yes": np.array(True)}
    files = [write_model(name, text, arrays) for name in ("a", "b")]
    assert count_macs(files[0].path) is None
    assert "multiply-accumulates a row: unknown, of the members apart unknown" in estimate_cost(plan_fusion(files)).describe()


def test_what_sharing_saves_is_told(write_model: Write) -> None:
    text = f"""{OPSET} g (float[batch, 6] x) => (float[batch, 2] logits)
        {{ h = MatMul(x, trunk) r = Relu(h) logits = MatMul(r, head) }}"""
    heads = np.random.default_rng(0).standard_normal((2, 4, 2)).astype(np.float32)
    files = [write_model(name, text, {"trunk": ones(6, 4), "head": head}) for name, head in zip("ab", heads, strict=True)]
    cost = estimate_cost(plan_fusion(files))
    assert (cost.member_macs, cost.fused_macs, cost.saved_macs) == (2 * (24 + 8), 24 + 8, 24 + 8)
    assert "3.2e-05 M, of the members apart 6.4e-05 M (3.2e-05 M saved)" in cost.describe()
    apart = estimate_cost(plan_fusion(files, share=False))
    assert apart.saved_macs == 0
