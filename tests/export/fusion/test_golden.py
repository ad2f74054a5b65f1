"""Fused graphs as text, line by line. ``WRITE_GOLDEN=1 pytest tests/export/fusion/test_golden.py`` writes them anew."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from monograph.export.fusion import Fused
from monograph.export.fusion.horizontal.choice import ASKED
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.onnx_file import OnnxFile

WriteModel = Callable[..., OnnxFile]
FuseFiles = Callable[..., Fused]
GOLDEN = Path(__file__).parent / "golden"


def listing(path: Path) -> str:
    """Inputs, outputs, weights and nodes in the order of the file, one a line; branches are indented."""
    model = ir.load(path)
    imports = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in sorted(model.opset_imports.items()))
    return "\n".join([f"opset {imports}, ir {model.ir_version}", *_lines(model.graph), ""])


def _lines(graph: ir.Graph, indent: str = "") -> Iterator[str]:
    for side, values in (("input ", graph.inputs), ("weight", graph.initializers.values()), ("output", graph.outputs)):
        for value in values:
            yield f"{indent}{side} {value.name}: {value.dtype} {value.shape}"
    for node in graph:
        attributes = [f"{name} = {attr.value}" for name, attr in sorted(node.attributes.items()) if not _graphs(attr)]
        inputs = ", ".join("" if value is None else str(value.name) for value in node.inputs)
        outputs = ", ".join(str(value.name) for value in node.outputs)
        settings = f" <{', '.join(attributes)}>" if attributes else ""
        yield f"{indent}node   {node.name}: {outputs} = {node.op_type}({inputs}){settings}"
        for name, attr in sorted(node.attributes.items()):
            for subgraph in _graphs(attr):
                yield f"{indent}  {name}"
                yield from _lines(subgraph, f"{indent}    ")


def _graphs(attr: ir.Attr) -> list[ir.Graph]:
    return [attr.as_graph()] if attr.type is ir.AttributeType.GRAPH else []


def assert_golden(fused: Fused, name: str) -> None:
    text, path = listing(fused.file.path), GOLDEN / name
    if os.environ.get("WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def test_logits_of_two_picture_models(write_model: WriteModel, fuse_files: FuseFiles):
    """Another opset, other names, the classes in another order."""
    conv = """<ir_version: 7, opset_import: ["": 12]>
        conv (float[N, 1, 6, 6] picture) => (float[N, 3] scores) {
            [stem] h = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(picture, w, b)
            [act] r = Relu(h)
            p = GlobalAveragePool(r)
            f = Flatten(p)
            scores = Gemm(f, head, bias)
        }"""
    mlp = """<ir_version: 8, opset_import: ["": 17]>
        mlp (float[batch, 1, 6, 6] pixels) => (float[batch, 3] logits) {
            [stem] f = Flatten(pixels)
            h = Gemm(f, w, b)
            r = Relu(h)
            logits = Gemm(r, head, bias)
        }"""
    classes = ("owl", "cat", "dog")
    pixels = TensorSpec("pixels", "float32", ("batch", 1, 6, 6))
    logits = TensorSpec("logits", "float32", ("batch", 3))
    picture = TensorSpec("picture", "float32", ("N", 1, 6, 6))
    scores = TensorSpec("scores", "float32", ("N", 3))
    files = [
        write_model(
            "mlp",
            mlp,
            weights(w=(36, 5), b=(5,), head=(5, 3), bias=(3,)),
            contract=Contract((pixels,), (logits,), Kind.LOGITS, classes),
        ),
        write_model(
            "conv",
            conv,
            weights(w=(4, 1, 3, 3), b=(4,), head=(4, 3), bias=(3,)),
            contract=Contract((picture,), (scores,), Kind.LOGITS, classes[::-1]),
        ),
    ]
    assert_golden(fuse_files(files, weights=(0.25, 0.75), share=False), "logits.txt")


def test_probabilities_of_two_text_models(write_model: WriteModel, fuse_files: FuseFiles):
    """Ids of two integer types, a branch that captures a weight, one member that gives probabilities already."""
    branch = """<ir_version: 8, opset_import: ["": 20]>
        branch (int64[batch, sequence] ids) => (float[batch, 3] logits) {
            e = Gather(table, ids)
            long = Size(ids)
            many = Greater(long, limit)
            pooled = If (many) <
                then_branch = yes () => (float[n, 4] t) { t = ReduceMax<keepdims = 0>(e, axis) },
                else_branch = no () => (float[n, 4] u) { u = ReduceMean<keepdims = 0>(e, axis) }
            >
            logits = MatMul(pooled, head)
        }"""
    plain = """<ir_version: 8, opset_import: ["": 20]>
        plain (int32[batch, sequence] ids) => (float[batch, 3] probabilities) {
            e = Gather(table, ids)
            pooled = ReduceMean<keepdims = 0>(e, axis)
            z = MatMul(pooled, head)
            probabilities = Softmax(z)
        }"""
    arrays = weights(table=(9, 4), head=(4, 3)) | {"axis": np.array([1])}
    files = [write_model("branch", branch, arrays | {"limit": np.array(20)}), write_model("plain", plain, arrays)]
    assert_golden(fuse_files(files, share=False), "probs.txt")


def test_a_batch_of_two_picture_models(write_model: WriteModel, fuse_files: FuseFiles):
    text = """<ir_version: 8, opset_import: ["": 20]>
        conv (float[batch, 1, 6, 6] pixels) => (float[batch, 3] logits) {
            h = Conv<pads = [1, 1, 1, 1]>(pixels, w, b)
            r = Relu(h)
            d = Conv<group = 2>(r, v)
            p = GlobalAveragePool(d)
            f = Flatten(p)
            logits = Gemm<transB = 1>(f, head, bias)
        }"""
    files = []
    for name, sign in (("plus", 1), ("minus", -1)):
        arrays = weights(w=(4, 1, 3, 3), b=(4,), v=(4, 2, 1, 1), head=(3, 4), bias=(3,))
        files.append(write_model(name, text, {key: sign * array for key, array in arrays.items()}))
    assert_golden(fuse_files(files, weights=(0.25, 0.75), horizontal=ASKED), "horizontal.txt")


@pytest.mark.parametrize("name", ["logits.txt", "probs.txt", "horizontal.txt"])
def test_every_golden_graph_ends_in_the_sum(name: str):
    """Guards against golden files written anew without a look."""
    last = (GOLDEN / name).read_text().splitlines()[-1]
    assert last.startswith("node   fusion/Add_")
    assert last.count("fusion/Mul_") == 2


def test_the_listing_tells_graphs_apart(write_model: WriteModel):
    text = '<ir_version: 8, opset_import: ["": 20]> m (float[batch, 4] x) => (float[batch, 4] y) { y = LeakyRelu<alpha = %s>(x) }'
    one, other = (listing(write_model(f"m{alpha}", onnx.parser.parse_model(text % alpha)).path) for alpha in (0.1, 0.2))
    assert one != other


def test_class_weights_of_a_member_with_logits_and_one_without_a_class(write_model: WriteModel, fuse_files: FuseFiles):
    text = """<ir_version: 8, opset_import: ["": 17]>
        linear (float[batch, 4] x) => (float[batch, C] logits) { logits = MatMul(x, w) }"""
    files = []
    for name, classes in (("all", "pqr"), ("some", "rp")):
        specs = (TensorSpec("x", "float32", ("batch", 4)),), (TensorSpec("logits", "float32", ("batch", len(classes))),)
        contract = Contract(*specs, Kind.LOGITS, tuple(classes))
        matrix = weights(w=(4, len(classes)))
        files.append(write_model(name, text.replace("C]", f"{len(classes)}]"), matrix, contract=contract))
    assert_golden(fuse_files(files, class_weights=((0.25, 1, 0.5), (0.75, 0, 0.5)), share=False), "class_weights.txt")
