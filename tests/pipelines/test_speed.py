"""Models in turns with the first: the ratio, where there is one, and the reason where there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from monograph.errors import ConfigError
from monograph.pipelines.measure import measure_models
from monograph.runtime.results import Evidence
from monograph.runtime.targets import TARGETS
from monograph.runtime.timing import TimingRule

RULE = TimingRule(min_runs=40, min_s=0.0, max_s=1.0, warmup_s=0.0)
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a chain of products of 256 x 256: the longer, the slower."""

    def make(name: str, length: int, batch: str = "batch", folder: str = ".") -> Path:
        steps = " ".join(f"h{i + 1} = MatMul(h{i}, w)" for i in range(length))
        model = onnx.parser.parse_model(
            f'<ir_version: 10, opset_import: ["": 18]> g (float[{batch}, 256] x) => (float[{batch}, 256] y) '
            f"{{ h0 = Relu(x) {steps} y = Relu(h{length}) }}"
        )
        model.graph.initializer.append(numpy_helper.from_array(np.eye(256, dtype=np.float32), "w"))
        path = tmp_path / folder / f"{name}.onnx"
        path.parent.mkdir(exist_ok=True)
        onnx.save(model, path)
        return path

    return make


@pytest.mark.slow
def test_the_slower_model_is_told_by_how_much(write: Write):
    """Two files of one name: 40 products beside 4."""
    short, long = write("m", 4, folder="short"), write("m", 40, folder="long")
    first, second = measure_models([short, long], rule=RULE, batch_sizes=(8,), threads=1, compare_blocks=6)
    assert first.speed is None
    assert (second.speed.reference, second.speed.batch_size) == ("m", 8)
    assert 2 < second.speed.ratio.low <= second.speed.ratio.estimate <= second.speed.ratio.high < 40
    assert len(second.speed.p50_s) == len(second.speed.reference_p50_s) == 6


def test_what_cannot_be_compared_is_refused_before_anything_is_measured(write: Write):
    one, other = write("a", 1), write("b", 1, batch="3")
    with pytest.raises(ConfigError, match="--compare sets models beside the first: give two or more"):
        measure_models([one], compare_blocks=7)
    with pytest.raises(ConfigError, match="5 blocks: give at least 6"):
        measure_models([one, one], compare_blocks=5)
    with pytest.raises(ConfigError, match=r"these models take a\.onnx 1, b\.onnx 3"):
        measure_models([one, other], compare_blocks=7)


def test_where_time_is_no_latency_nothing_is_compared(write: Write, monkeypatch: pytest.MonkeyPatch):
    paths = [write("a", 1), write("b", 2)]
    monkeypatch.setitem(TARGETS, "emulator", replace(TARGETS["cpu"], name="emulator", evidence=Evidence.SIMULATED))
    for measurement in measure_models(paths, on=["emulator"], compare_blocks=7):
        assert measurement.speed is None
        assert "emulator: not compared, its times are no latency" in measurement.warnings
