"""``monograph lower``, and ``monograph measure`` on a target that takes lowered models only."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from monograph.errors import ConfigError
from monograph.export.lowering import LOWERING_KEY, LOWERINGS, lower
from monograph.models.data.digits import optical_digits
from monograph.models.onnx_file import read_onnx
from monograph.pipelines import measure as measure_verb
from monograph.pipelines.lower import CALIBRATION_ROWS, lower_for, lower_model
from monograph.pipelines.measure import measure_models
from monograph.runtime.results import Evidence
from monograph.runtime.targets import find_target

QNN = find_target("qnn-htp")
needs_qnn = pytest.mark.skipif(not QNN.is_available(), reason=QNN.describe())
DIGITS = "py:monograph.models.data.digits:optical_digits"


@pytest.fixture
def few_digits(tmp_path: Path) -> Path:
    table = optical_digits()
    np.savez(tmp_path / "few.npz", x=table["x"][:40], y=table["y"][:40])
    return tmp_path / "few.npz"


def monograph(*arguments: str, without: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line, where wanted as if a package were not installed."""
    blocked = f"sys.modules[{without!r}] = None; " if without else ""
    code = f"import sys; {blocked}from monograph.__main__ import main; sys.argv[0] = 'monograph'; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@needs_qnn
@pytest.mark.slow
def test_a_float_model_is_lowered_for_the_npu_and_measured_beside_itself(digit_models: list[Path], few_digits: Path):
    on_cpu, on_npu = measure_models(
        digit_models[1:], on=["cpu", "qnn-htp"], data=str(few_digits), calibration=DIGITS, row_count=30, batch_sizes=(1,)
    )
    assert on_npu.evidence is Evidence.SIMULATED
    assert on_npu.latency is None
    assert set(on_npu.nodes_per_provider) == {QNN.provider}
    assert on_cpu.accuracy.row_count == on_npu.accuracy.row_count == 30
    assert abs(on_cpu.accuracy.top1.estimate - on_npu.accuracy.top1.estimate) <= 0.1
    assert on_npu.sha256 != on_cpu.sha256, "what ran is the lowered file"
    assert any("conv.onnx was lowered by qdq-htp" in note and "top-1 agreement" in note for note in on_npu.assumed)
    assert any("30 of the 40 rows" in note for note in on_npu.assumed)
    assert not any("calibrated" in warning for warning in on_npu.warnings)
    assert not any(path.name.startswith(".monograph") for path in digit_models[1].parent.iterdir())


@needs_qnn
def test_layer_normalisation_runs_on_the_npu(tmp_path: Path):
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[batch, 8] x) => (float[batch, 8] logits) '
        "{ h = LayerNormalization<axis = -1>(x, scale, bias) logits = MatMul(h, weights) }"
    )
    rng = np.random.default_rng(0)
    for name, shape in (("scale", (8,)), ("bias", (8,)), ("weights", (8, 8))):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    onnx.save(model, tmp_path / "normalised.onnx")
    (measured,) = measure_models([tmp_path / "normalised.onnx"], on=["qnn-htp"])
    assert set(measured.nodes_per_provider) == {QNN.provider}


@pytest.mark.parametrize(
    ("data", "calibration", "warned"),
    [(None, None, "32 random rows"), (True, None, "calibrated on 30 of the rows that it is scored on"), (True, True, None)],
)
def test_where_calibration_rows_come_from_is_told(
    digit_models: list[Path], few_digits: Path, tmp_path: Path, data: bool | None, calibration: bool | None, warned: str | None
):
    from monograph.pipelines.data import DataSpec

    taken = lower_for(
        "qdq-htp",
        read_onnx(digit_models[1]),
        tmp_path,
        data=DataSpec(str(few_digits)) if data else None,
        calibration=DataSpec(str(few_digits)) if calibration else None,
    )
    assert [warned in warning for warning in taken.warnings if "leave open" not in warning] == ([True] if warned else [])
    record = json.loads(taken.file.metadata[LOWERING_KEY])
    assert record["calibration"]["row_count"] == (30 if data or calibration else 32)
    assert record["agreement"]["row_count"] == (10 if data or calibration else 32)
    assert record["agreement"]["is_held_out"] == bool(data or calibration)


def test_many_rows_are_sampled_for_calibration(digit_models: list[Path], tmp_path: Path):
    lowered = lower_model(digit_models[1], tmp_path / "l.onnx", to="qdq-int8", calibration=DIGITS)
    assert lowered.proof.row_count == CALIBRATION_ROWS
    record = json.loads(read_onnx(tmp_path / "l.onnx").metadata[LOWERING_KEY])
    assert record["calibration"]["row_count"] == CALIBRATION_ROWS


def test_a_file_that_was_lowered_before_is_taken_as_it_is(digit_models: list[Path], tmp_path: Path):
    lower(LOWERINGS["qdq-htp-int8"], read_onnx(digit_models[1]), tmp_path / "l.onnx")
    file = read_onnx(tmp_path / "l.onnx")
    taken = lower_for("qdq-htp", file, tmp_path, data=None, calibration=None)
    assert taken.file is file
    assert taken.notes == ("l.onnx was taken as it is: lowered before, by qdq-htp-int8",)


def test_a_model_quantised_by_somebody_else_gets_its_sizes_only(digit_models: list[Path], tmp_path: Path):
    """Another tool's file: quantised, with no record of ours, its batch open."""
    lower(LOWERINGS["qdq-int8"], read_onnx(digit_models[0]), tmp_path / "q.onnx")
    proto = onnx.load(tmp_path / "q.onnx")
    del proto.metadata_props[:]
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(proto, tmp_path / "theirs.onnx")
    (tmp_path / "out").mkdir()
    taken = lower_for("qdq-htp", read_onnx(tmp_path / "theirs.onnx"), tmp_path / "out", data=None, calibration=None)
    assert json.loads(taken.file.metadata[LOWERING_KEY])["lowering"] == "static-batch"
    assert taken.file.contract.inputs[0].shape[0] == 1
    assert taken.warnings == ()


def test_rows_are_drawn_over_all_classes_and_keep_their_order(few_digits: Path, digit_models: list[Path]):
    from monograph.pipelines.data import DataSpec

    file = read_onnx(digit_models[0])
    table = optical_digits()
    order = np.argsort(table["y"], kind="stable")
    np.savez(few_digits, x=table["x"][order], y=table["y"][order])
    with ExitStack() as opened:
        rows = measure_verb._rows(DataSpec(str(few_digits)), file, 100, (), None, opened)
    assert len(rows) == 100
    assert set(rows.labels.tolist()) == set(range(10))
    assert (np.diff(rows.labels) >= 0).all()


def test_no_rows_at_all_are_refused(digit_models: list[Path], few_digits: Path):
    with pytest.raises(ConfigError, match="0 rows: give at least 1"):
        measure_models(digit_models[:1], data=str(few_digits), row_count=0)


class TestCommandLine:
    @pytest.mark.slow
    def test_lower_writes_a_proven_file(self, digit_models: list[Path], few_digits: Path, tmp_path: Path):
        out = tmp_path / "npu.onnx"
        done = monograph(
            "lower", str(digit_models[1]), "-o", str(out), "--to", "qdq-htp", "--calibration", str(few_digits), "--json"
        )
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["proof"]["rows"] == "real"
        assert read_onnx(out).contract.inputs[0].shape == (1, 1, 8, 8)

    def test_a_target_whose_package_is_missing_ends_with_2_and_the_command(self, digit_models: list[Path]):
        done = monograph("measure", str(digit_models[0]), "--on", "qnn-htp", without="onnxruntime_qnn")
        assert done.returncode == 2
        assert "the package onnxruntime-qnn is not installed: pip install onnxruntime-qnn" in done.stderr
        assert done.stdout == ""

    @needs_qnn
    @pytest.mark.slow
    def test_a_node_that_the_npu_cannot_take_ends_with_1_and_its_name(self, tmp_path: Path):
        model = onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["": 18]> g (float[batch, 4] x) => (float[batch, 4] logits) '
            "{ h = Relu(x) logits = Sinh(h) }"
        )
        model.graph.node[1].name = "the_odd_one"
        onnx.save(model, tmp_path / "odd.onnx")
        done = monograph("measure", str(tmp_path / "odd.onnx"), "--on", "qnn-htp", "-o", str(tmp_path / "m.json"))
        assert done.returncode == 1
        assert "Sinh 'the_odd_one'" in done.stderr
        assert not (tmp_path / "m.json").exists()
        (measured,) = measure_models([tmp_path / "odd.onnx"], on=["qnn-htp"], allow_fallback=True)
        assert any("Sinh 'the_odd_one'" in warning for warning in measured.warnings)

    @needs_qnn
    def test_a_misspelt_option_of_the_npu_ends_with_2(self, digit_models: list[Path]):
        done = monograph("measure", str(digit_models[0]), "--on", "qnn-htp", "--provider-option", "soc_modell=57")
        assert done.returncode == 2
        assert "did you mean 'soc_model'?" in done.stderr
