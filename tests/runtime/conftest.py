from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from monograph.models.onnx_file import read_onnx
from monograph.runtime.measure import Contender, Settings, onnx_contender
from monograph.runtime.targets import find_target
from monograph.runtime.timing import TimingRule

WEIGHTS = np.random.default_rng(7).standard_normal((4, 3)).astype(np.float32)


@pytest.fixture
def weights() -> np.ndarray:
    """What :func:`classifier` multiplies its rows by: float32 [4 x 3]."""
    return WEIGHTS


@pytest.fixture
def classifier(tmp_path: Path) -> Callable[..., Path]:
    """Write a classifier, logits ``x·W``: float32 [batch x 4] to [batch x 3]; the batch may be fixed, the width another."""

    def write(batch: str = "batch", input_name: str = "x", name: str = "classifier", width: int = 4) -> Path:
        model = onnx.parser.parse_model(
            f'<ir_version: 10, opset_import: ["": 18]> g (float[{batch}, {width}] {input_name}) => (float[{batch}, 3] logits) '
            f"{{ logits = MatMul({input_name}, W) }}"
        )
        model.graph.initializer.append(numpy_helper.from_array(np.resize(WEIGHTS, (width, 3)), "W"))
        path = tmp_path / f"{name}.onnx"
        onnx.save(model, path)
        return path

    return write


@pytest.fixture
def contender() -> Callable[[Path], Contender]:
    """Read an ONNX file and make it a contender on the CPU, called by the file's name."""

    def make(path: Path) -> Contender:
        file = read_onnx(path)
        return onnx_contender(path.stem, path, file.contract, file.sha256, file.size_bytes, find_target("cpu"))

    return make


@pytest.fixture
def quick() -> Settings:
    """One thread, two batch sizes, 40 runs each."""
    return Settings(batch_sizes=(1, 4), threads=1, rule=TimingRule(min_runs=40, min_s=0.0, max_s=5.0, warmup_s=0.0))
