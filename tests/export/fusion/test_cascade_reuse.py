"""Cascades whose members begin alike: the later one goes on from what the earlier one has computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from monograph.export.fusion.cascade import Cascaded, fuse_cascade, plan_cascade
from monograph.export.fusion.cascade.build import build_cascade
from monograph.models.onnx_file import OnnxFile
from monograph.runtime.session import open_session

Write = Callable[..., OnnxFile]
RNG = np.random.default_rng(9)


def weight(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


KERNEL, SECOND, THIRD = weight(8, 1, 3, 3), weight(8, 8, 3, 3), weight(8, 8, 3, 3)
STEM = "c = Conv<pads = [1, 1, 1, 1]>(x, k) r = Relu(c) p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)"
PICTURE = '<ir_version: 8, opset_import: ["": 20]> m (float[batch, 1, 8, 8] x) => (float[batch, 3] logits)'


def exit_after_one(write: Write, name: str = "small", **arrays: np.ndarray) -> OnnxFile:
    body = f"{STEM} g = GlobalAveragePool(p) f = Flatten(g) logits = Gemm(f, w, b)"
    return write(name, f"{PICTURE} {{ {body} }}", {"k": KERNEL, "w": weight(8, 3), "b": weight(3)} | arrays)


def exit_after_two(write: Write, name: str = "large", **arrays: np.ndarray) -> OnnxFile:
    body = (
        f"{STEM} d = Conv<pads = [1, 1, 1, 1]>(p, l) s = Relu(d) g = GlobalAveragePool(s) f = Flatten(g) logits = Gemm(f, w, b)"
    )
    return write(name, f"{PICTURE} {{ {body} }}", {"k": KERNEL, "l": SECOND, "w": weight(8, 3), "b": weight(3)} | arrays)


def exit_after_three(write: Write) -> OnnxFile:
    body = f"""{STEM} d = Conv<pads = [1, 1, 1, 1]>(p, l) s = Relu(d) e = Conv<pads = [1, 1, 1, 1]>(s, m) t = Relu(e)
        g = GlobalAveragePool(t) f = Flatten(g) logits = Gemm(f, w, b)"""
    arrays = {"k": KERNEL, "l": SECOND, "m": THIRD, "w": weight(8, 3), "b": weight(3)}
    return write("largest", f"{PICTURE} {{ {body} }}", arrays)


def branches(cascade: Cascaded) -> list[list[str]]:
    """Operators of each branch of hard rows, from the outermost in."""
    graph, found = onnx.load(cascade.file.path).graph, []
    while guards := [node for node in graph.node if node.op_type == "If"]:
        graph = next(attribute.g for attribute in guards[0].attribute if attribute.name == "then_branch")
        found.append([node.op_type for node in graph.node if node.op_type not in ("NonZero", "Transpose", "ScatterND")])
    return found


def run(file: OnnxFile, x: np.ndarray) -> np.ndarray:
    (output,) = open_session(file.path)({"x": x}).values()
    return output.astype(np.float64)


def assert_right(cascade: Cascaded, files: Sequence[OnnxFile], threshold: float) -> None:
    """Each row is answered by the first member that is sure of it."""
    for size in (1, 3, 32):
        x = np.random.default_rng(size).standard_normal((size, 1, 8, 8)).astype(np.float32) * 3
        expected = run(files[-1], x)
        for file in files[-2::-1]:
            logits = run(file, x)
            shares = np.exp(logits - logits.max(1, keepdims=True))
            sure = (shares / shares.sum(1, keepdims=True)).max(1) >= threshold
            expected = np.where(sure[:, None], logits, expected)
        np.testing.assert_allclose(run(cascade.file, x), expected, atol=1e-4)


def build(files: Sequence[OnnxFile], folder: Path, **choices: bool) -> Cascaded:
    return fuse_cascade(plan_cascade(files, thresholds=[0.7] * (len(files) - 1), **choices), folder / "cascade.onnx")


def test_a_common_trunk_runs_once_and_is_stored_once(write_model: Write, tmp_path: Path):
    files = [exit_after_one(write_model), exit_after_two(write_model)]
    cascade = build(files, tmp_path)
    assert branches(cascade) == [["Compress", "Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]]
    assert_right(cascade, files, 0.7)
    stored = [tuple(tensor.dims) for tensor in onnx.load(cascade.file.path).graph.initializer]
    assert stored.count(KERNEL.shape) == 1
    stem = next(node for node in onnx.load(cascade.file.path).graph.node if node.op_type == "Conv")
    assert {entry.value for entry in stem.metadata_props if entry.key == "monograph.members"} == {"small,large"}


def test_three_exits_of_one_network(write_model: Write, tmp_path: Path):
    files = [exit_after_one(write_model), exit_after_two(write_model), exit_after_three(write_model)]
    cascade = build(files, tmp_path)
    first, second = branches(cascade)
    assert (first.count("Conv"), second.count("Conv")) == (1, 1)
    assert_right(cascade, files, 0.7)


def test_not_shared_on_request(write_model: Write, tmp_path: Path):
    files = [exit_after_one(write_model), exit_after_two(write_model)]
    apart = build(files, tmp_path, share=False)
    assert branches(apart)[0].count("Conv") == 2
    assert_right(apart, files, 0.7)


@pytest.mark.parametrize("changed", ["k", "b"])
def test_other_weights_are_not_shared(changed: str, write_model: Write, tmp_path: Path):
    arrays = {"k": KERNEL + 1e-3, "b": weight(3)}
    files = [exit_after_one(write_model), exit_after_two(write_model, **{changed: arrays[changed]})]
    cascade = build(files, tmp_path)
    assert branches(cascade)[0].count("Conv") == (2 if changed == "k" else 1)
    assert_right(cascade, files, 0.7)


def test_equal_members_share_everything(write_model: Write, tmp_path: Path):
    fixed = {"w": weight(8, 3), "b": weight(3)}
    files = [exit_after_one(write_model, name, **fixed) for name in ("one", "two")]
    cascade = build(files, tmp_path)
    assert branches(cascade) == [["Compress"]]
    assert_right(cascade, files, 0.7)


def test_an_operator_over_the_rows_is_not_taken_for_one_row_by_row(write_model: Write, tmp_path: Path):
    """Its trunk takes the mean over the batch, so the rows that are hard see another mean than all rows do."""
    text = '<ir_version: 8, opset_import: ["": 20]> m (float[batch, 4] x) => (float[batch, 3] logits)'
    body = "m = ReduceMean<keepdims = 1>(x, first) c = Sub(x, m) h = MatMul(c, w1) logits = MatMul(h, w2)"
    arrays = {"first": np.array([0], np.int64), "w1": weight(4, 5)}
    files = [write_model(name, f"{text} {{ {body} }}", arrays | {"w2": weight(5, 3)}) for name in ("small", "large")]
    plan = plan_cascade(files, thresholds=[0.7])
    assert any(finding.op_type == "ReduceMean" for _, finding in plan.findings)
    (guard,) = [node for node in build_cascade(plan).graph if node.op_type == "If"]
    inside = [node.op_type for node in guard.attributes["then_branch"].as_graph()]
    assert inside.count("MatMul") == 2
