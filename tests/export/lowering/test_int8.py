"""Eight bits where the weights are: sizes stay free, sums and softmax stay in float, and dynamic ranges need no rows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from monograph.errors import ExportError
from monograph.export.lowering import LOWERING_KEY, find_lowering, is_quantised, lower
from monograph.export.trace import export_torch
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.models.students import transformer
from monograph.models.torch_model import TorchModel
from monograph.pipelines.verify import verify_model


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> tuple[OnnxFile, Rows]:
    """An untrained transformer of texts, and texts with padding."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("text") / "text.onnx"
    export_torch(TorchModel(*transformer(200, 24, 3, width=16, depth=1, heads=2), "text"), path)
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 13, 64)
    mask = (np.arange(12) < lengths[:, None]).astype(np.int64)
    return read_onnx(path), Rows({"input_ids": rng.integers(0, 200, (64, 12)) * mask, "attention_mask": mask})


@pytest.mark.parametrize("name", ["int8-static", "int8-dynamic"])
def test_sizes_stay_free(source: OnnxFile, calibration: Rows, unseen: Rows, tmp_path: Path, name: str):
    lowered = lower(find_lowering(name), source, tmp_path / "l.onnx", calibration=calibration, rows=unseen)
    assert lowered.contract == source.contract
    verification = verify_model(lowered.path)
    assert verification.passed
    assert [check.batch_size for check in verification.golden] == [1, 2, 5]


def test_scores_and_sums_of_a_transformer_stay_in_float(text: tuple[OnnxFile, Rows], tmp_path: Path):
    """A mask of -10,000 is added to the scores: 256 steps over that range would leave nothing of them."""
    source, rows = text
    lowered = lower(find_lowering("int8-static"), source, tmp_path / "l.onnx", calibration=rows)
    graph = onnx.load(lowered.path).graph
    made_by = {output: node for node in graph.node for output in node.output}
    quantised = {made_by[node.input[0]].op_type for node in graph.node if node.op_type == "QuantizeLinear"}
    assert quantised <= {"Gather", "LayerNormalization", "Reshape", "Gelu", "Div"}, "embeddings, and what goes into weights"
    whole = lower(find_lowering("qdq-int8"), source, tmp_path / "w.onnx", calibration=rows, sizes={"sequence": 12})
    assert lowered.proof.max_abs_error * 3 < whole.proof.max_abs_error


@pytest.mark.parametrize("name", ["int8-static", "int8-dynamic"])
def test_embeddings_and_matrices_take_a_byte_a_weight(text: tuple[OnnxFile, Rows], tmp_path: Path, name: str):
    source, rows = text
    lowered = lower(find_lowering(name), source, tmp_path / "l.onnx", calibration=rows)
    large = [numpy_helper.to_array(one) for one in onnx.load(lowered.path).graph.initializer if np.prod(one.dims) >= 256]
    assert {array.dtype.itemsize for array in large} == {1}


def test_dynamic_leaves_convolutions_in_float_and_asks_for_no_rows(source: OnnxFile, unseen: Rows, tmp_path: Path):
    lowered = lower(find_lowering("int8-dynamic"), source, tmp_path / "l.onnx", rows=unseen)
    assert lowered.warnings == ()
    operators = Counter(node.op_type for node in onnx.load(lowered.path).graph.node)
    assert (operators["Conv"], operators["ConvInteger"], operators["MatMulInteger"]) == (3, 0, 1)
    file = read_onnx(lowered.path)
    assert is_quantised(file)
    record = json.loads(file.metadata[LOWERING_KEY])
    assert (record["calibration"], record["agreement"]["is_held_out"]) == (None, True)


def test_dynamic_of_convolutions_alone_is_refused(tmp_path: Path):
    text = (
        '<ir_version: 10, opset_import: ["": 20]> g (float[batch, 1, 4, 4] x) => (float[batch, 1, 4, 4] y) '
        "<float[1, 1, 1, 1] w = {2}> { y = Conv(x, w) }"
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=r"m\.onnx has no matrix product by weights and no embedding.*take int8-static"):
        lower(find_lowering("int8-dynamic"), read_onnx(tmp_path / "m.onnx"), tmp_path / "l.onnx")
    assert not (tmp_path / "l.onnx").exists()


@pytest.mark.parametrize("name", ["int8-static", "qdq-int8"])
def test_a_graph_older_than_scales_a_channel_is_brought_to_an_opset_that_has_them(tmp_path: Path, name: str):
    text = (
        '<ir_version: 6, opset_import: ["": 11]> g (float[batch, 1, 4, 4] x) => (float[batch, 2, 4, 4] y) '
        "<float[2, 1, 1, 1] w = {2, -1}> { y = Conv(x, w) }"
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "old.onnx")
    source = read_onnx(tmp_path / "old.onnx")
    rows = Rows({"x": np.random.default_rng(0).standard_normal((64, 1, 4, 4)).astype(np.float32)})
    lowered = read_onnx(lower(find_lowering(name), source, tmp_path / "l.onnx", calibration=rows).path)
    assert (source.opset, lowered.opset) == (11, 13)
    scales = [node for node in onnx.load(lowered.path).graph.node if node.op_type == "DequantizeLinear" and node.attribute]
    assert scales, "weights have a scale a channel"
