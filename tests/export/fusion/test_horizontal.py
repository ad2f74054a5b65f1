"""Members of one architecture as one batch: what it computes, what it batches, and what it refuses."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from monograph.errors import FusionError, HorizontalError
from monograph.export.fusion import FUSION_KEY, Fused, fuse, plan_fusion
from monograph.export.fusion.horizontal.architecture import look_alike
from monograph.export.fusion.horizontal.choice import ASKED, choose_by
from monograph.export.fusion.sharing.provenance import MEMBERS_KEY
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.runtime.results import Interval
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
WriteModel = Callable[..., OnnxFile]
FuseFiles = Callable[..., Fused]
AssertSum = Callable[..., None]
NAMES = ("a", "b", "c")


@pytest.fixture
def write_members(write_model: WriteModel) -> Callable[..., list[OnnxFile]]:
    """Write three members of one text, each with weights of its own and with ``constants`` that are the same for all."""

    def write(
        text: str, shapes: Mapping[str, Sequence[int]], constants: Mapping[str, Any] | None = None, names: Sequence[str] = NAMES
    ) -> list[OnnxFile]:
        files = []
        for name in names:
            rng = np.random.default_rng(list(name.encode()))
            arrays = {key: rng.uniform(0.2, 1.2, shape).astype(np.float32) for key, shape in shapes.items()}
            arrays |= {key: np.asarray(value) for key, value in (constants or {}).items()}
            files.append(write_model(name, f'<ir_version: 8, opset_import: ["": 20]> {text}', arrays))
        return files

    return write


def nodes_of(fused: Fused) -> list[onnx.NodeProto]:
    return list(onnx.load(fused.file.path).graph.node)


def left_apart(fused: Fused) -> list[str]:
    """The operators that members still run each for itself; what all of them share counts as run once."""
    members = {member.name for member in fused.plan.members}
    return [
        node.op_type
        for node in nodes_of(fused)
        if node.name.split("/")[0] in members and MEMBERS_KEY not in {entry.key for entry in node.metadata_props}
    ]


PICTURES = "m (float[batch, 2, 6, 6] x) => (float[batch, {classes}] y)"
ROWS = "m (float[batch, 4] x) => (float[batch, {classes}] y)"
TEXTS = "m (float[batch, s, 4] x) => (float[batch, {classes}] y)"
PERCEPTRON = "h = Gemm(x, w) r = Relu(h) y = Gemm(r, v)"
SIZES = {"w": (4, 5), "v": (5, 3)}
STEM = "c = Conv<pads=[1, 1, 1, 1]>(x, w0, b0)"
STEM_SHAPES = {"w0": (4, 2, 3, 3), "b0": (4,)}
POOL = "p = GlobalAveragePool(h) f = Flatten(p) y = Gemm(f, head, head_b)"
HEAD = {"head": (4, 3), "head_b": (3,)}

CHANNELS: dict[str, tuple[str, Mapping[str, Sequence[int]], Mapping[str, Any]]] = {
    "relu": ("h = Relu(c)", {}, {}),
    "clip": ("h = Clip(c, low, high)", {}, {"low": np.float32(0), "high": np.float32(6)}),
    "dropout": ("h = Dropout(c, ratio)", {}, {"ratio": np.float32(0.5)}),
    "hard swish": ("h = HardSwish(c)", {}, {}),
    "prelu": ("h = PRelu(c, slope)", {"slope": (4, 1, 1)}, {}),
    "batch norm": ("h = BatchNormalization(c, s, t, m, v)", {"s": (4,), "t": (4,), "m": (4,), "v": (4,)}, {}),
    "instance norm": ("h = InstanceNormalization(c, s, t)", {"s": (4,), "t": (4,)}, {}),
    "residual": ("d = Conv<pads=[1, 1, 1, 1]>(c, w1) h = Add(c, d)", {"w1": (4, 4, 3, 3)}, {}),
    "residual of the input": ("d = Conv(c, w1) e = Add(x, d) h = Conv(e, w2)", {"w1": (2, 4, 1, 1), "w2": (4, 2, 1, 1)}, {}),
    "depthwise": ("h = Conv<group=4, pads=[1, 1, 1, 1]>(c, w1)", {"w1": (4, 1, 3, 3)}, {}),
    "grouped": ("h = Conv<group=2, strides=[2, 2]>(c, w1)", {"w1": (4, 2, 3, 3)}, {}),
    "transposed": ("h = ConvTranspose<strides=[2, 2]>(c, w1, b1)", {"w1": (4, 4, 2, 2), "b1": (4,)}, {}),
    "max pool": ("h = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(c)", {}, {}),
    "average pool": ("h = AveragePool<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(c)", {}, {}),
    "squeeze and excite": (
        "q = GlobalAveragePool(c) e = Conv(q, w1, b1) g = Sigmoid(e) h = Mul(c, g)",
        {"w1": (4, 4, 1, 1), "b1": (4,)},
        {},
    ),
    "scale of a member": ("h = Mul(c, k)", {"k": ()}, {}),
    "bias a channel": ("h = Add(k, c)", {"k": (4, 1, 1)}, {}),
    "pixels a member": ("h = Mul(c, k)", {"k": (6, 6)}, {}),
    "concat along channels": ("d = Sigmoid(c) e = Concat<axis=1>(c, d) h = Conv(e, w1)", {"w1": (4, 8, 1, 1)}, {}),
    "concat along rows": ("d = Relu(c) h = Concat<axis=2>(c, d)", {}, {}),
    "pad": ("h = Pad(c, pads)", {}, {"pads": [0, 0, 1, 1, 0, 0, 0, 1]}),
    "resize": ('h = Resize<mode="nearest">(c, , scales)', {}, {"scales": np.float32([1, 1, 2, 2])}),
    "softmax over channels": ("h = Softmax<axis=1>(c)", {}, {}),
    "softmax over columns": ("h = Softmax(c)", {}, {}),
    "mean over channels": ("d = ReduceMean(c, axes) h = Mul(c, d)", {}, {"axes": [1]}),
    "norm over rows": ("d = ReduceL2(c, axes) h = Div(c, d)", {}, {"axes": [-1]}),
    "split channels": ("d, e = Split<axis=1>(c, parts) g = Mul(d, e) h = Conv(g, w1)", {"w1": (4, 2, 1, 1)}, {"parts": [2, 2]}),
    "slice channels": (
        "g = Slice(c, from, to, axes) h = Conv(g, w1)",
        {"w1": (4, 2, 1, 1)},
        {"from": [1], "to": [3], "axes": [1]},
    ),
    "slice rows": ("h = Slice(c, from, to, axes, steps)", {}, {"from": [5], "to": [-9], "axes": [2], "steps": [-1]}),
    "shuffle": (
        "d = Reshape(c, five) e = Transpose<perm=[0, 2, 1, 3, 4]>(d) h = Reshape(e, four)",
        {},
        {"five": [0, 2, 2, 6, 6], "four": [-1, 4, 6, 6]},
    ),
    "layer norm of channels": (
        "d = Transpose<perm=[0, 2, 3, 1]>(c) e = LayerNormalization(d, s, t) h = Transpose<perm=[0, 3, 1, 2]>(e)",
        {"s": (4,), "t": (4,)},
        {},
    ),
    "squeezed": ("q = GlobalAveragePool(c) r = Squeeze(q, two) u = Unsqueeze(r, two) h = Add(c, u)", {}, {"two": [2, 3]}),
    "size of the batch": (
        "z = Shape<start=0, end=1>(c) k = Concat<axis=0>(z, rest) d = Expand(t, k) h = Add(c, d)",
        {"t": (4, 1, 1)},
        {"rest": [4, 1, 1]},
    ),
    "size of the channels": ("z = Shape<start=1, end=3>(c) k = Cast<to=1>(z) n = ReduceSum(k) h = Div(c, n)", {}, {}),
    "a table": (
        "d = Conv(c, w1) i = ReduceMax<keepdims=0>(x) j = Cast<to=7>(i) k = Mul(j, zero) t = Gather(table, k) h = Add(d, t)",
        {"w1": (4, 4, 1, 1), "table": (2, 4, 1, 1)},
        {"zero": np.int64(0)},
    ),
}


@pytest.mark.parametrize("case", CHANNELS)
def test_what_works_on_channels(
    case: str, write_members: Callable[..., list[OnnxFile]], fuse_files: FuseFiles, assert_weighted_sum: AssertSum
):
    body, shapes, constants = CHANNELS[case]
    text = f"{PICTURES.format(classes=3)} {{ {STEM} {body} {POOL} }}"
    files = write_members(text, {**STEM_SHAPES, **shapes, **HEAD}, constants)
    fused = fuse_files(files, horizontal=ASKED, weights=(0.5, 0.3, 0.2))
    assert_weighted_sum(fused, files)
    assert left_apart(fused) == []
    assert fused.batching is not None
    assert fused.batching.groups_batched == fused.batching.groups


ATTENTION = """q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
    kt = Transpose<perm=[0, 2, 1]>(k) qk = MatMul(q, kt) a = Softmax(qk) av = MatMul(a, v) o = MatMul(av, wo)"""
MEAN = "p = ReduceMean<keepdims=0>(r, axes) y = Gemm(p, head)"
ATTENTION_SHAPES = {"wq": (4, 4), "wk": (4, 4), "wv": (4, 4), "wo": (4, 4)}
HEADS = """q = MatMul(x, wq) z = Shape(x) bs = Slice(z, zero, two) to = Concat<axis=0>(bs, heads) r = Reshape(q, to)
    t = Transpose<perm=[0, 2, 1, 3]>(r) u = Transpose<perm=[0, 2, 3, 1]>(r) e = MatMul(t, u) a = Softmax(e) w = MatMul(a, t)
    g = Transpose<perm=[0, 2, 1, 3]>(w) back = Concat<axis=0>(bs, four) o = Reshape(g, back)"""

FEATURES: dict[str, tuple[str, str, Mapping[str, Sequence[int]], Mapping[str, Any]]] = {
    "perceptron": (
        ROWS,
        "h = Gemm(x, w, b) r = Relu(h) y = Gemm<transB=1>(r, v, c)",
        {"w": (4, 5), "b": (5,), "v": (3, 5), "c": (3,)},
        {},
    ),
    "scaled layers": (
        ROWS,
        "h = Gemm<alpha=0.5, beta=2.0>(x, w, b) r = Tanh(h) y = Gemm<alpha=0.25, beta=3.0, transB=1>(r, v, c)",
        {"w": (4, 5), "b": (1, 5), "v": (3, 5), "c": (1,)},
        {},
    ),
    "layers without bias": (ROWS, "h = Gemm(x, w) r = Sigmoid(h) y = Gemm(r, v)", {"w": (4, 5), "v": (5, 3)}, {}),
    "products": (
        ROWS,
        "h = MatMul(x, w) a = Add(h, b) r = Gelu(a) p = MatMul(r, v) y = Add(c, p)",
        {"w": (4, 5), "b": (5,), "v": (5, 3), "c": (3,)},
        {},
    ),
    "skip": (ROWS, "h = Gemm(x, w, b) s = Add(h, x) y = Gemm(s, v)", {"w": (4, 4), "b": (4,), "v": (4, 3)}, {}),
    "one table": (
        ROWS,
        "i = Cast<to=7>(x) j = Mul(i, zero) t = Gather(table, j) r = ReduceMean<keepdims=0>(t, axes) y = Gemm(r, v)",
        {"table": (3, 6), "v": (6, 3)},
        {"zero": np.int64(0), "axes": [1]},
    ),
    "attention": (
        TEXTS,
        f"{ATTENTION} l = LayerNormalization(o, g, b) r = Add(l, x) {MEAN}",
        {**ATTENTION_SHAPES, "g": (4,), "b": (4,), "head": (4, 3)},
        {"axes": [1]},
    ),
    "layer norm without bias": (
        TEXTS,
        "m = MatMul(x, w) l = LayerNormalization(m, g) p = ReduceMax<keepdims=0>(l, axes) y = Gemm(p, head)",
        {"w": (4, 4), "g": (4,), "head": (4, 3)},
        {"axes": [1]},
    ),
    "heads": (
        TEXTS,
        f"{HEADS} p = ReduceMean<keepdims=0>(o, one) y = Gemm(p, head)",
        {"wq": (4, 4), "head": (4, 3)},
        {"zero": [0], "one": [1], "two": [2], "four": [4], "heads": [2, 2]},
    ),
    "first token": (
        TEXTS,
        "m = MatMul(x, w) f = Gather<axis=1>(m, zero) y = Gemm(f, head)",
        {"w": (4, 4), "head": (4, 3)},
        {"zero": np.int64(0)},
    ),
    "a token of its own": (
        TEXTS,
        """m = MatMul(x, w) z = Shape<start=0, end=1>(x) k = Concat<axis=0>(z, rest)
        e = Expand(token, k) t = Concat<axis=1>(e, m) f = Gather<axis=1>(t, zero) y = Gemm(f, head)""",
        {"w": (4, 4), "token": (1, 1, 4), "head": (4, 3)},
        {"rest": [1, 4], "zero": np.int64(0)},
    ),
    "statistics of all": (
        TEXTS,
        "m = MatMul(x, w) u = ReduceMean(m) d = Sub(m, u) p = ReduceMean<keepdims=0>(d, axes) y = Gemm(p, head)",
        {"w": (4, 4), "head": (4, 3)},
        {"axes": [1]},
    ),
    "masked": (
        TEXTS,
        "m = MatMul(x, w) n = Greater(x, level) r = Where(n, m, low) p = ReduceMax<keepdims=0>(r, axes) y = Gemm(p, head)",
        {"w": (4, 4), "head": (4, 3)},
        {"level": np.float32(0), "low": np.float32(-1), "axes": [1]},
    ),
    "statistics by hand": (
        TEXTS,
        """m = MatMul(x, w) u = ReduceMean(m, last) d = Sub(m, u) q = Pow(d, two)
        v = ReduceMean(q, last) e = Add(v, eps) s = Sqrt(e) n = Div(d, s)
        p = ReduceMean<keepdims=0>(n, axes) t = Mul(p, g) y = Gemm(t, head)""",
        {"w": (4, 4), "g": (4,), "head": (4, 3)},
        {"last": [-1], "two": np.float32(2), "eps": np.float32(1e-3), "axes": [1]},
    ),
}


@pytest.mark.parametrize("case", FEATURES)
def test_what_works_on_features(
    case: str, write_members: Callable[..., list[OnnxFile]], fuse_files: FuseFiles, assert_weighted_sum: AssertSum
):
    signature, body, shapes, constants = FEATURES[case]
    files = write_members(f"{signature.format(classes=3)} {{ {body} }}", shapes, constants)
    fused = fuse_files(files, horizontal=ASKED)
    assert_weighted_sum(fused, files)
    assert fused.batching is not None
    assert fused.batching.groups_batched == fused.batching.groups


ISLANDS: dict[str, tuple[str, Mapping[str, Any], list[str]]] = {
    "an operator that is not known": ("t = CumSum(c, one) h = Relu(t)", {"one": np.int64(1)}, ["CumSum", "Relu"] * 3),
    "bounds of the members' own": ("h = Clip(c, k)", {}, ["Clip"] * 3),
    "channels folded into space": ("h = DepthToSpace<blocksize=2>(c) ", {}, ["DepthToSpace"] * 3),
}


@pytest.mark.parametrize("case", ISLANDS)
def test_what_cannot_be_batched_stays_apart_in_the_middle(
    case: str, write_members: Callable[..., list[OnnxFile]], fuse_files: FuseFiles, assert_weighted_sum: AssertSum
):
    body, constants, apart = ISLANDS[case]
    channels = 1 if "Space" in body else 4
    text = (
        f"{PICTURES.format(classes=3)} {{ {STEM} {body} d = Conv(h, w1) p = GlobalMaxPool(d) f = Flatten(p) y = Gemm(f, head) }}"
    )
    files = write_members(text, {**STEM_SHAPES, "k": (), "w1": (4, channels, 1, 1), "head": (4, 3)}, constants)
    fused = fuse_files(files, horizontal=ASKED)
    assert_weighted_sum(fused, files)
    assert sorted(left_apart(fused)) == sorted(apart)
    assert [node.op_type for node in nodes_of(fused)].count("Conv") == 2


def test_a_branch_reads_its_members_part(
    write_members: Callable[..., list[OnnxFile]], fuse_files: FuseFiles, assert_weighted_sum: AssertSum
):
    text = f"""{ROWS.format(classes=3)} {{ h = Gemm(x, w) total = ReduceSum<keepdims=0>(x) yes = Greater(total, zero)
        s = If(yes) <then_branch = t () => (float[batch, 5] o) {{ o = Relu(h) }},
                     else_branch = e () => (float[batch, 5] o) {{ o = Neg(h) }}> y = Gemm(s, v) }}"""
    files = write_members(text, {"w": (4, 5), "v": (5, 3)}, {"zero": np.float32(0)})
    fused = fuse_files(files, horizontal=ASKED)
    assert_weighted_sum(fused, files)
    assert left_apart(fused) == ["If"] * 3


def test_convolutions_become_one_of_many_groups(write_members: Callable[..., list[OnnxFile]], fuse_files: FuseFiles):
    body = "r = Relu(c) d = Conv(r, w1) h = Conv<group=4>(d, w2)"
    shapes = {**STEM_SHAPES, "w1": (4, 4, 1, 1), "w2": (4, 1, 3, 3), **HEAD}
    fused = fuse_files(write_members(f"{PICTURES.format(classes=3)} {{ {STEM} {body} {POOL} }}", shapes), horizontal=ASKED)
    convs = [node for node in nodes_of(fused) if node.op_type == "Conv"]
    assert [{a.name: a.i for a in node.attribute}.get("group", 1) for node in convs] == [1, 3, 12]
    weights = {tensor.name: list(tensor.dims) for tensor in onnx.load(fused.file.path).graph.initializer}
    assert [weights[node.input[1]] for node in convs] == [[12, 2, 3, 3], [12, 4, 1, 1], [12, 1, 3, 3]]
    for node in convs:
        assert {entry.key: entry.value for entry in node.metadata_props}[MEMBERS_KEY] == "a,b,c"


def test_axes_are_settings_in_older_opsets(write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertSum):
    text = """<ir_version: 8, opset_import: ["": 13]> m (float[batch, s, 4] x) => (float[batch, 3] y)
        { h = MatMul(x, w) u = ReduceMean(h) d = Sub(h, u) p = ReduceMax<axes=[1], keepdims=0>(d)
          t = ReduceSum<keepdims=0>(h) q = Div(p, t) y = Gemm(q, v) }"""
    files = []
    for seed, name in enumerate(NAMES):
        rng = np.random.default_rng(seed)
        arrays = {key: rng.standard_normal(shape, dtype=np.float32) for key, shape in {"w": (4, 4), "v": (4, 3)}.items()}
        files.append(write_model(name, text, arrays))
    fused = fuse_files(files, horizontal=ASKED)
    assert_weighted_sum(fused, files)
    assert fused.plan.opset == 15
    assert left_apart(fused) == []


def test_sharing_must_be_on(write_members: Callable[..., list[OnnxFile]]):
    files = write_members(f"{ROWS.format(classes=3)} {{ {PERCEPTRON} }}", SIZES)
    with pytest.raises(FusionError, match="leave sharing on"):
        plan_fusion(files, share=False, horizontal=ASKED)


def test_a_trunk_that_all_share_runs_once_and_the_rest_as_a_batch(
    write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertSum
):
    text = """<ir_version: 8, opset_import: ["": 20]> m (float[batch, 2, 6, 6] x) => (float[batch, 3] y)
        { c = Conv(x, trunk) r = Relu(c) d = Conv(r, own) p = GlobalAveragePool(d) f = Flatten(p) y = Gemm(f, head) }"""
    trunk = np.random.default_rng(9).standard_normal((4, 2, 3, 3), dtype=np.float32)
    files = []
    for seed, name in enumerate(NAMES):
        rng = np.random.default_rng(seed)
        own = {"own": rng.standard_normal((4, 4, 1, 1), dtype=np.float32), "head": rng.standard_normal((4, 3), dtype=np.float32)}
        files.append(write_model(name, text, {"trunk": trunk, **own}))
    fused = fuse_files(files, horizontal=ASKED)
    assert_weighted_sum(fused, files)
    weights = {tensor.name: list(tensor.dims) for tensor in onnx.load(fused.file.path).graph.initializer}
    convs = [weights[node.input[1]] for node in nodes_of(fused) if node.op_type == "Conv"]
    assert convs == [[4, 2, 3, 3], [12, 4, 1, 1]]


def test_a_member_that_is_there_twice_is_batched_once(
    write_members: Callable[..., list[OnnxFile]], fuse_files: FuseFiles, assert_weighted_sum: AssertSum
):
    a, b, _ = write_members(
        f"{ROWS.format(classes=3)} {{ h = Gemm(x, w) r = Relu(h) y = Gemm(r, v) }}", {"w": (4, 5), "v": (5, 3)}
    )
    fused = fuse_files([a, a, b], names=["a", "again", "b"], weights=(0.2, 0.5, 0.3), horizontal=ASKED)
    assert_weighted_sum(fused, [a, a, b])
    assert fused.batching is not None
    assert fused.batching.members == ("a", "b")
    with pytest.raises(HorizontalError, match="nothing is left to batch"):
        fuse_files([a, a], horizontal=ASKED)


@pytest.mark.parametrize("combine", ["logits", "probs", "geometric", "vote"])
def test_every_form_takes_a_batch(combine: str, write_members: Callable[..., list[OnnxFile]], fuse_files: FuseFiles):
    files = write_members(f"{ROWS.format(classes=3)} {{ {PERCEPTRON} }}", SIZES)
    apart = fuse_files(files, combine=combine, weights=(0.5, 0.3, 0.2), temperatures=(1.5, 1.0, 0.7))
    x = np.random.default_rng(0).standard_normal((7, 4), dtype=np.float32)
    (expected,) = open_session(apart.file.path)({"x": x}).values()
    batched = fuse_files(files, combine=combine, weights=(0.5, 0.3, 0.2), temperatures=(1.5, 1.0, 0.7), horizontal=ASKED)
    (got,) = open_session(batched.file.path)({"x": x}).values()
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_external_weights_are_put_together_from_disk(
    write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertSum
):
    text = f'<ir_version: 8, opset_import: ["": 20]> {ROWS.format(classes=3)} {{ {PERCEPTRON} }}'
    files = []
    for seed, name in enumerate(NAMES):
        rng = np.random.default_rng(seed)
        arrays = {key: rng.standard_normal(shape, dtype=np.float32) for key, shape in SIZES.items()}
        files.append(write_model(name, text, arrays, external=f"{name}.data"))
    fused = fuse_files(files, horizontal=ASKED)
    assert_weighted_sum(fused, files)
    assert left_apart(fused) == []


OTHER: dict[str, tuple[str, Mapping[str, Sequence[int]], str]] = {
    "operator": (PERCEPTRON.replace("Relu", "Tanh"), SIZES, "the operator: Relu and Tanh"),
    "settings": (PERCEPTRON.replace("Gemm(x", "Gemm<alpha=0.5>(x"), SIZES, "settings of Gemm: none and alpha 0.5"),
    "width": (PERCEPTRON, {"w": (4, 6), "v": (6, 3)}, r"an input of Gemm: a weight FLOAT \[4, 5\] and a weight FLOAT \[4, 6\]"),
    "bias": (PERCEPTRON.replace("w)", "w, b)"), {**SIZES, "b": (5,)}, "an input of Gemm: none and a weight"),
    "depth": ("h = Gemm(x, w) r = Relu(h) z = Gemm(r, v) y = Relu(z)", SIZES, "length: 3 and 4 nodes"),
    "wiring": ("h = Gemm(x, w) r = Relu(h) q = Gemm(h, v) y = Add(q, r)", {"w": (4, 3), "v": (3, 3)}, "FLOAT .4, 3."),
    "what is read": ("h = Gemm(x, w) r = Relu(h) y = Gemm(h, v)", SIZES, "the operator: Relu and Gemm"),
}


@pytest.mark.parametrize("case", OTHER)
def test_another_architecture_is_refused_by_the_first_node_that_differs(
    case: str, write_members: Callable[..., list[OnnxFile]], fuse_files: FuseFiles
):
    body, shapes, reason = OTHER[case]
    files = write_members(f"{ROWS.format(classes=3)} {{ {PERCEPTRON} }}", SIZES, names=["first"])
    files += write_members(f"{ROWS.format(classes=3)} {{ {body} }}", shapes, names=["other"])
    with pytest.raises(FusionError, match=f"not of one architecture and cannot run as one batch .*{reason}") as caught:
        fuse_files(files, horizontal=ASKED)
    assert caught.value.exit_code == 2
    assert "--horizontal off runs them apart" in str(caught.value)


def test_integers_that_differ_are_another_architecture(write_members: Callable[..., list[OnnxFile]], fuse_files: FuseFiles):
    text = f"{TEXTS.format(classes=3)} {{ m = MatMul(x, w) p = ReduceMean<keepdims=0>(m, axes) y = Gather<axis=-1>(p, places) }}"
    files = [
        *write_members(text, {"w": (4, 4)}, {"axes": [1], "places": [0, 1, 2]}, names=["first"]),
        *write_members(text, {"w": (4, 4)}, {"axes": [1], "places": [2, 1, 0]}, names=["other"]),
    ]
    with pytest.raises(HorizontalError, match="differ in an input of Gather: 'first/places' and 'other/places'"):
        fuse_files(files, horizontal=ASKED)


def test_files_that_look_alike(write_members: Callable[..., list[OnnxFile]]):
    a, b, _ = write_members(f"{ROWS.format(classes=3)} {{ {PERCEPTRON} }}", SIZES)
    (wider,) = write_members(f"{ROWS.format(classes=3)} {{ {PERCEPTRON} }}", {"w": (4, 6), "v": (6, 3)}, names=["wider"])
    (other,) = write_members(f"{ROWS.format(classes=3)} {{ {PERCEPTRON.replace('Relu', 'Tanh')} }}", SIZES, names=["other"])
    assert look_alike([a.path, b.path])
    assert not look_alike([a.path, wider.path])
    assert not look_alike([a.path, b.path, other.path])


def test_where_nothing_can_be_batched_it_is_refused(write_members: Callable[..., list[OnnxFile]], fuse_files: FuseFiles):
    files = write_members(f"{ROWS.format(classes=4)} {{ y = Mul(x, w) }}", {"w": (4,)})
    with pytest.raises(HorizontalError, match="none of the 1 nodes of a can be batched"):
        fuse_files(files, horizontal=ASKED)


def test_the_choice_stands_in_the_plan_and_in_the_file(write_members: Callable[..., list[OnnxFile]], fuse_files: FuseFiles):
    files = write_members(f"{ROWS.format(classes=3)} {{ {PERCEPTRON} }}", SIZES)
    choice = choose_by(Interval(0.8, 0.75, 0.85), "cpu")
    fused = fuse_files(files, horizontal=choice)
    record = json.loads(fused.file.metadata[FUSION_KEY])["horizontal"]
    assert record["batched"] is True
    assert record["target"] == "cpu"
    assert record["ratio"] == {"estimate": 0.8, "low": 0.75, "high": 0.85, "confidence": 0.95}
    assert (
        "horizontal: batched, measured: batched / apart 0.800 [0.750, 0.850] of latency at batch 1 on cpu"
        in fused.plan.describe()
    )
    assert "horizontal" not in json.loads(fuse_files(files).file.metadata[FUSION_KEY])


@pytest.mark.parametrize(("high", "batched"), [(0.99, True), (1.0, False), (1.2, False)])
def test_a_batch_is_chosen_only_where_it_is_faster_beyond_doubt(high: float, batched: bool):
    assert choose_by(Interval(0.9, 0.8, high), "cpu").batched is batched


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[OnnxFile]]:
    """Members that PyTorch exported, with random weights."""
    import torch

    from monograph.export.trace import export_torch
    from monograph.models.students import STUDENTS
    from monograph.models.torch_model import TorchModel

    def export(name: str, count: int) -> list[OnnxFile]:
        folder = tmp_path_factory.mktemp(name)
        files = []
        for seed in range(count):
            torch.manual_seed(seed)
            module, contract = STUDENTS[name](width=8)
            for layer in module.modules():
                if isinstance(layer, torch.nn.BatchNorm2d):
                    torch.nn.init.uniform_(layer.running_mean, -0.5, 0.5)
                    torch.nn.init.uniform_(layer.running_var, 0.5, 2.0)
            path = folder / f"{name}{seed}.onnx"
            export_torch(TorchModel(module.eval(), contract, name), path, batch_sizes=(1, 2))
            files.append(read_onnx(path))
        return files

    return export


@pytest.mark.parametrize(("name", "count", "convs"), [("conv", 2, 3), ("separable_conv", 2, 7), ("mlp", 2, 0)])
def test_students(
    name: str,
    count: int,
    convs: int,
    students: Callable[..., list[OnnxFile]],
    fuse_files: FuseFiles,
    assert_weighted_sum: AssertSum,
):
    files = students(name, count)
    assert look_alike([file.path for file in files])
    fused = fuse_files(files, horizontal=ASKED)
    assert_weighted_sum(fused, files)
    assert fused.proof.worst.relative_error < 1e-5
    assert left_apart(fused) == []
    assert Counter(node.op_type for node in nodes_of(fused))["Conv"] == convs


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["bert", "vit", "resnet"])
def test_transformers(model_type: str, tmp_path: Path, fuse_files: FuseFiles, assert_weighted_sum: AssertSum):
    import torch
    import transformers

    from monograph.export.trace import export_torch
    from monograph.models.contract import Contract, Kind, TensorSpec
    from monograph.models.huggingface import quiet_transformers
    from monograph.models.torch_model import TorchModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    configs = {
        "bert": sizes | {"vocab_size": 300},
        "vit": sizes | {"image_size": 16, "patch_size": 8},
        "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 1], "layer_type": "basic"},
    }

    class Logits(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(x).logits
            return logits

    is_text = model_type == "bert"
    given = TensorSpec("x", "int64", ("batch", "sequence")) if is_text else TensorSpec("x", "float32", ("batch", 3, 16, 16))
    contract = Contract((given,), (TensorSpec("logits", "float32", ("batch", 3)),), Kind.LOGITS)
    files = []
    for seed in range(2):
        torch.manual_seed(seed)
        with quiet_transformers():
            config = transformers.AutoConfig.for_model(model_type, num_labels=3, **configs[model_type])
            task = transformers.AutoModelForSequenceClassification if is_text else transformers.AutoModelForImageClassification
            model = task.from_config(config)
        for parameter in model.parameters():  # else biases would be zeros, and scales ones, which members share
            torch.nn.init.normal_(parameter, std=0.3)
        path = tmp_path / f"{model_type}{seed}.onnx"
        export_torch(TorchModel(Logits(model).eval(), contract, model_type), path, batch_sizes=(1, 2))
        files.append(read_onnx(path))
    fused = fuse_files(files, horizontal=ASKED)
    assert_weighted_sum(fused, files)
    assert left_apart(fused) == []
    assert fused.batching is not None
    assert fused.batching.groups_batched == fused.batching.groups


ACTIVATIONS = ("Relu", "Tanh", "Softmax", "Sigmoid", "LeakyRelu")


def random_stack(seed: int, picture: bool, widths: Sequence[int], activations: Sequence[str], skip: bool) -> onnx.ModelProto:
    """Conv or Gemm and activation in turn; the structure depends on everything but the seed."""
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def weight(*shape: int) -> str:
        weights.append(numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32), f"w{len(weights)}"))
        return weights[-1].name

    def emit(op: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [f"v{len(nodes)}"], **attributes))
        return str(nodes[-1].output[0])

    value, size = "x", 2 if picture else 4
    for width, activation in zip(widths, activations, strict=False):
        before, old = value, size
        size = old if skip else width
        if picture:
            value = emit("Conv", value, weight(size, old, 3, 3), weight(size), pads=[1] * 4)
        else:
            value = emit("Gemm", value, weight(old, size), weight(size))
        value = emit(activation, value, **({"axis": 1} if activation == "Softmax" else {}))
        value = emit("Add", value, before) if skip else value
    if picture:
        value = emit("Flatten", emit("GlobalAveragePool", value))
    value = emit("Gemm", value, weight(size, 3), weight(3))
    shape = ["batch", 2, 5, 5] if picture else ["batch", 4]
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", 3])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8)


@given(
    picture=st.booleans(),
    widths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    activations=st.tuples(*[st.sampled_from(ACTIVATIONS)] * 3),
    skip=st.booleans(),
    count=st.integers(2, 4),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=20, deadline=None)
def test_a_batch_computes_what_members_apart_do(
    picture: bool, widths: Sequence[int], activations: Sequence[str], skip: bool, count: int, order: Any
):
    seeds = list(range(count))
    order.shuffle(seeds)
    with TemporaryDirectory() as folder:
        files = []
        for seed in seeds:
            path = Path(folder) / f"m{seed}.onnx"
            onnx.save(random_stack(seed, picture, widths, activations, skip), path)
            files.append(read_onnx(path))
        apart = fuse(plan_fusion(files), Path(folder) / "apart.onnx")
        batched = fuse(plan_fusion(files, horizontal=ASKED), Path(folder) / "batched.onnx")
        x = np.random.default_rng(1).standard_normal((6, 2, 5, 5) if picture else (6, 4), dtype=np.float32)
        (expected,) = open_session(apart.file.path)({"x": x}).values()
        for rows in (x, x[:1]):
            (got,) = open_session(batched.file.path)({"x": rows}).values()
            np.testing.assert_allclose(got, expected[: len(rows)], atol=1e-5 * max(1.0, float(np.abs(expected).max())))
