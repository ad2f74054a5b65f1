from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from monograph.errors import ConfigError, ParityError
from monograph.export.ort_format import Style, to_ort_format
from monograph.models.contract import CONTRACT_KEY, Contract
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.runtime.session import open_session

Write = Callable[..., OnnxFile]
TEXT = """<ir_version: 10, opset_import: ["": 18]> g (float[batch, 4, 8, 8] x) => (float[batch, 6, 1, 1] y)
{ c = Conv(x, w) a = Relu(c) y = GlobalAveragePool(a) }"""


@pytest.fixture
def network(write_model: Write) -> OnnxFile:
    weights = np.random.default_rng(0).standard_normal((6, 4, 3, 3), dtype=np.float32)
    return write_model("network", TEXT, {"w": weights})


@pytest.mark.parametrize("style", ["Runtime", "Fixed"])
def test_the_ort_file_computes_what_the_onnx_file_does(network: OnnxFile, tmp_path: Path, style: Style):
    made = to_ort_format(network, tmp_path / "out" / "network.ort", style)
    assert {batch.batch_size for batch in made.proof.batches} == {1, 2}
    assert sorted(path.name for path in made.path.parent.iterdir()) == ["network.ort", "network.required_operators.config"]
    assert sorted(path.name for path in network.path.parent.iterdir()) == ["network.onnx", "out"]
    x = np.random.default_rng(1).standard_normal((3, 4, 8, 8), dtype=np.float32)
    np.testing.assert_allclose(open_session(made.path)({"x": x})["y"], open_session(network.path)({"x": x})["y"], atol=1e-6)
    assert made.size_bytes == made.path.stat().st_size


def test_it_is_the_format_of_ort_and_not_onnx(network: OnnxFile, tmp_path: Path):
    made = to_ort_format(network, tmp_path / "network.ort")
    assert made.path.read_bytes()[4:8] == b"ORTM"


def test_the_operators_that_a_reduced_build_needs_are_listed(network: OnnxFile, tmp_path: Path):
    made = to_ort_format(network, tmp_path / "network.ort")
    assert "ai.onnx;11;Conv" in made.operators
    assert made.config.read_text(encoding="utf-8").splitlines() == ["# network.ort", *made.operators]
    names = {name for line in made.operators for name in line.split(";")[2].split(",")}
    # The nodes as they are, and as they are fused when the file is loaded.
    assert {"Conv", "GlobalAveragePool", "FusedConv"} <= names


def test_fixed_style_warns_of_fused_nodes_and_runtime_style_does_not(network: OnnxFile, tmp_path: Path):
    fixed = to_ort_format(network, tmp_path / "fixed.ort", "Fixed")
    assert any("FusedConv, which NNAPI does not take: convert in Runtime style" in warning for warning in fixed.warnings)
    assert to_ort_format(network, tmp_path / "runtime.ort").warnings == ()


def test_runtime_style_keeps_the_nodes_that_providers_look_for(network: OnnxFile, tmp_path: Path):
    def operators(style: Style) -> set[str]:
        made = to_ort_format(network, tmp_path / f"{style}.ort", style)
        return {name for line in made.operators for name in line.split(";")[2].split(",")}

    assert operators("Runtime") >= {"Conv", "Relu"}
    assert not operators("Fixed") & {"Conv", "Relu"}


def test_the_contract_comes_through(write_linear: Write, tmp_path: Path):
    plain = write_linear("plain")
    file = write_linear("named", contract=plain.contract)
    made = to_ort_format(file, tmp_path / "named.ort")
    assert Contract.from_json(open_session(made.path).metadata[CONTRACT_KEY]) == file.contract


def test_real_rows_prove_it_where_they_are_given(write_linear: Write, tmp_path: Path):
    rows = Rows({"x": np.random.default_rng(0).standard_normal((8, 4), dtype=np.float32)}, None)
    made = to_ort_format(write_linear("linear"), tmp_path / "linear.ort", rows=rows)
    assert {batch.rows for batch in made.proof.batches} == {"real"}


def test_a_model_with_a_fixed_batch_is_proven_at_it(write_linear: Write, tmp_path: Path):
    made = to_ort_format(write_linear("three", batch=3), tmp_path / "three.ort")
    assert {batch.batch_size for batch in made.proof.batches} == {3}


def test_nothing_is_written_where_the_proof_fails(network: OnnxFile, tmp_path: Path):
    folder = tmp_path / "out"
    with pytest.raises(ParityError, match="nothing was written"):
        to_ort_format(network, folder / "network.ort", "Fixed", tolerance=-1.0)
    assert list(folder.iterdir()) == []


def test_the_name_has_to_end_in_ort(network: OnnxFile, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"does not end in \.ort"):
        to_ort_format(network, tmp_path / "network.onnx")


class _Rows(CalibrationDataReader):
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.rows = iter([{"x": rng.standard_normal((1, 4, 8, 8), dtype=np.float32)} for _ in range(4)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.rows, None)


@pytest.mark.parametrize("style", ["Runtime", "Fixed"])
def test_a_quantised_model_is_proven_beside_itself_loaded_alike(network: OnnxFile, tmp_path: Path, style: Style):
    quantised = tmp_path / "quantised.onnx"
    quantize_static(
        network.path,
        quantised,
        _Rows(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QUInt8,
    )
    made = to_ort_format(read_onnx(quantised), tmp_path / "quantised.ort", style)
    # Eight-bit kernels round alike to the last bit; a step of the quantisation would be far above this.
    assert made.proof.worst.relative_error <= 1e-6
    names = {name for line in made.operators for name in line.split(";")[2].split(",")}
    assert "QLinearConv" in names
    assert ("DequantizeLinear" in names) or style == "Fixed"
