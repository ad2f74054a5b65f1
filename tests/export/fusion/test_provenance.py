"""Which member each node of a fused file serves, as read back from the file."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from monograph.errors import FusionError, SourceError
from monograph.export.fusion import Fused, plan_fusion
from monograph.export.fusion.cascade import fuse_cascade, plan_cascade
from monograph.export.fusion.sharing import members_by_node, members_by_output
from monograph.models.contract import Contract, ImagePreprocessing, Kind, TensorSpec
from monograph.models.onnx_file import OnnxFile

WriteModel = Callable[..., OnnxFile]
FuseFiles = Callable[..., Fused]
RNG = np.random.default_rng(3)
TRUNK = {"w1": RNG.standard_normal((4, 6), dtype=np.float32)}
HEADS = [{"w2": RNG.standard_normal((6, 3), dtype=np.float32)} for _ in range(2)]


def classifier(body: str, opset: int = 20, batch: str = "batch") -> str:
    head = f'<ir_version: 8, opset_import: ["": {opset}]> m (float[{batch}, 4] x) => (float[{batch}, 3] logits)'
    return f"{head} {{ {body} }}"


def node_count(path: Path) -> int:
    def count(graph: onnx.GraphProto) -> int:
        inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
        return len(graph.node) + sum(map(count, inner))

    return count(onnx.load(path).graph)


def every_node_tells(path: Path) -> dict[str, tuple[str, ...]]:
    members = members_by_node(path)
    assert len(members) == node_count(path)
    assert all(members.values()), members
    return members


def test_a_shared_trunk_serves_both_and_each_head_its_own(write_model: WriteModel, fuse_files: FuseFiles):
    text = classifier("h = MatMul(x, w1) r = Relu(h) z = MatMul(r, w2) logits = Softmax(z)")
    fused = fuse_files([write_model(name, text, TRUNK | HEADS[n]) for n, name in enumerate("ab")])
    members = every_node_tells(fused.file.path)
    assert members["a/MatMul_0"] == members["a/Relu_1"] == ("a", "b")
    assert members["a/MatMul_2"] == ("a",)
    assert members["b/MatMul_2"] == ("b",)
    assert [told for name, told in members.items() if name.startswith("fusion/")] == [("a",), ("b",), ("a", "b")]


def test_folded_heads_serve_all(write_model: WriteModel, fuse_files: FuseFiles):
    text = classifier("h = MatMul(x, w1) r = Relu(h) logits = MatMul(r, w2)")
    fused = fuse_files([write_model(name, text, TRUNK | HEADS[n]) for n, name in enumerate("ab")])
    assert set(every_node_tells(fused.file.path).values()) == {("a", "b")}


def test_sizes_read_once_serve_those_that_read_them(write_model: WriteModel, fuse_files: FuseFiles):
    sized = """s = Shape<start = 0, end = 1>(x) n = Constant<value_ints = [1]>() t = Concat<axis = 0>(s, n)
        y = Relu(x) e = Expand(one, t) r = Concat<axis = 1>(y, e) logits = MatMul(r, w)"""
    plain = "y = Tanh(x) logits = MatMul(y, w)"
    weights = [{"w": RNG.standard_normal((5 if n < 2 else 4, 3), dtype=np.float32)} for n in range(3)]
    weights = [one | ({"one": np.ones((1, 1), np.float32)} if n < 2 else {}) for n, one in enumerate(weights)]
    texts = {"a": sized, "b": sized.replace("Relu", "Sigmoid"), "c": plain}
    files = [write_model(name, classifier(text), weights[n]) for n, (name, text) in enumerate(texts.items())]
    members = every_node_tells(fuse_files(files).file.path)
    assert members["fusion/size/x/0"] == ("a", "b")


def test_members_brought_to_a_newer_opset(write_model: WriteModel, fuse_files: FuseFiles):
    """Softmax over several axes, as opset 11 has it, becomes several nodes, which come without names."""
    old = "u = Unsqueeze<axes = [2]>(x) s = Softmax<axis = 1>(u) q = Squeeze<axes = [2]>(s) logits = MatMul(q, w)"
    new = classifier("y = MatMul(x, w) logits = Tanh(y)", 20)
    weights = [{"w": RNG.standard_normal((4, 3), dtype=np.float32)} for _ in range(2)]
    fused = fuse_files([write_model("old", classifier(old, 11), weights[0]), write_model("new", new, weights[1])])
    members = every_node_tells(fused.file.path)
    told_by_name = {name for name in members if name.startswith("old/")}
    assert {members[name] for name in told_by_name} == {("old",)}
    assert len(told_by_name) > 4, told_by_name  # more than the member was written with


def test_functions_of_a_member(write_model: WriteModel, fuse_files: FuseFiles):
    text = """<ir_version: 8, opset_import: ["": 20, "mine": 1]>
        m (float[batch, 4] x) => (float[batch, 3] logits) { y = MatMul(x, w) logits = mine.twice(y) }
        <domain: "mine", opset_import: ["": 20]> twice (v) => (r) { t = Tanh(v) r = Add(t, t) }"""
    weights = [{"w": RNG.standard_normal((4, 3), dtype=np.float32)} for _ in range(2)]
    fused = fuse_files([write_model(name, text, weights[n], checked=False) for n, name in enumerate("ab")])
    members = every_node_tells(fused.file.path)
    assert sum(told == ("a",) for told in members.values()) == sum(told == ("b",) for told in members.values()) >= 4


def test_branches_of_a_cascade(write_model: WriteModel, write_linear: WriteModel, tmp_path: Path):
    files = [write_linear(name, seed=seed) for seed, name in enumerate(("small", "middle", "large"))]
    built = fuse_cascade(plan_cascade(files, thresholds=[0.6, 0.7]), tmp_path / "cascade.onnx")
    members = every_node_tells(built.file.path)
    assert members["middle/Gemm_0"] == ("middle",)
    assert members["large/Gemm_0"] == ("large",)
    ifs = [told for name, told in members.items() if "/If_" in name]
    assert ifs == [("small", "middle", "large")] * 2


def test_preparation_of_a_shared_picture(write_model: WriteModel, fuse_files: FuseFiles):
    files = []
    for number, (name, mean) in enumerate({"a": 0.5, "b": 0.25}.items()):
        text = """<ir_version: 8, opset_import: ["": 20]> m (float[batch, 3, 2, 2] pixels) => (float[batch, 2] logits)
            { f = Flatten(pixels) logits = MatMul(f, w) }"""
        pixels = TensorSpec("pixels", "float32", ("batch", 3, 2, 2), ImagePreprocessing(mean=(mean,) * 3))
        contract = Contract((pixels,), (TensorSpec("logits", "float32", ("batch", 2)),), Kind.LOGITS)
        weight = np.random.default_rng(number).standard_normal((12, 2), dtype=np.float32)
        files.append(write_model(name, text, {"w": weight}, contract=contract))
    members = every_node_tells(fuse_files(files).file.path)
    offsets = [told for name, told in members.items() if name.startswith("fusion/Add_")]
    assert sorted(offsets) == [("a",), ("a", "b"), ("b",)], "the last is the fusion's own addition"
    assert ("a", "b") in {told for name, told in members.items() if name.startswith("fusion/Mul_")}  # pixels to 0 … 1, once


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the layout of Conv, and so the names, differ by processor")
def test_what_onnx_runtime_ran_is_told_too(write_model: WriteModel, fuse_files: FuseFiles, tmp_path: Path):
    """Its optimiser makes nodes of several, under the names of what they give."""
    text = """<ir_version: 8, opset_import: ["": 20]> m (float[batch, 16, 8, 8] x) => (float[batch, 16] logits)
        { c = Conv<pads = [1, 1, 1, 1]>(x, k) r = Relu(c) d = Conv(r, l) s = Relu(d) g = GlobalAveragePool(s)
          logits = Flatten(g) }"""
    trunk = {"k": RNG.standard_normal((16, 16, 3, 3), dtype=np.float32)}
    own = [{"l": RNG.standard_normal((16, 16, 3, 3), dtype=np.float32)} for _ in range(2)]
    fused = fuse_files([write_model(name, text, trunk | own[n]) for n, name in enumerate("ab")])
    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = ort.InferenceSession(str(fused.file.path), options)
    session.run(None, {"x": np.zeros((1, 16, 8, 8), np.float32)})
    events = json.loads(Path(session.end_profiling()).read_text())
    by_node, by_output = members_by_node(fused.file.path), members_by_output(fused.file.path)
    told = set()
    for event in events:
        if event["args"].get("op_name") == "Conv":
            name = event["name"].removesuffix("_kernel_time")
            told.add(by_node.get(name) or by_output[name.removesuffix("_nchwc")])
    assert told == {("a",), ("b",), ("a", "b")}


def test_a_name_that_an_unnamed_node_would_get(write_model: WriteModel, fuse_files: FuseFiles):
    proto = onnx.parser.parse_model(classifier("y = MatMul(x, w) r = Relu(y) logits = Tanh(r)"))
    for node, name in zip(proto.graph.node, ("Relu_1", "", "last"), strict=True):
        node.name = name
    weights = [{"w": RNG.standard_normal((4, 3), dtype=np.float32)} for _ in range(2)]
    twice = write_model("twice", proto, weights[0])
    fused = fuse_files([twice, write_model("other", classifier("logits = MatMul(x, w)"), weights[1])])
    members = every_node_tells(fused.file.path)
    assert sum(told == ("twice",) for told in members.values()) >= 3


def test_weights_that_were_averaged_serve_all(write_linear: WriteModel):
    path = write_linear("soup").path
    proto = onnx.load(path)
    record = {"form": "soup", "members": [{"name": "a"}, {"name": "b"}]}
    onnx.helper.set_model_props(proto, {"monograph.fusion": json.dumps(record)})
    proto.graph.node[0].name = "dense"
    onnx.save(proto, path)
    assert members_by_node(path) == {"dense": ("a", "b")}


@pytest.mark.parametrize("record", ["", "[]", '{"form": "logits"}', "[" * 100_000])
def test_a_damaged_record(write_linear: WriteModel, record: str):
    path = write_linear("damaged").path
    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, {"monograph.fusion": record})
    onnx.save(proto, path)
    with pytest.raises(SourceError, match=r"metadata 'monograph\.fusion' is damaged: fuse again"):
        members_by_node(path)


def test_a_file_that_is_no_fusion(write_linear: WriteModel, tmp_path: Path):
    with pytest.raises(SourceError, match="is no fusion: it says nothing of members"):
        members_by_node(write_linear("alone").path)
    with pytest.raises(SourceError, match="is missing or is not an ONNX file"):
        members_by_node(tmp_path / "nowhere.onnx")


def test_a_name_that_would_read_as_two(write_linear: WriteModel):
    files = [write_linear(name, seed=seed) for seed, name in enumerate("ab")]
    with pytest.raises(FusionError, match="cannot be called 'a,b'"):
        plan_fusion(files, names=["a,b", "c"])
