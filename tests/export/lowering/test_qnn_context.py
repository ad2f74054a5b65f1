"""Compiled for Qualcomm's NPU beforehand: one node, the simulator's own answers, and nothing where it cannot be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from monograph.errors import ConfigError, ExportError
from monograph.export.lowering import LOWERING_KEY, LOWERINGS, lower
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.pipelines.measure import measure_models
from monograph.pipelines.verify import verify_model
from monograph.runtime.results import Evidence
from monograph.runtime.targets import find_target

QNN = find_target("qnn-htp")
CONTEXT = LOWERINGS["qnn-context"]
pytestmark = pytest.mark.skipif(not QNN.is_available(), reason=QNN.describe())


@pytest.fixture(scope="module")
def compiled(digits: tuple[OnnxFile, Rows, Rows], tmp_path_factory: pytest.TempPathFactory) -> OnnxFile:
    """The classifier of digits, compiled for the chip 57, quantised on the way."""
    source, calibration, unseen = digits
    path = tmp_path_factory.mktemp("compiled") / "compiled.onnx"
    made = lower(CONTEXT, source, path, calibration=calibration, rows=unseen, options={"soc_model": "57"})
    assert [note.split(" (")[0] for note in made.notes] == [
        "digits.onnx was lowered by qdq-htp",
        "digits.onnx was lowered by qnn-context",
    ]
    return read_onnx(path)


def test_the_whole_graph_is_one_compiled_node(compiled: OnnxFile):
    assert [node.op_type for node in onnx.load(compiled.path).graph.node] == ["EPContext"]
    record = json.loads(compiled.metadata[LOWERING_KEY])
    assert (record["lowering"], record["provider_options"]) == ("qnn-context", {"soc_model": "57"})
    assert record["before"]["lowering"] == "qdq-htp"
    assert record["before"]["agreement"]["is_held_out"]


def test_it_runs_on_the_npu_as_it_is(compiled: OnnxFile, digits: tuple[OnnxFile, Rows, Rows], tmp_path: Path):
    unseen = digits[2].take(slice(0, 40))
    np.savez(tmp_path / "rows.npz", pixels=unseen.inputs["pixels"], y=unseen.labels)
    (measured,) = measure_models([compiled.path], on=["qnn-htp"], data=str(tmp_path / "rows.npz"))
    assert measured.evidence is Evidence.SIMULATED
    assert set(measured.nodes_per_provider) == {QNN.provider}
    assert measured.accuracy.top1.estimate > 0.8
    assert any("taken as it is: lowered before, by qnn-context" in note for note in measured.assumed)


def test_it_is_verified_where_it_runs_and_nowhere_else(compiled: OnnxFile):
    verification = verify_model(compiled.path, on="qnn-htp")
    assert verification.passed
    assert verification.evidence is Evidence.SIMULATED
    with pytest.raises(ConfigError, match="was compiled for qnn-htp, which alone runs it"):
        verify_model(compiled.path)


def test_nothing_of_qualcomms_library_reaches_the_output(compiled: OnnxFile):
    command = [sys.executable, "-m", "monograph", "verify", str(compiled.path), "--on", "qnn-htp", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["passed"]
    assert "ep_cache_context" not in done.stderr


def test_a_node_that_the_npu_does_not_take_is_refused_and_nothing_is_written(tmp_path: Path):
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[batch, 4] x) => (float[batch, 4] logits) '
        "{ h = Relu(x) logits = Sinh(h) }"
    )
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ExportError, match=r"cannot compile the whole model.*measure odd\.onnx --on qnn-htp` names the nodes"):
        lower(CONTEXT, read_onnx(tmp_path / "odd.onnx"), tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["odd.onnx"]


def test_options_are_checked_by_name(source: OnnxFile, calibration: Rows, tmp_path: Path):
    with pytest.raises(ConfigError, match="did you mean 'soc_model'"):
        lower(CONTEXT, source, tmp_path / "c.onnx", calibration=calibration, options={"soc_modell": "57"})
    with pytest.raises(ConfigError, match="qdq-int8 compiles for no execution provider"):
        lower(LOWERINGS["qdq-int8"], source, tmp_path / "c.onnx", calibration=calibration, options={"soc_model": "57"})
    assert list(tmp_path.iterdir()) == []
