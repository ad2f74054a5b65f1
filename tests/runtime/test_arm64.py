"""The NEON kernels under qemu-user against the kernels of this machine, and what a damaged sysroot says."""

import dataclasses
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from sklearn.datasets import load_digits

from monograph.errors import ConfigError, SourceError
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import read_onnx
from monograph.runtime.job import Contender, Job, Settings
from monograph.runtime.measure import measure, onnx_contender
from monograph.runtime.results import Evidence
from monograph.runtime.sysroot import PLACE_VARIABLE, find_sysroot
from monograph.runtime.targets import Target, find_target
from monograph.runtime.targets.arm64 import check_sysroot, launcher_for
from monograph.runtime.timing import TimingRule

ARM64, CPU = find_target("arm64"), find_target("cpu")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the kernels of this machine are to be other ones"),
    pytest.mark.skipif(not ARM64.is_available(), reason=f"arm64 is not here: {ARM64.describe()}"),
]
SETTINGS = Settings(threads=1, spinning=False).without_latency()
WIDTH = 16


@pytest.fixture(scope="module")
def digits() -> Rows:
    """Handwritten digits: float32 [20 x 1 x 8 x 8], 0 to 1, and what they are."""
    pictures, labels = load_digits(return_X_y=True)
    return Rows({"x": (pictures[:20] / 16).astype(np.float32).reshape(-1, 1, 8, 8)}, labels[:20].astype(np.int64))


def write_convolutions(path: Path, dtype: type[np.floating]) -> Path:
    """Two convolutions, a global mean and a product: float32 x [batch x 1 x 8 x 8] to float32 logits [batch x 10]."""
    rng = np.random.default_rng(3)
    shapes = {"k1": (WIDTH, 1, 3, 3), "b1": (WIDTH,), "k2": (WIDTH, WIDTH, 3, 3), "b2": (WIDTH,), "w": (WIDTH, 10)}
    weights = {name: rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:])) for name, shape in shapes.items()}
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = onnx.parser.parse_graph(
        f"g (float[batch, 1, 8, 8] x) => (float[batch, 10] logits) {{"
        f"  t = Cast<to={kind}>(x)"
        f"  c1 = Conv<pads=[1, 1, 1, 1]>(t, k1, b1)  r1 = Relu(c1)"
        f"  c2 = Conv<pads=[1, 1, 1, 1]>(r1, k2, b2)  r2 = Relu(c2)"
        f"  m = ReduceMean<keepdims=0>(r2, axes)  y = MatMul(m, w)"
        f"  logits = Cast<to={TensorProto.FLOAT}>(y) }}"
    )
    graph.initializer.extend(numpy_helper.from_array(array.astype(dtype), name) for name, array in weights.items())
    graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


class Calibration(CalibrationDataReader):
    """The rows, one at a time."""

    def __init__(self, rows: Rows) -> None:
        self.left = iter([{"x": row[None]} for row in rows.inputs["x"]])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


def outputs_on(target: Target, path: Path, rows: Rows) -> np.ndarray:
    outputs = target.run(Job(contender_of(path, target), rows, SETTINGS)).outputs
    assert outputs is not None
    assert outputs.shape == (20, 10)
    return outputs


def contender_of(path: Path, target: Target) -> Contender:
    file = read_onnx(path)
    return onnx_contender(path.stem, path, file.contract, file.sha256, file.size_bytes, target)


def test_float_kernels_agree_to_rounding(tmp_path: Path, digits: Rows):
    path = write_convolutions(tmp_path / "float.onnx", np.float32)
    here, there = outputs_on(CPU, path, digits), outputs_on(ARM64, path, digits)
    np.testing.assert_allclose(there, here, atol=2e-6 * np.abs(here).max(), rtol=0)
    assert np.abs(here - there).max() > 0, "the same bits in every place would mean the same kernels"


def test_fp16_kernels_compute_in_half_precision_where_those_of_this_machine_compute_in_single(tmp_path: Path, digits: Rows):
    path = write_convolutions(tmp_path / "half.onnx", np.float16)
    here, there = outputs_on(CPU, path, digits), outputs_on(ARM64, path, digits)
    largest = np.abs(here).max()
    assert np.abs(here - there).max() < 0.02 * largest
    assert np.abs(here - there).max() > 1e-5 * largest, "float32 arithmetic would be nearer"


def test_int8_kernels_agree_to_the_bit(tmp_path: Path, digits: Rows):
    source = write_convolutions(tmp_path / "float.onnx", np.float32)
    path = tmp_path / "int8.onnx"
    # 7 bits of weights: without VNNI, x86 saturates sums of pairs of u8·s8 products of 8.
    quantize_static(
        source, path, Calibration(digits), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8, per_channel=True, reduce_range=True,
    )  # fmt: skip
    here, there = outputs_on(CPU, path, digits), outputs_on(ARM64, path, digits)
    float_outputs = outputs_on(CPU, source, digits)
    assert 1e-4 < np.abs(here - float_outputs).max() < 0.1 * np.abs(float_outputs).max(), "it is quantised, and well"
    np.testing.assert_array_equal(there, here)


def test_a_measurement_is_simulated_and_carries_accuracy_and_no_latency(tmp_path: Path, digits: Rows):
    path = write_convolutions(tmp_path / "float.onnx", np.float32)
    settings = Settings(threads=1, spinning=False, rule=TimingRule(min_runs=40, min_s=0.0, warmup_s=0.0))
    emulated, here = (measure(contender_of(path, target), target, digits, settings) for target in (ARM64, CPU))
    assert emulated.evidence is Evidence.SIMULATED
    assert emulated.accuracy.top1 == here.accuracy.top1
    assert emulated.accuracy.nll == pytest.approx(here.accuracy.nll, rel=1e-5)
    assert (emulated.latency, emulated.throughput) == (None, ())
    assert emulated.emulation_s > 0
    assert set(emulated.nodes_per_provider) == {"CPUExecutionProvider"}
    for told in ("qemu-aarch64 version", "-cpu cortex-a76", f"onnxruntime {ort.__version__}", "numpy ", "aarch64"):
        assert told in emulated.device


def test_an_error_there_keeps_its_class_here(tmp_path: Path, digits: Rows):
    path = write_convolutions(tmp_path / "float.onnx", np.float32)
    made = contender_of(path, ARM64)
    path.unlink()
    with pytest.raises(SourceError, match=r"cannot load .*float\.onnx"):
        measure(made, ARM64, digits, SETTINGS)


@pytest.fixture
def damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Copy the sysroot by hard links; return the one file in it that a pattern means, free to be changed."""
    whole = find_sysroot()
    assert whole is not None
    copy = tmp_path / "arm"

    def link(source: str, destination: str) -> None:
        try:
            os.link(source, destination)
        except OSError:
            shutil.copy2(source, destination)

    shutil.copytree(whole.folder, copy, symlinks=True, copy_function=link, ignore=shutil.ignore_patterns("pycache"))
    monkeypatch.setenv(PLACE_VARIABLE, str(copy))

    def find(pattern: str) -> Path:
        (file,) = copy.glob(pattern)
        return file

    return find


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("**/libexpat.so.1", r"libexpat\.so\.1"),
        ("**/libstdc++.so.6", r"libstdc\+\+\.so\.6"),
    ],
)
def test_a_missing_library_is_named(damaged: Callable[[str], Path], library: str, name: str, tmp_path: Path, digits: Rows):
    damaged(library).unlink()
    path = write_convolutions(tmp_path / "float.onnx", np.float32)
    made = contender_of(path, ARM64)
    with pytest.raises(
        ConfigError, match=rf"arm64 sysroot .* does not work \(.*{name}.*make it anew, .*monograph.runtime.sysroot"
    ):
        measure(made, ARM64, digits, SETTINGS)


def test_a_wheel_for_another_processor_is_named(damaged: Callable[[str], Path]):
    """The library of this machine's ONNX Runtime, under the name that the sysroot's Python looks for."""
    (native,) = (Path(ort.__file__).parent / "capi").glob("onnxruntime_pybind11_state*.so")
    library = damaged("site/onnxruntime/capi/onnxruntime_pybind11_state*.so")
    library.unlink()
    shutil.copy(native, library)
    sysroot = find_sysroot()
    assert sysroot is not None
    with pytest.raises(ConfigError, match=r"does not work \(.*onnxruntime_pybind11_state.*shared object"):
        check_sysroot(sysroot, launcher_for(sysroot))


def test_another_version_than_that_it_was_made_with_is_told():
    sysroot = find_sysroot()
    assert sysroot is not None
    other = dataclasses.replace(sysroot, onnxruntime="1.0.0")
    with pytest.raises(ConfigError, match=rf"it holds onnxruntime {ort.__version__} and was made with 1\.0\.0"):
        check_sysroot(other, launcher_for(other))
