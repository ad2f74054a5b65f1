"""``measure --on`` targets that are predicted: figures of coverage, and none of time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from monograph.errors import ConfigError
from monograph.models.onnx_file import read_onnx
from monograph.pipelines.cli import _exit_code
from monograph.pipelines.measure import measure_models
from monograph.pipelines.records import read_record, write_record
from monograph.runtime.results import Evidence, Measurement
from monograph.runtime.session import open_session

TARGETS = ("coreml", "nnapi", "xnnpack")
pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="coreml runs there")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A classifier with an Erf before its last layer: float32 [batch, 4] to [batch, 3]."""
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[batch, 4] x) => (float[batch, 3] logits) '
        "{ a = Gemm(x, v, c) e = Erf(a) logits = Gemm(e, w, b) }"
    )
    rng = np.random.default_rng(0)
    shapes = {"v": (4, 6), "c": (6,), "w": (6, 3), "b": (3,)}
    arrays = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    return path


def test_a_prediction_claims_no_time_and_no_accuracy(model: Path, tmp_path: Path):
    np.savez(tmp_path / "rows.npz", x=np.zeros((6, 4), np.float32), y=np.arange(6) % 3)
    for one in measure_models([model], on=TARGETS, data=str(tmp_path / "rows.npz")):
        assert one.evidence is Evidence.PREDICTED
        assert (one.latency, one.throughput, one.emulation_s, one.accuracy, one.placement) == (None, (), None, None, ())
        assert any("nothing ran, so nothing was scored" in warning for warning in one.warnings)
        assert one.prediction is not None
        assert one.prediction.macs_share == 1.0


def test_what_would_run_of_the_file_as_it_stands_is_told(model: Path):
    (one,) = measure_models([model], on=("nnapi",))
    assert one.prediction is not None
    assert (one.prediction.fixed_dimensions, one.prediction.free_node_share) == ({"batch": 1}, 0.0)
    (told,) = [warning for warning in one.warnings if "as the file stands" in warning]
    assert "with batch=1" in told
    assert "would take 0% of the nodes" in told


def test_the_batch_that_latency_is_asked_for_is_the_one_that_is_predicted(model: Path):
    (one,) = measure_models([model], on=("nnapi",), batch_sizes=(4, 8))
    assert one.prediction is not None
    assert one.prediction.fixed_dimensions == {"batch": 4}


def test_coremls_format_is_a_provider_option(model: Path):
    (program,) = measure_models([model], on=("coreml",))
    (network,) = measure_models([model], on=("coreml",), options={"ModelFormat": "NeuralNetwork"})
    assert program.prediction is not None
    assert network.prediction is not None
    assert program.prediction.reasons == {}  # an MLProgram has Erf
    assert network.prediction.reasons == {"CoreML NeuralNetwork has no Erf": 1}
    with pytest.raises(ConfigError, match="did you mean 'ModelFormat'"):
        measure_models([model], on=("coreml",), options={"ModelFormt": "NeuralNetwork"})
    with pytest.raises(ConfigError, match="choose from MLProgram, NeuralNetwork"):
        measure_models([model], on=("coreml",), options={"ModelFormat": "Neural"})


def test_a_target_that_runs_has_no_prediction(model: Path):
    (one,) = measure_models([model], on=("cpu",), batch_sizes=(1,), threads=1)
    assert one.prediction is None
    assert one.latency is not None


def test_predictions_are_written_and_read_back(model: Path, tmp_path: Path):
    measured = measure_models([model], on=TARGETS)
    write_record(tmp_path / "record.json", measured)
    assert read_record(tmp_path / "record.json", list[Measurement]) == measured


def test_the_table_has_a_line_for_each_target(model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert _exit_code(["measure", str(model), "--on", ",".join(TARGETS)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[2]: line.split()[3:6] for line in lines if line.lstrip().startswith("model ·")}
    assert rows == {"coreml": ["3/3", "1", "100.0%"], "nnapi": ["2/3", "2", "100.0%"], "xnnpack": ["2/3", "2", "100.0%"]}
    assert any("1 × NNAPI has no Erf" in line for line in lines)
    assert any("nothing ran" in line for line in lines)
    assert not any("p50" in line for line in lines)


def test_json_has_every_node_with_its_reason(model: Path, capsys: pytest.CaptureFixture[str]):
    assert _exit_code(["measure", str(model), "--on", "xnnpack", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["evidence"] == "predicted"
    nodes = record["prediction"]["nodes"]
    assert [(node["op_type"], node["is_supported"], node["partition"], node["macs"]) for node in nodes] == [
        ("Gemm", True, 0, 24),
        ("Erf", False, None, 0),
        ("Gemm", True, 1, 18),
    ]
    assert nodes[1]["reason"] == "XNNPACK has no Erf"
    assert record["prediction"]["sources"]


def test_export_to_ort_format(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "model.ort"
    assert _exit_code(["export", str(model), "-o", str(output)]) == 0
    assert "ONNX Runtime's converter in Runtime style, equal at batch 1, 2" in capsys.readouterr().out
    x = np.random.default_rng(0).standard_normal((2, 4), dtype=np.float32)
    expected = open_session(read_onnx(model).path)({"x": x})["logits"]
    np.testing.assert_allclose(open_session(output)({"x": x})["logits"], expected, atol=1e-6)


def test_only_an_onnx_file_becomes_ort_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert _exit_code(["export", "py:some.module:make", "-o", str(tmp_path / "model.ort")]) == 2
    assert "export py:some.module:make to one first" in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []
