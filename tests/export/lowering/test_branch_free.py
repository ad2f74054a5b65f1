"""Cascades without branches give what the cascade gives, and hold no operator that phones lack."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from monograph.errors import FusionError
from monograph.export.fusion.cascade import fuse_cascade, plan_cascade
from monograph.export.lowering import find_lowering, lower
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.runtime.session import open_session

Write = Callable[..., OnnxFile]
LACKING = {"If", "Compress", "NonZero", "ScatterND", "OneHot"}


@pytest.mark.parametrize("count", [2, 3])
def test_all_rows_through_all_members(count: int, write_linear: Write, tmp_path: Path):
    files = [write_linear(f"m{seed}", seed=seed) for seed in range(count)]
    cascade = fuse_cascade(plan_cascade(files, thresholds=[0.6] * (count - 1)), tmp_path / "cascade.onnx")
    made = lower(find_lowering("branch-free"), cascade.file, tmp_path / "flat.onnx")
    lowered = read_onnx(made.path)
    operators = {node.op_type for node in onnx.load(lowered.path).graph.node}
    assert operators & LACKING == set()
    assert made.proof.worst.relative_error <= 1e-5
    assert lowered.contract == cascade.file.contract
    x = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32) * 2
    (branching,), (flat,) = (open_session(file.path)({"x": x}).values() for file in (cascade.file, lowered))
    np.testing.assert_allclose(flat, branching, atol=1e-5)


def test_a_shared_trunk_stays_shared(write_model: Write, tmp_path: Path):
    rng = np.random.default_rng(1)
    text = '<ir_version: 8, opset_import: ["": 20]> m (float[batch, 4] x) => (float[batch, 3] logits)'
    trunk = rng.standard_normal((4, 6)).astype(np.float32)
    heads = [rng.standard_normal((6, 3)).astype(np.float32) for _ in range(2)]
    files = [
        write_model(f"m{n}", f"{text} {{ h = MatMul(x, t) r = Relu(h) logits = MatMul(r, w) }}", {"t": trunk, "w": head})
        for n, head in enumerate(heads)
    ]
    cascade = fuse_cascade(plan_cascade(files, thresholds=[0.6]), tmp_path / "cascade.onnx")
    made = lower(find_lowering("branch-free"), cascade.file, tmp_path / "flat.onnx")
    operators = [node.op_type for node in onnx.load(made.path).graph.node]
    assert operators.count("MatMul") == 3
    assert operators.count("Relu") == 1


def test_other_graphs_are_refused(write_linear: Write, write_model: Write, tmp_path: Path):
    with pytest.raises(FusionError, match="has no branch"):
        lower(find_lowering("branch-free"), write_linear("plain"), tmp_path / "flat.onnx")
    text = """<ir_version: 8, opset_import: ["": 20]> m (float[batch, 4] x) => (float[batch, 4] logits) {
        s = ReduceSum<keepdims = 0>(x) c = Cast<to = 9>(s)
        logits = If (c) < then_branch = t () => (float[n, 4] a) { a = Relu(x) }, else_branch = e () => (float[n, 4] b)
        { b = Neg(x) } > }"""
    with pytest.raises(FusionError, match="are not those of a cascade"):
        lower(find_lowering("branch-free"), write_model("other", text), tmp_path / "flat.onnx")
    assert not (tmp_path / "flat.onnx").exists()
