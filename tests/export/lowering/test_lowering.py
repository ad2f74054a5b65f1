"""A lowered file computes what its source does, within the stated bound, or it is not written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from monograph.errors import ConfigError, ParityError
from monograph.export.lowering import LOWERING_KEY, LOWERINGS, AgreementBound, find_lowering, lower, lowered_contract
from monograph.export.lowering.static import fix_contract
from monograph.models.contract import Contract, Kind, TensorSpec, TextPreprocessing
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.runtime.runner import run_all_rows
from monograph.runtime.session import open_session

QUANTISED = [name for name, lowering in LOWERINGS.items() if lowering.is_quantised]
CALIBRATED = [name for name, lowering in LOWERINGS.items() if lowering.is_calibrated]
STATIC = [name for name, lowering in LOWERINGS.items() if lowering.fixes_sizes and lowering.target is None]

OF_ANY_MODEL = [name for name, lowering in LOWERINGS.items() if name != "branch-free" and lowering.target is None]
"""That one takes cascades only: see test_branch_free.py; of those for a target alone see test_qnn_context.py."""


def op_types(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("name", OF_ANY_MODEL)
def test_every_lowering_keeps_the_answers(source: OnnxFile, calibration: Rows, unseen: Rows, tmp_path: Path, name: str):
    held_out = unseen.take(slice(0, 150))
    lowered = lower(LOWERINGS[name], source, tmp_path / "lowered.onnx", calibration=calibration, rows=held_out)
    assert lowered.warnings == ()
    file = read_onnx(lowered.path)
    assert file.contract == lowered.contract
    assert (file.contract.kind, file.contract.class_names) == (source.contract.kind, source.contract.class_names)
    expected, got = (run_all_rows(open_session(one.path), one.contract, unseen) for one in (source, file))
    assert np.mean(expected.argmax(1) == got.argmax(1)) >= 0.97
    assert np.mean(got.argmax(1) == unseen.labels) > 0.8


@pytest.mark.parametrize("name", OF_ANY_MODEL)
def test_the_file_says_what_was_done_to_which_source(source: OnnxFile, calibration: Rows, tmp_path: Path, name: str):
    lower(LOWERINGS[name], source, tmp_path / "lowered.onnx", calibration=calibration)
    record = json.loads(read_onnx(tmp_path / "lowered.onnx").metadata[LOWERING_KEY])
    assert record["lowering"] == name
    assert record["source_sha256"] == source.sha256
    assert record["packages"]["onnxruntime"]
    if name in QUANTISED:
        assert record["agreement"]["rows"] == "real"
        assert record["agreement"]["top1_agreement"] >= record["agreement"]["bound"]["top1"]
    if name in CALIBRATED:
        assert record["calibration"]["row_count"] == 100
        assert record["calibration"]["sha256"] == calibration.sha256()
    else:
        assert record["calibration"] is None


@pytest.mark.parametrize("name", STATIC)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_sizes_are_fixed_and_any_number_of_rows_still_runs(
    source: OnnxFile, calibration: Rows, unseen: Rows, tmp_path: Path, name: str, batch_size: int
):
    lowered = lower(LOWERINGS[name], source, tmp_path / "lowered.onnx", calibration=calibration, batch_size=batch_size)
    assert lowered.contract.inputs[0].shape == (batch_size, 1, 8, 8)
    assert lowered.contract.output.shape == (batch_size, 10)
    outputs = run_all_rows(open_session(lowered.path), lowered.contract, unseen.take(slice(0, 7)))
    assert outputs.shape == (7, 10)


@pytest.mark.parametrize("name", CALIBRATED)
def test_random_rows_are_warned_of(source: OnnxFile, tmp_path: Path, name: str):
    lowered = lower(LOWERINGS[name], source, tmp_path / "lowered.onnx")
    (warning,) = lowered.warnings
    assert "32 random rows" in warning
    assert "--calibration DATA" in warning


@pytest.mark.parametrize(
    ("name", "dtype"), [("qdq-htp", np.uint16), ("qdq-htp-int8", np.uint8), ("qdq-int8", np.uint8), ("int8-static", np.uint8)]
)
def test_activations_have_the_width_that_the_name_says(
    source: OnnxFile, calibration: Rows, tmp_path: Path, name: str, dtype: type
):
    lower(LOWERINGS[name], source, tmp_path / "lowered.onnx", calibration=calibration)
    graph = onnx.load(tmp_path / "lowered.onnx").graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    zero_points = {tensors[node.input[2]].dtype.type for node in graph.node if node.op_type == "QuantizeLinear"}
    assert zero_points == {dtype}


def test_half_precision_keeps_the_types_of_inputs_and_outputs(source: OnnxFile, tmp_path: Path):
    lowered = lower(LOWERINGS["fp16"], source, tmp_path / "half.onnx")
    assert lowered.contract == source.contract
    types = {tensor.data_type for tensor in onnx.load(tmp_path / "half.onnx").graph.initializer if len(tensor.dims) > 1}
    assert types == {onnx.TensorProto.FLOAT16} | (types - {onnx.TensorProto.FLOAT})
    assert onnx.TensorProto.FLOAT not in types
    assert read_onnx(tmp_path / "half.onnx").size_bytes < source.size_bytes


@pytest.mark.parametrize("name", OF_ANY_MODEL)
def test_a_conversion_that_goes_wrong_is_refused_and_nothing_is_written(
    source: OnnxFile, calibration: Rows, damaged: Path, tmp_path: Path, name: str
):
    """The conversion takes another file's weights: what a faulty converter would do."""
    right = LOWERINGS[name]
    faulty = dataclasses.replace(
        right, convert=lambda job: right.convert(dataclasses.replace(job, source=dataclasses.replace(source, path=damaged)))
    )
    (tmp_path / "kept.onnx").write_text("what was there before", encoding="utf-8")
    with pytest.raises(ParityError, match=r"kept\.onnx does not (agree with|compute the same as).*nothing was written"):
        lower(faulty, source, tmp_path / "kept.onnx", calibration=calibration)
    assert (tmp_path / "kept.onnx").read_text(encoding="utf-8") == "what was there before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.onnx", "kept.onnx"]


def test_a_bound_that_is_not_reached_refuses_by_number(source: OnnxFile, calibration: Rows, tmp_path: Path):
    with pytest.raises(ParityError, match=r"top-1 agreement .* expected at least .* cosine 1\.5"):
        lower(LOWERINGS["qdq-int8"], source, tmp_path / "l.onnx", calibration=calibration, bound=AgreementBound(cosine=1.5))


@pytest.mark.parametrize("name", QUANTISED)
def test_what_is_quantised_already_is_not_quantised_again(source: OnnxFile, calibration: Rows, tmp_path: Path, name: str):
    lower(LOWERINGS[name], source, tmp_path / "once.onnx", calibration=calibration)
    with pytest.raises(ConfigError, match=r"once\.onnx is quantised already"):
        lower(LOWERINGS[name], read_onnx(tmp_path / "once.onnx"), tmp_path / "twice.onnx", calibration=calibration)


def test_shapes_that_the_graph_computes_become_constants(tmp_path: Path):
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[batch, 2, 3] x) => (float[batch, 6] y) '
        "<int64[1] zero = {0}, int64[1] six = {6}> "
        "{ shape = Shape(x) batch_size = Gather(shape, zero) target = Concat<axis = 0>(batch_size, six) "
        "h = Reshape(x, target) y = Relu(h) }"
    )
    onnx.save(model, tmp_path / "m.onnx")
    lowered = lower(LOWERINGS["static-batch"], read_onnx(tmp_path / "m.onnx"), tmp_path / "static.onnx", batch_size=4)
    assert op_types(lowered.path) == ["Reshape", "Relu"]
    assert lowered.contract.output.shape == (4, 6)


class TestContract:
    TOKENS = TensorSpec("input_ids", "int64", ("batch", "sequence"), TextPreprocessing("input_ids", max_length=512), 100)
    SCORES = TensorSpec("scores", "float32", ("batch", "sequence", 2))

    def test_a_text_gets_128_tokens_or_as_many_as_it_may_have(self):
        contract = Contract((self.TOKENS,), (self.SCORES,), Kind.SCORES)
        fixed = fix_contract(contract)
        assert fixed.inputs[0].shape == (1, 128)
        assert fixed.output.shape == (1, 128, 2)
        short = dataclasses.replace(self.TOKENS, preprocessing=TextPreprocessing("input_ids", max_length=64))
        assert fix_contract(dataclasses.replace(contract, inputs=(short,))).inputs[0].shape == (1, 64)

    def test_a_stated_size_wins(self):
        contract = Contract((self.TOKENS,), (self.SCORES,), Kind.SCORES)
        assert fix_contract(contract, 2, {"sequence": 16}).output.shape == (2, 16, 2)

    def test_an_unknown_size_is_asked_for_by_name(self):
        picture = TensorSpec("x", "float32", ("batch", 3, "height", 32))
        with pytest.raises(ConfigError, match=r"input x: .* has no fixed size for 'height': give it one, --size height=N"):
            fix_contract(Contract((picture,), (self.SCORES,), Kind.SCORES))

    def test_half_precision_leaves_sizes_open(self, source: OnnxFile):
        assert lowered_contract(LOWERINGS["fp16"], source.contract) == source.contract


def test_another_lowering_names_those_that_there_are():
    with pytest.raises(ConfigError, match="unknown lowering 'int4': choose from static-batch, qdq-htp"):
        find_lowering("int4")
