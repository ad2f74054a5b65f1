"""A pipeline small enough to run whole in seconds, on real digits."""

from __future__ import annotations

from pathlib import Path

import pytest

from monograph.export.trace import export_torch
from monograph.models.students import conv, mlp
from monograph.models.torch_model import TorchModel

TINY_PIPELINE = """
name: tiny
data:
  source: py:monograph.models.data.digits:optical_digits
  split: {train: 600, validation: 300, test: 300}
models:
  mlp:
    source: py:monograph.models.students:mlp
    arguments: {input_shape: [1, 8, 8], width: 32}
    train: {epochs: 12, learning_rate: 0.01}
  conv:
    source: py:monograph.models.students:conv
    arguments: {input_shape: [1, 8, 8], width: 4}
    train: {epochs: 12, learning_rate: 0.01}
measure:
  batch_sizes: [1, 4]
  min_runs: 40
  min_seconds: 0
  max_seconds: 1
  blocks: 2
"""


@pytest.fixture
def tiny_pipeline(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY_PIPELINE, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def digit_models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two untrained digit classifiers of different architecture as ONNX files, 8x8 pixels, ten classes."""
    folder = tmp_path_factory.mktemp("models")
    paths = []
    for factory in (mlp, conv):
        module, contract = factory(input_shape=(1, 8, 8), width=8)
        path = folder / f"{factory.__name__}.onnx"
        export_torch(TorchModel(module, contract, factory.__name__), path)
        paths.append(path)
    return paths
