"""Models of real pictures as ONNX files that carry their proof, the gate's verdict on one of them, and its bundle."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from sklearn.linear_model import LogisticRegression
from torch import nn

from monograph.export.trace import export_torch
from monograph.models.contract import Contract, ImagePreprocessing, Kind, TensorSpec
from monograph.models.data.digits import optical_digits
from monograph.models.data.load import load_rows
from monograph.models.torch_model import TorchModel
from monograph.pipelines.bundle import bundle_model
from monograph.pipelines.cli import _exit_code
from monograph.pipelines.gate import Outcome, Verdict, gate_model
from monograph.pipelines.lower import lower_model
from monograph.pipelines.records import read_record, write_record

Run = Callable[..., tuple[int, str, str]]
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class World:
    """All that a bundle is made of."""

    folder: Path
    model: Path
    other: Path
    int8: Path
    verdict: Path
    test: Path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = _exit_code([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return code, captured.out, " ".join(captured.err.split())

    return call


def digit_contract() -> Contract:
    pixels = TensorSpec("pixels", "float32", ("batch", 1, 8, 8), ImagePreprocessing(mean=(0.3,), std=(0.4,)))
    return Contract((pixels,), (TensorSpec("logits", "float32", ("batch", 10)),), Kind.LOGITS, CLASSES)


def linear(weight: np.ndarray, bias: np.ndarray) -> TorchModel:
    module = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], len(weight)))
    with torch.no_grad():
        module[1].weight.copy_(torch.from_numpy(weight))
        module[1].bias.copy_(torch.from_numpy(bias))
    return TorchModel(module, digit_contract(), "digits")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("bundle")
    table = optical_digits()
    x, y, contract = table["x"], table["y"], digit_contract()
    np.savez(folder / "train.npz", x=x[:600], y=y[:600])
    np.savez(folder / "test.npz", x=x[600:], y=y[600:])
    rows = load_rows(str(folder / "train.npz"), contract)
    fitted = LogisticRegression(C=0.5, max_iter=300).fit(rows.inputs["pixels"].reshape(600, -1), y[:600])
    export_torch(linear(fitted.coef_, fitted.intercept_), folder / "digits.onnx", rows=rows)
    export_torch(linear(fitted.coef_ * 0.99, fitted.intercept_), folder / "other.onnx", rows=rows)
    lower_model(folder / "digits.onnx", folder / "int8.onnx", to="int8-static", calibration=str(folder / "train.npz"))
    (folder / "policy.yaml").write_text("accuracy: {max_loss_points: 2}\n", encoding="utf-8")
    verdict = gate_model(folder / "digits.onnx", folder / "other.onnx", str(folder / "test.npz"), policy=folder / "policy.yaml")
    assert verdict.outcome is Outcome.PASS
    write_record(folder / "verdict.json", verdict)
    write_record(folder / "measured.json", verdict.measurements)
    return World(
        folder, folder / "digits.onnx", folder / "other.onnx", folder / "int8.onnx", folder / "verdict.json", folder / "test.npz"
    )


@pytest.fixture
def verdict_of(world: World, tmp_path: Path) -> Callable[[Outcome], Path]:
    """The verdict, had its checks come out otherwise."""

    def write(outcome: Outcome) -> Path:
        verdict = read_record(world.verdict, Verdict)
        checks = tuple(replace(check, outcome=outcome) for check in verdict.checks)
        write_record(tmp_path / "other_verdict.json", replace(verdict, outcome=outcome, checks=checks))
        return tmp_path / "other_verdict.json"

    return write


@pytest.fixture(scope="session")
def whole_bundle(world: World) -> Path:
    """One bundle with everything in it; tests that change something take ``bundle``, a copy."""
    made = bundle_model(
        world.model,
        world.folder / "whole",
        lowered=[world.int8],
        verdict=world.verdict,
        measurements=[world.folder / "measured.json"],
        licence="Apache-2.0",
    )
    return made.path


@pytest.fixture
def bundle(whole_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole_bundle, tmp_path / "bundle")


@pytest.fixture(scope="session")
def photographs() -> list[Image.Image]:
    """Crops of two photographs, of many sizes, upright and across."""
    pictures = [Image.fromarray(array) for array in load_sample_images().images]
    sizes = [(320, 240), (240, 320), (97, 64), (64, 64), (400, 401), (33, 90)]
    return [
        picture.crop((offset, offset, offset + width, offset + height))
        for picture in pictures
        for offset, (width, height) in zip((0, 5, 60, 100, 20, 200), sizes, strict=True)
    ]
