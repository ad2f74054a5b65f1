"""Which 8-bit products of a graph may saturate 16 bits: by the types and values of weights, never by names."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monograph.models.int8_products import int8_products, largest_pair, saturating_nodes
from monograph.runtime.coverage import instruction_sets_of
from monograph.runtime.instruction_sets import InstructionSet


def parsed(text: str) -> ir.Model:
    return ir.serde.deserialize_model(
        onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]> {text}')
    )


def qdq(operator: str, weight: str, values: str, *, activation: str = "uint8", attributes: str = "", x: str = "n,2") -> ir.Model:
    """One ``operator`` between DequantizeLinear nodes, with weights of the given type, shape and values."""
    return parsed(
        f"g (float[{x}] x) => (float y) <float s = {{1}}, {activation} z = {{0}}, {weight} w = {{{values}}}> "
        "{ q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  e = DequantizeLinear(w, s) "
        f"  y = {operator}{attributes}(d, e) }}"
    )


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (qdq("MatMul", "int8[2,1]", "127, 2"), True),
        (qdq("MatMul", "int8[2,1]", "127, 1"), False),
        (qdq("MatMul", "int8[2,1]", "-127, -2"), True),
        (qdq("MatMul", "int8[2,1]", "-64, -64"), False),
        (qdq("MatMul", "int8[1,2]", "127, 127", x="n,1"), False),
        (qdq("MatMul", "uint8[2,1]", "255, 255"), False),
        (qdq("Gemm", "int8[1,2]", "127, 127", attributes="<transB = 1>"), True),
        (qdq("Gemm", "int8[2,2]", "127, -127, -127, 127", attributes="<transB = 1>"), False),
        (qdq("Conv", "int8[1,2,1,1]", "127, 127", x="n,2,4,4"), True),
        (qdq("Conv", "int8[2,1,1,2]", "127, 127, 127, 127", x="n,2,4,4", attributes="<group = 2>"), False),
        (qdq("MatMul", "int8[2,1]", "127, 127", activation="uint16"), False),
        (qdq("MatMul", "int8[2,1]", "127, 127", activation="int8"), True),
    ],
)  # fmt: skip
def test_a_pair_of_weights_decides(model: ir.Model, expected: bool):
    assert bool(saturating_nodes(model)) is expected


def test_a_weight_of_minus_128_is_seen_in_depthwise_convolutions_too():
    attributes = "<group = 2>"
    for lowest, expected in (("-128", True), ("-127", False)):
        model = qdq("Conv", "int8[2,1,1,1]", f"{lowest}, 1", x="n,2,4,4", attributes=attributes)
        assert [product.wraps for product in int8_products(model)] == [expected]
        assert (InstructionSet.ARM64_DOTPROD in instruction_sets_of(model)) is not expected
        assert {InstructionSet.VNNI, InstructionSet.AVX2} <= set(instruction_sets_of(model))


def test_operators_on_integers_are_seen_in_branches_too():
    model = parsed(
        "g (uint8[n,2] x, bool c) => (int32 y) <int8[2,1] w = {127, 127}, uint8 z = {0}> { y = If (c) <"
        "then_branch = a () => (int32 p) { p = MatMulInteger(x, w) }, "
        "else_branch = b () => (int32 q) { q = MatMulInteger(x, w, z) }> }"
    )
    assert len(saturating_nodes(model)) == 2
    assert all(product.is_signed for product in int8_products(model))


def test_a_float_graph_has_no_such_products():
    assert not list(int8_products(parsed("g (float[n,2] x) => (float y) <float[2,1] w = {1, 2}> { y = MatMul(x, w) }")))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40))
def test_no_two_weights_of_a_channel_sum_to_more(seed: int, count: int):
    weights = np.random.default_rng(seed).integers(-128, 128, (3, count)).astype(np.int8)
    wide = weights.astype(int)
    pairs = [abs(row[i] + row[j]) for row in wide for i in range(count) for j in range(i)]
    assert largest_pair(weights) == max(pairs)
