"""A mask by the most negative float would leave no quantisation step for what is not masked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from monograph.errors import ParityError
from monograph.export.lowering import LOWERINGS, lower
from monograph.export.lowering.masks import soften_masks
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import read_onnx

LOWEST = float(np.finfo(np.float32).min)


def write(path: Path, text: str, **initializers: np.ndarray) -> Path:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in initializers.items())
    onnx.save(model, path)
    return path


def values_of(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("name", ["qdq-htp", "qdq-int8"])
def test_a_masked_softmax_keeps_its_weights(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    path = write(
        tmp_path / "attention.onnx",
        "g (float[batch, 6] scores, float[batch, 6] mask) => (float[batch, 6] weights) "
        "{ left_out = Sub(one, mask) bias = Mul(left_out, lowest) masked = Add(scores, bias) weights = Softmax(masked) }",
        one=np.float32(1),
        lowest=np.float32(LOWEST),
    )
    rng = np.random.default_rng(0)
    mask = (np.arange(6) < rng.integers(2, 7, 50)[:, None]).astype(np.float32)
    rows = Rows({"scores": rng.standard_normal((50, 6)).astype(np.float32), "mask": mask})
    source = read_onnx(path)
    lowered = lower(LOWERINGS[name], source, tmp_path / "lowered.onnx", calibration=rows)
    assert lowered.proof.max_abs_error < (0.01 if name == "qdq-htp" else 0.3)

    monkeypatch.setattr(f"monograph.export.lowering.{name.replace('-', '_')}.soften_masks", lambda path, out: path)
    with pytest.raises(ParityError, match="does not agree"):
        lower(LOWERINGS[name], source, tmp_path / "unsoftened.onnx", calibration=rows)


def test_only_marks_are_changed(tmp_path: Path):
    path = write(
        tmp_path / "m.onnx",
        "g (float[2] x) => (float[2] y) { a = Clip(x, low) b = Add(a, mark) c = Mul(b, weights) y = Max(c, low) }",
        low=np.float32(LOWEST),
        mark=np.array([0, LOWEST], np.float32),
        weights=np.array([-9000, 5], np.float32),
    )
    changed = values_of(soften_masks(path, tmp_path / "out.onnx"))
    assert changed["mark"].tolist() == [0, -100]
    assert changed["low"] == np.float32(LOWEST), "a bound that bounds nothing stays one"
    assert changed["weights"].tolist() == [-9000, 5]
