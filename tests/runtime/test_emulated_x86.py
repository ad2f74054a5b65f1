"""The kernels for older x86-64 processors under qemu-user: where 8-bit products saturate, and in which forms they do not.

All forms stand side by side in one model, so that an emulator starts once for them.
"""

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from monograph.models.data.rows import Rows
from monograph.models.onnx_file import read_onnx
from monograph.runtime.instruction_sets import InstructionSet, instruction_set_here
from monograph.runtime.job import Settings
from monograph.runtime.measure import measure, onnx_contender
from monograph.runtime.results import Evidence, Measurement
from monograph.runtime.targets import find_target
from monograph.runtime.timing import TimingRule

ROWS, WIDTH, UNITS = 6, 64, 8
EVERYWHERE = (
    "MatMulInteger u8u8", "MatMulInteger u8s8, 7 bits",
    "QDQ u8u8", "QDQ u8s8, 7 bits", "QDQ conv u8u8", "QDQ conv u8s8, 7 bits",
)  # fmt: skip
SATURATING = ("MatMulInteger u8s8", "QDQ u8s8", "QDQ s8s8", "QDQ conv u8s8")
"""Signed by signed too: for x86, ONNX Runtime rewrites the quantised activations as unsigned ones."""
SCALE = 16384.0
"""Of a quantised output: a power of two, so that rounding is its only error."""

on_an_emulator = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_target("cpu-avx2").is_available(), reason=find_target("cpu-avx2").describe()),
]


@dataclass(frozen=True)
class Measured:
    """What one target gave for all forms: by the form's name, sums float32 [ROWS x UNITS]."""

    measurement: Measurement
    outputs: Mapping[str, np.ndarray]


def values(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return activations [ROWS x WIDTH], 0 to 255, and weights [WIDTH x UNITS]; the first row and the first unit are full."""
    rng, largest = np.random.default_rng(5), 2 ** (bits - 1) - 1
    x, w = rng.integers(0, 256, (ROWS, WIDTH)), rng.integers(-largest, largest + 1, (WIDTH, UNITS))
    x[0], w[:, 0] = 255, largest
    return x, w


def expected(form: str) -> np.ndarray:
    x, w = values(7 if "7 bits" in form else 8)
    return ((x - 128 if "s8s8" in form else x) @ w).astype(np.float32)


def nodes_of(form: str, number: int) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Write one form from ``x`` float32 [b x WIDTH] to ``y{number}`` float32 [b x UNITS]."""
    _, w = values(7 if "7 bits" in form else 8)
    is_unsigned, is_conv, is_signed_input = "u8u8" in form, "conv" in form, "s8s8" in form
    stored = (w + 128).astype(np.uint8) if is_unsigned else w.astype(np.int8)
    zero, x_type = stored.dtype.type(128 if is_unsigned else 0), np.int8 if is_signed_input else np.uint8

    def node(op_type: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
        def name(word: str) -> str:
            return word if word in ("x", "one", "") else f"{word}{number}"

        return helper.make_node(op_type, [name(word) for word in inputs.split()], [name(output)], **attributes)

    constants = {
        f"w{number}": stored,
        f"wz{number}": np.array(zero),
        f"xz{number}": np.array(-128 if is_signed_input else 0, x_type),
    }
    if form.startswith("MatMulInteger"):
        nodes = [
            node("Cast", "x", "a", to=TensorProto.UINT8),
            node("MatMulInteger", "a w xz wz", "i"),
            node("Cast", "i", "y", to=TensorProto.FLOAT),
        ]
        return nodes, constants
    # Signed activations are x - 128: what was quantised of x - 128 has the zero point 0.
    constants |= {f"xz{number}": np.array(0, x_type), f"shift{number}": np.array(128 if is_signed_input else 0, np.float32)}
    if is_conv:
        shapes = {f"image{number}": np.array([-1, WIDTH, 1, 1]), f"flat{number}": np.array([-1, UNITS])}
        kernel = np.ascontiguousarray(stored.T)[:, :, None, None]
        constants |= shapes | {
            f"w{number}": kernel,
            f"os{number}": np.array(SCALE, np.float32),
            f"oz{number}": np.array(128, np.uint8),
        }
    dequantised = [
        node("Sub", "x shift", "s"),
        node("QuantizeLinear", "s one xz", "q"),
        node("DequantizeLinear", "q one xz", "d"),
        node("DequantizeLinear", "w one wz", "dw"),
    ]
    if not is_conv:
        return [*dequantised, node("MatMul", "d dw", "y")], constants
    dequantised[0] = node("Reshape", "x image", "s")
    return [
        *dequantised,
        node("Conv", "d dw", "c"),
        node("QuantizeLinear", "c os oz", "cq"),
        node("DequantizeLinear", "cq os oz", "cd"),
        node("Reshape", "cd flat", "y"),
    ], constants


@pytest.fixture(scope="module")
def forms_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All forms in one model: float32 x [b x WIDTH] to float32 logits [b x (forms x UNITS)]."""
    forms = EVERYWHERE + SATURATING
    nodes, constants = [], {"one": np.array(1, np.float32)}
    for number, form in enumerate(forms):
        made, own = nodes_of(form, number)
        nodes += made
        constants |= own
    nodes.append(helper.make_node("Concat", [f"y{number}" for number in range(len(forms))], ["logits"], axis=1))
    graph = helper.make_graph(
        nodes,
        "forms",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", WIDTH])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", len(forms) * UNITS])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    path = tmp_path_factory.mktemp("forms") / "forms.onnx"
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


@pytest.fixture(scope="module")
def measured(forms_file: Path) -> Callable[[str], Measured]:
    """Measure on a target, once for all tests."""
    file, done = read_onnx(forms_file), {}

    def on(name: str) -> Measured:
        if name not in done:
            target, kept = find_target(name), []
            contender = onnx_contender("forms", forms_file, file.contract, file.sha256, file.size_bytes, target)
            rows = Rows({"x": values(8)[0].astype(np.float32)}, np.arange(ROWS))
            settings = Settings(batch_sizes=(1,), rule=TimingRule(min_runs=40, min_s=0.0, warmup_s=0.0))
            measurement = measure(contender, target, rows, settings, lambda run: kept.append(np.array(run.outputs)))
            outputs = np.split(kept[0], len(EVERYWHERE + SATURATING), axis=1)
            done[name] = Measured(measurement, dict(zip(EVERYWHERE + SATURATING, outputs, strict=True)))
        return done[name]

    return on


def assert_exact(measured: Measured, form: str) -> None:
    error = np.abs(measured.outputs[form] - expected(form)).max()
    assert error <= (SCALE / 2 if "conv" in form else 0), f"{form}: off by {error}"


EMULATED = [pytest.param(name, marks=on_an_emulator) for name in ("cpu-avx2", "cpu-sse4")]
ALL = ["cpu", *EMULATED]


@pytest.mark.parametrize("form", EVERYWHERE)
@pytest.mark.parametrize("name", ALL)
def test_exact_everywhere(measured: Callable[[str], Measured], name: str, form: str):
    assert_exact(measured(name), form)


@pytest.mark.parametrize("form", SATURATING)
@pytest.mark.parametrize("name", [EMULATED[0]])
def test_full_range_saturates_with_avx2(measured: Callable[[str], Measured], name: str, form: str):
    first = measured(name).outputs[form][0, 0]
    if "conv" in form:
        assert first <= WIDTH / 2 * 32767 + SCALE / 2 < expected(form)[0, 0] - SCALE
    elif "s8s8" in form:
        assert abs(first - expected(form)[0, 0]) > 1e5
    else:  # 255 x 127 twice would be 64,770
        assert (first, expected(form)[0, 0]) == (WIDTH / 2 * 32767, WIDTH * 255 * 127)


@pytest.mark.parametrize("form", SATURATING)
@pytest.mark.parametrize("name", [EMULATED[1]])
def test_full_range_is_exact_in_linux_builds_without_avx2(measured: Callable[[str], Measured], name: str, form: str):
    assert_exact(measured(name), form)


@pytest.mark.skipif(instruction_set_here() is None, reason="what this processor has is unknown")
@pytest.mark.parametrize("form", SATURATING)
def test_full_range_here_is_as_the_instruction_set_says(measured: Callable[[str], Measured], form: str):
    here = instruction_set_here()
    if here in (InstructionSet.AVX2, InstructionSet.AVX512):
        assert here.saturates
        with pytest.raises(AssertionError, match="off by"):
            assert_exact(measured("cpu"), form)
    else:
        assert_exact(measured("cpu"), form)


@pytest.mark.parametrize("name", EMULATED)
def test_a_measurement_is_simulated_and_carries_accuracy_and_no_latency(measured: Callable[[str], Measured], name: str):
    result = measured(name).measurement
    assert (result.evidence, result.latency, result.throughput) == (Evidence.SIMULATED, None, ())
    assert result.accuracy.row_count == ROWS
    assert result.emulation_s > 0
    assert result.environment.instruction_set is find_target(name).instruction_set()
    for part in ("qemu-x86_64 version", f"({result.environment.instruction_set})", f"onnxruntime {ort.__version__}"):
        assert part in result.device


def pretend_emulator(folder: Path, version: str) -> None:
    program = folder / "qemu-x86_64-static"
    program.write_text(f'#!/bin/sh\necho "qemu-x86_64 version {version} (Debian)"\n')
    program.chmod(0o755)


@pytest.mark.skipif((platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="it would not run here at all")
@pytest.mark.parametrize(
    ("version", "name", "is_here"),
    [("6.2.0", "cpu-avx2", False), ("6.2.0", "cpu-sse4", True), ("7.2.0", "cpu-avx2", True), ("10.0.2", "cpu-avx2", True)],
)
def test_an_old_emulator_has_no_avx2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, name: str, is_here: bool):
    pretend_emulator(tmp_path, version)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    here = find_target(name).probe()
    assert here.is_here == is_here
    assert version in here.detail
    assert is_here or "7.2 or later" in here.detail


@pytest.mark.parametrize("name", ["cpu-avx2", "cpu-sse4"])
def test_without_an_emulator_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert find_target(name).probe().remedy == "apt-get install qemu-user-static"


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Linux", "aarch64")])
def test_another_machine_cannot_run_this_python_there(monkeypatch: pytest.MonkeyPatch, system: str, machine: str):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    here = find_target("cpu-avx2").probe()
    assert (here.is_here, here.remedy) == (False, "run on Linux on x86-64")
    assert machine in here.detail
