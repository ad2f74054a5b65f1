"""Pairs of graphs that say one thing in two ways: sharing finds them equal, and what it leaves is right at any batch size."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import pytest

from monograph.export.fusion import Fused
from monograph.models.onnx_file import OnnxFile

WriteModel = Callable[..., OnnxFile]
FuseFiles = Callable[..., Fused]
AssertWeightedSum = Callable[..., None]
RNG = np.random.default_rng(5)
HEADER = '<ir_version: 8, opset_import: ["": 20]>'


def vector(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def weight(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


PICTURE = "m (float[batch, 4, 6, 6] x) => (float[batch, q, r, s] logits)"
SEQUENCE = "m (float[batch, length, 8] x) => (float[batch, length, q, r] logits)"
ROW = "m (float[batch, 8] x) => (float[batch, q] logits)"
K = weight(5, 4, 3, 3)

SPELLINGS: Mapping[str, tuple[str, str, str, dict[str, np.ndarray], tuple[str, ...]]] = {
    "a Reshape that reads the batch size, and one that does not": (
        SEQUENCE,
        "n = Shape<end = 2>(x) t = Concat<axis = 0>(n, tail) logits = Reshape(x, t)",
        """s = Shape(x) b = Gather(s, zero) u = Unsqueeze(b, axis) t = Concat<axis = 0>(u, minus, tail) logits = Reshape(x, t)""",
        {"tail": vector(2, 4), "minus": vector(-1), "zero": np.array(0, np.int64), "axis": vector(0)},
        ("Reshape",),
    ),
    "sizes of a hidden state": (
        SEQUENCE,
        "h = MatMul(x, w) n = Shape<end = 2>(h) t = Concat<axis = 0>(n, tail) logits = Reshape(h, t)",
        "h = MatMul(x, w) logits = Reshape(h, written)",
        {"w": weight(8, 6), "tail": vector(2, 3), "written": vector(0, 0, 2, 3)},
        ("MatMul", "Reshape"),
    ),
    "a rest beside copied sizes": (
        "m (float[batch, length, 8] x) => (float[batch, length, 2] logits)",
        """r = Reshape(x, shape) n = Shape<start = 3, end = 4>(r) none = Sub(n, n) lengths = Concat<axis = 0>(n, none)
        kept, rest = Split<axis = -1>(r, lengths) logits = ReduceSum<keepdims = 0>(kept, axis)""",
        """r = Reshape(x, other) n = Shape<start = 3, end = 4>(r) none = Sub(n, n) lengths = Concat<axis = 0>(n, none)
        kept, rest = Split<axis = -1>(r, lengths) logits = ReduceSum<keepdims = 0>(kept, axis)""",
        {"shape": vector(0, 0, 2, -1), "other": vector(0, 0, -1, 4), "axis": vector(-1)},
        ("Reshape", "Split", "ReduceSum"),
    ),
    "Flatten and Reshape": (
        "m (float[batch, 4, 6, 6] x) => (float[batch, q] logits)",
        "logits_in = Flatten<axis = 1>(x) logits = Relu(logits_in)",
        "logits_in = Reshape<allowzero = 1>(x, t) logits = Relu(logits_in)",
        {"t": vector(-1, 144)},
        ("Flatten", "Relu"),
    ),
    "a mean over the picture": (
        PICTURE,
        "p = GlobalAveragePool(x) logits = Tanh(p)",
        "p = ReduceMean<keepdims = 1>(x, axes) logits = Tanh(p)",
        {"axes": vector(-1, -2)},
        ("GlobalAveragePool", "Tanh"),
    ),
    "an Expand by Where": (
        "m (float[batch, 3, 8] x) => (float[batch, q, 8] logits)",
        """n = Shape<end = 1>(x) t = Concat<axis = 0>(n, one, one) e = Expand(token, t) logits = Concat<axis = 1>(e, x)""",
        """n = Shape<end = 1>(x) s = Concat<axis = 0>(n, minus, minus) ones = ConstantOfShape<value = int64[1] {1}>(three)
        negative = Mul(ones, minus) same = Equal(s, negative) t = Where(same, ones, s) e = Expand(token, t)
        logits = Concat<axis = 1>(e, x)""",
        {"token": weight(1, 1, 8), "one": vector(1), "minus": vector(-1), "three": vector(3)},
        ("Shape", "Concat", "Expand", "Concat"),
    ),
    "padding before a convolution, and in it": (
        PICTURE,
        "c = Conv<pads = [1, 0, 1, 2]>(x, k) logits = Relu(c)",
        "p = Pad(x, widths, nought) c = Conv(p, k) logits = Relu(c)",
        {"k": K, "widths": vector(0, 0, 1, 0, 0, 0, 1, 2), "nought": np.array(0, np.float32)},
        ("Conv", "Relu"),
    ),
    "a bias of zeros": (
        ROW,
        "h = Gemm(x, w) logits = Relu(h)",
        "h = Gemm(x, w, b) logits = Relu(h)",
        {"w": weight(8, 3), "b": np.zeros(3, np.float32)},
        ("Gemm", "Relu"),
    ),
    "a cast to the type that is there": (
        ROW,
        "h = Softmax(x) y = MatMul(h, w) logits = Tanh(y)",
        "h = Softmax(x) c = Cast<to = 1>(h) y = MatMul(c, w) logits = Tanh(y)",
        {"w": weight(8, 3)},
        ("Softmax", "MatMul", "Tanh"),
    ),
    "int32 summed as int32, and as int64": (
        ROW,
        "i = Cast<to = 6>(x) s = CumSum(i, axis) f = Cast<to = 1>(s) logits = Relu(f)",
        "i = Cast<to = 6>(x) w = Cast<to = 7>(i) l = CumSum<exclusive = 0>(w, other) s = Cast<to = 6>(l) f = Cast<to = 1>(s) "
        "logits = Relu(f)",
        {"axis": np.array(1, np.int32), "other": np.array(1, np.int64)},
        ("Cast", "CumSum", "Cast", "Relu"),
    ),
    "a constant that is worked out": (
        ROW,
        "y = Mul(x, half) logits = Relu(y)",
        "h = Div(one, two) y = Mul(x, h) logits = Relu(y)",
        {"half": np.array(0.5, np.float32), "one": np.array(1, np.float32), "two": np.array(2, np.float32)},
        ("Mul", "Relu"),
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_two_spellings_run_once(
    name: str, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
):
    signature, one, other, arrays, expected = SPELLINGS[name]
    used = [{key: array for key, array in arrays.items() if re.search(rf"\b{key}\b", body)} for body in (one, other)]
    files = [
        write_model(label, f"{HEADER} {signature} {{ {body} }}", own)
        for label, body, own in zip(("one", "other"), (one, other), used, strict=True)
    ]
    for members in (files, files[::-1]):
        fused = fuse_files(members)
        operators = [node.op_type for node in onnx.load(fused.file.path).graph.node]
        assert tuple(operators) == (*expected, "Mul", "Add")
        assert_weighted_sum(fused, members)


NOT_EQUAL: Mapping[str, tuple[str, str, str, dict[str, np.ndarray]]] = {
    "pads of ones are not pads of zeros": (
        PICTURE,
        "c = Conv<pads = [1, 1, 1, 1]>(x, k) logits = Relu(c)",
        "p = Pad(x, widths, fill) c = Conv(p, k) logits = Relu(c)",
        {"k": K, "widths": vector(0, 0, 1, 1, 0, 0, 1, 1), "fill": np.array(1, np.float32)},
    ),
    "a Reshape that mixes what a Transpose moves": (
        "m (float[batch, 4, 6] x) => (float[batch, 6, 4] logits)",
        "t = Transpose<perm = [0, 2, 1]>(x) logits = Tanh(t)",
        "t = Reshape(x, shape) logits = Tanh(t)",
        {"shape": vector(-1, 6, 4)},
    ),
    "another axis of a sum": (
        "m (float[batch, 4, 6] x) => (float[batch, 4, 6] logits)",
        "s = CumSum(x, first) logits = Tanh(s)",
        "s = CumSum(x, second) logits = Tanh(s)",
        {"first": np.array(1, np.int32), "second": np.array(2, np.int64)},
    ),
}


@pytest.mark.parametrize("name", NOT_EQUAL)
def test_what_differs_stays_apart(
    name: str, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
):
    signature, one, other, arrays = NOT_EQUAL[name]
    files = [write_model(label, f"{HEADER} {signature} {{ {body} }}", arrays) for label, body in (("one", one), ("other", other))]
    assert_weighted_sum(fuse_files(files), files)
