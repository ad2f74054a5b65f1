"""CUDA: what can be told without a device is tested everywhere, the rest on a machine that has one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from monograph.errors import ConfigError, PlacementError
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import read_onnx
from monograph.runtime.cuda import DeviceClock, captures_graph, check_graph_capture
from monograph.runtime.latency import summarise_latency
from monograph.runtime.measure import Contender, Settings, measure, onnx_contender
from monograph.runtime.results import Evidence
from monograph.runtime.targets import Target, find_target
from monograph.runtime.timing import RawTiming

CUDA = find_target("cuda")
on_cuda = pytest.mark.skipif(not CUDA.is_available(), reason=CUDA.describe())
Classifier = Callable[..., Path]


def contender_on(target: Target, path: Path) -> Contender:
    file = read_onnx(path)
    return onnx_contender(path.stem, path, file.contract, file.sha256, file.size_bytes, target)


def convolutions(path: Path) -> Path:
    """Write two convolutions and a product: float32 [batch x 3 x 32 x 32] to logits [batch x 5]."""
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[batch, 3, 32, 32] x) => (float[batch, 5] logits) '
        "{ a = Conv<kernel_shape = [3, 3]>(x, w1) b = Relu(a) c = Conv<kernel_shape = [3, 3]>(b, w2) d = GlobalAveragePool(c) "
        "e = Flatten(d) logits = MatMul(e, w3) }"
    )
    rng = np.random.default_rng(0)
    for name, shape in (("w1", (16, 3, 3, 3)), ("w2", (32, 16, 3, 3)), ("w3", (32, 5))):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32), name))
    onnx.save(model, path)
    return path


def branching(path: Path) -> Path:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[batch, 4] x) => (float[batch, 4] logits) '
        "{ s = ReduceSum<keepdims = 0>(x) c = Cast<to = 9>(s) logits = If (c) < then_branch = t () => (float[n, 4] a) "
        "{ a = Relu(x) }, else_branch = e () => (float[n, 4] b) { b = Neg(x) } > }"
    )
    model.graph.node[2].name = "guard"
    onnx.save(model, path)
    return path


class TestWithoutADevice:
    @pytest.mark.parametrize(
        ("options", "captures"),
        [
            ({}, False),
            ({"enable_cuda_graph": "0"}, False),
            ({"enable_cuda_graph": "1"}, True),
            ({"enable_cuda_graph": "True"}, True),
        ],
    )
    def test_graphs_are_an_option(self, options: dict[str, str], captures: bool):
        assert captures_graph("CUDAExecutionProvider", options) == captures
        assert not captures_graph("CPUExecutionProvider", options)

    def test_control_flow_is_refused_by_name(self, tmp_path: Path, classifier: Classifier):
        check_graph_capture(classifier())
        with pytest.raises(ConfigError, match=r"m\.onnx has control flow \(If 'guard'\).*--to branch-free"):
            check_graph_capture(branching(tmp_path / "m.onnx"))

    def test_the_clock_reads_between_its_events(self):
        done: list[str] = []

        def answer(name: str, *values: Any) -> Callable[..., tuple[Any, ...]]:
            def call(*arguments: Any) -> tuple[Any, ...]:
                done.append(" ".join([name, *map(str, arguments)]))
                return (0, *values)

            return call

        events = iter(["start", "end"])
        runtime = SimpleNamespace(
            cudaStreamNonBlocking=1,
            cudaStreamCreateWithFlags=answer("stream", 42),
            cudaEventCreate=lambda: (0, next(events)),
            cudaEventRecord=answer("record"),
            cudaEventSynchronize=answer("wait"),
            cudaEventElapsedTime=answer("elapsed", 0.25),
        )
        clock = DeviceClock(runtime)
        assert clock.stream == "42"
        assert clock.time_ns(lambda: done.append("work")) == 250_000
        assert done == ["stream 1", "record start 42", "work", "record end 42", "wait end", "elapsed start end"]

    def test_a_machine_without_a_driver_says_so(self):
        runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings comes with monograph[gpu]")
        if CUDA.is_available():
            pytest.skip("there is one")
        with pytest.raises(ConfigError, match=r"CUDA does not answer .*: see `monograph targets`"):
            DeviceClock(runtime)

    def test_times_of_the_device_are_told_beside_those_of_calls(self):
        raw = RawTiming(1, 10, 20, 0, tuple(range(1000, 1100)), device_ns=tuple(range(500, 600)))
        latency = summarise_latency(raw)
        assert latency.device_p50_s.low <= latency.device_p50_s.estimate <= latency.device_p50_s.high
        assert 500e-9 < latency.device_p50_s.estimate < 600e-9
        assert latency.device_ns == raw.device_ns
        assert summarise_latency(replace(raw, device_ns=())).device_p50_s is None


@on_cuda
class TestOnADevice:
    def test_it_computes_what_the_processor_computes_and_all_of_it(self, quick: Settings, tmp_path: Path):
        path = convolutions(tmp_path / "m.onnx")
        rows = Rows({"x": np.random.default_rng(1).standard_normal((50, 3, 32, 32), dtype=np.float32)}, np.arange(50) % 5)
        outputs = {}
        for target in (find_target("cpu"), CUDA):
            result = measure(
                contender_on(target, path), target, rows, quick, lambda run, name=target.name: outputs.update({name: run.outputs})
            )
        scale = np.abs(outputs["cpu"]).max()
        np.testing.assert_allclose(outputs["cuda"], outputs["cpu"], atol=5e-3 * scale)  # TF32 multiplies with 10 bits
        assert result.evidence is Evidence.EXECUTED
        assert set(result.nodes_per_provider) == {"CUDAExecutionProvider"}

    def test_the_device_takes_no_longer_than_the_call(self, quick: Settings, tmp_path: Path):
        pytest.importorskip("cuda.bindings.runtime")
        latency = measure(contender_on(CUDA, convolutions(tmp_path / "m.onnx")), CUDA, None, quick).latency
        assert 0 < latency.device_p50_s.estimate < 1.5 * latency.p50_s.estimate

    def test_a_replayed_graph_gives_the_same(self, quick: Settings, tmp_path: Path):
        path = convolutions(tmp_path / "m.onnx")
        rows = Rows({"x": np.random.default_rng(1).standard_normal((50, 3, 32, 32), dtype=np.float32)})
        outputs = []
        for target in (CUDA, CUDA.with_options({"enable_cuda_graph": "1"})):
            result = measure(contender_on(target, path), target, rows, quick, lambda run: outputs.append(run.outputs))
        assert result.provider_options["enable_cuda_graph"] == "1"
        np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)

    def test_control_flow_is_refused_before_a_session_is_made(self, quick: Settings, tmp_path: Path):
        target = CUDA.with_options({"enable_cuda_graph": "1"})
        with pytest.raises(ConfigError, match="has control flow"):
            measure(contender_on(target, branching(tmp_path / "m.onnx")), target, None, quick)

    def test_a_node_that_only_the_processor_has_is_refused(self, quick: Settings, tmp_path: Path):
        model = onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["": 18]> g (uint8[batch, 3, 8, 8] x) => (int32[batch, 4, 6, 6] logits) '
            "{ logits = ConvInteger<kernel_shape = [3, 3]>(x, w) }"
        )
        model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 3, 3, 3), np.uint8), "w"))
        onnx.save(model, tmp_path / "m.onnx")
        with pytest.raises(PlacementError, match=r"cuda did not run the model: 0 of .* ConvInteger"):
            measure(contender_on(CUDA, tmp_path / "m.onnx"), CUDA, None, quick)
