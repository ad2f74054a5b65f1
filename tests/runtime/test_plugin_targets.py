"""Providers that are plugins: the simulator of Qualcomm's NPU, and WebGPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from monograph.errors import ConfigError, PlacementError
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import read_onnx
from monograph.runtime.job import Job
from monograph.runtime.measure import Contender, Settings, measure, onnx_contender
from monograph.runtime.results import Evidence
from monograph.runtime.targets import find_target
from monograph.runtime.targets.plugin import missing_package

QNN, WEBGPU = find_target("qnn-htp"), find_target("webgpu")
NOT_HERE = {target.name: pytest.mark.skipif(not target.is_available(), reason=target.describe()) for target in (QNN, WEBGPU)}
needs_qnn, needs_webgpu = NOT_HERE["qnn-htp"], NOT_HERE["webgpu"]
QNN_PROVIDER = "QNNExecutionProvider"
Make = Callable[..., Contender]


@pytest.fixture
def static(tmp_path: Path, weights: np.ndarray) -> Make:
    """Make a contender of fixed batch 1 for a target: logits ``op(x·W)``."""

    def make(target_name: str, op: str = "Relu") -> Contender:
        model = onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["": 18]> g (float[1, 4] x) => (float[1, 3] logits) '
            f"{{ h = MatMul(x, W) logits = {op}(h) }}"
        )
        model.graph.initializer.append(numpy_helper.from_array(weights, "W"))
        model.graph.node[1].name = "the_odd_one"
        path = tmp_path / "static.onnx"
        onnx.save(model, path)
        file = read_onnx(path)
        return onnx_contender("static", path, file.contract, file.sha256, file.size_bytes, find_target(target_name))

    return make


@pytest.fixture
def rows(weights: np.ndarray) -> Rows:
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    return Rows({"x": x}, np.maximum(x @ weights, 0).argmax(1))


@pytest.mark.parametrize("name", ["qnn-htp", "webgpu"])
def test_a_missing_package_is_told_with_the_command_that_brings_it(static: Make, name: str, monkeypatch: pytest.MonkeyPatch):
    module = find_target(name).session.plugin
    monkeypatch.setitem(sys.modules, module, None)  # Python's own way to say that there is no such module
    package = module.replace("_", "-")
    with pytest.raises(ConfigError, match=f"target {name} is not here: .* is not installed: pip install {package}"):
        measure(static(name), find_target(name), None, Settings())


def test_an_older_onnxruntime_is_told_with_the_command_that_brings_another():
    missing = missing_package("onnxruntime", (99, 0))
    assert missing.remedy == "pip install 'onnxruntime>=99.0'"
    assert missing_package("onnxruntime", (1, 0)) is None


@needs_qnn
class TestQnnHtp:
    def test_all_of_it_runs_on_the_npu_and_is_told_to_be_simulated(self, static: Make, rows: Rows):
        result = measure(static("qnn-htp"), QNN, rows, Settings())
        assert set(result.nodes_per_provider) == {QNN_PROVIDER}
        assert result.evidence is QNN.evidence is Evidence.SIMULATED
        assert "simulator" in result.device
        assert result.accuracy.top1.estimate == 1.0

    def test_its_time_is_no_latency_and_few_calls_are_timed(self, static: Make, rows: Rows):
        settings = Settings(batch_sizes=(1, 8))
        result = measure(static("qnn-htp"), QNN, rows, settings)
        assert result.latency is None
        assert result.throughput == ()
        assert result.emulation_s > 0
        (timing,) = QNN.run(Job(static("qnn-htp"), None, settings.without_latency())).timings
        assert len(timing.samples_ns) == 1

    def test_a_node_that_it_cannot_take_is_named(self, static: Make):
        """Sinh does little work, but the model was asked to run on the NPU."""
        with pytest.raises(
            PlacementError, match=r"qnn-htp did not run the model: .*Sinh 'the_odd_one'.*--allow-fallback"
        ) as refusal:
            measure(static("qnn-htp", "Sinh"), QNN, None, Settings())
        assert refusal.value.exit_code == 1

    def test_on_request_the_mixture_is_measured_with_a_warning(self, static: Make, weights: np.ndarray):
        x = np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32)
        rows = Rows({"x": x}, (x @ weights).argmax(1))
        result = measure(static("qnn-htp", "Sinh"), QNN, rows, Settings(allow_fallback=True))
        assert result.accuracy.top1.estimate == 1.0
        assert result.nodes_per_provider["CPUExecutionProvider"] == 1
        assert any("1 on CPUExecutionProvider (Sinh 'the_odd_one')" in warning for warning in result.warnings)

    def test_another_chip_can_be_chosen_and_an_option_cannot_be_misspelt(self, static: Make, rows: Rows):
        def with_option(name: str) -> Contender:
            spec = replace(QNN.session, options={**QNN.session.options, name: "57"})
            return onnx_contender_of(static("qnn-htp"), replace(QNN, session=spec))

        assert measure(with_option("soc_model"), QNN, rows, Settings()).accuracy.top1.estimate == 1.0
        with pytest.raises(ConfigError, match="QNNExecutionProvider has no option 'soc_modell': did you mean 'soc_model'"):
            measure(with_option("soc_modell"), QNN, rows, Settings())


@needs_webgpu
class TestWebGpu:
    def test_it_gives_what_the_processor_gives_and_says_which_adapter_ran_it(self, static: Make, rows: Rows):
        result = measure(static("webgpu"), WEBGPU, rows, Settings(batch_sizes=(1,)))
        assert set(result.nodes_per_provider) == {"WebGpuExecutionProvider"}
        assert result.accuracy.top1.estimate == 1.0
        is_software = "SwiftShader" in result.device
        assert result.evidence is (Evidence.SIMULATED if is_software else Evidence.EXECUTED)
        assert result.evidence is WEBGPU.probe().evidence
        assert (result.latency is None) is is_software

    def test_two_at_once_wait_for_each_other(self, static: Make, rows: Rows):
        from concurrent.futures import ThreadPoolExecutor

        contender = static("webgpu")
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(lambda _: measure(contender, WEBGPU, rows, Settings(batch_sizes=(1,))), range(2)))
        assert [result.accuracy.top1.estimate for result in results] == [1.0, 1.0]


def onnx_contender_of(contender: Contender, target: object) -> Contender:
    return onnx_contender(contender.name, contender.path, contender.contract, contender.sha256, contender.size_bytes, target)
