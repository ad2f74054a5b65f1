"""Three small classifiers of real digits, trained for two epochs each, and rows that none of them has seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from monograph.export.trace import export_torch
from monograph.models.data.digits import optical_digits
from monograph.models.students import conv, mlp
from monograph.models.torch_model import TorchModel
from monograph.pipelines.data import as_data_spec
from monograph.pipelines.training import TrainingSettings, train


@dataclass(frozen=True)
class Trained:
    """ONNX files of the same ten classes, and labelled rows."""

    models: tuple[str, ...]
    data: str
    folder: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("interop")
    table = optical_digits()
    x, y = np.asarray(table["x"]).reshape(-1, 1, 8, 8), np.asarray(table["y"])
    np.savez(folder / "test.npz", x=x[1200:1700], y=y[1200:1700])
    np.savez(folder / "train.npz", x=x[:1000], y=y[:1000])
    paths = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # batches this small gain nothing from more, and wait for one another on busy cores
    for name, factory, width, seed in (("narrow", mlp, 8, 0), ("wide", mlp, 48, 1), ("conv", conv, 6, 2)):
        torch.manual_seed(seed)
        module, contract = factory(input_shape=(1, 8, 8), width=width)
        model = TorchModel(module, contract, name)
        rows = as_data_spec(str(folder / "train.npz"))
        assert rows is not None
        seen = rows.load(contract, None)
        settings = TrainingSettings(epochs=2, batch_size=32, learning_rate=0.01, seed=seed)
        train(model, seen.take(slice(0, 900)), seen.take(slice(900, 1000)), settings)
        export_torch(model, folder / f"{name}.onnx")
        paths.append(str(folder / f"{name}.onnx"))
    torch.set_num_threads(threads)
    return Trained(tuple(paths), str(folder / "test.npz"), folder)
