"""A classifier of real digits, and rows of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from monograph.export.trace import export_torch
from monograph.models.data.digits import optical_digits
from monograph.models.data.load import load_rows
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.models.students import conv
from monograph.models.torch_model import TorchModel


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[OnnxFile, Rows, Rows]:
    """Return a trained classifier of 8x8 digits, 100 rows it was trained on, and 297 it never saw."""
    folder = tmp_path_factory.mktemp("digits")
    table = optical_digits()
    np.savez(folder / "digits.npz", **table)
    torch.manual_seed(0)
    module, contract = conv((1, 8, 8), width=8, dropout=0.0)
    rows = load_rows(str(folder / "digits.npz"), contract)
    pixels, labels = torch.from_numpy(rows.inputs["pixels"]), torch.from_numpy(rows.labels)
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(4):
        for batch in torch.randperm(1500).split(64):
            loss = torch.nn.functional.cross_entropy(module(pixels[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    module.eval()
    export_torch(TorchModel(module, contract, "digits"), folder / "digits.onnx")
    return read_onnx(folder / "digits.onnx"), rows.take(slice(0, 100)), rows.take(slice(1500, None))


@pytest.fixture
def source(digits: tuple[OnnxFile, Rows, Rows]) -> OnnxFile:
    return digits[0]


@pytest.fixture
def calibration(digits: tuple[OnnxFile, Rows, Rows]) -> Rows:
    return digits[1]


@pytest.fixture
def unseen(digits: tuple[OnnxFile, Rows, Rows]) -> Rows:
    return digits[2]


@pytest.fixture
def damaged(source: OnnxFile, tmp_path: Path) -> Path:
    """A file like ``source`` in everything but its last weights, which are another network's."""
    import onnx
    from onnx import numpy_helper

    proto = onnx.load(source.path)
    weights = [tensor for tensor in proto.graph.initializer if len(tensor.dims) == 2][-1]
    values = numpy_helper.to_array(weights)
    weights.CopyFrom(numpy_helper.from_array(-values, weights.name))
    path = tmp_path / "damaged.onnx"
    onnx.save(proto, path)
    return path
