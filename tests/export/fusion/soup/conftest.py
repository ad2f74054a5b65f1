"""Members of soups: small networks in ONNX text, and classifiers of real digits trained from one initialisation and from two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.neural_network import MLPClassifier

from monograph.export.fusion.soup import Souped, fuse_soup, plan_soup
from monograph.models.data.digits import optical_digits
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile

Array = npt.NDArray[Any]

MLP = """<ir_version: 8, opset_import: ["": 20]>
mlp (float[batch, 64] x) => (float[batch, 10] logits) {
  hidden = Gemm(x, w1, b1)
  active = Relu(hidden)
  logits = Gemm(active, w2, b2)
}"""


@pytest.fixture
def make_soup(tmp_path: Path) -> Callable[..., Souped]:
    """Plan and write ``soup.onnx``; a refusal leaves nothing behind."""

    def build(files: Sequence[OnnxFile], *, proof_rows: Rows | None = None, **choices: Any) -> Souped:
        folder = tmp_path / "out"
        folder.mkdir(exist_ok=True)
        before = sorted(folder.iterdir())
        try:
            plan = plan_soup(files, **choices)
            return fuse_soup(plan, folder / "soup.onnx", rows=proof_rows, statistics_rows=choices.get("rows"))
        except BaseException:
            assert sorted(folder.iterdir()) == before
            raise

    return build


@pytest.fixture(scope="session")
def digits() -> dict[str, Rows]:
    """The optical digits as 64 numbers in [0, 1]: parts to train on, to fine-tune on, to validate on."""
    found = optical_digits()
    order = np.random.default_rng(0).permutation(len(found["y"]))
    pixels = (found["x"].reshape(-1, 64) / 255).astype(np.float32)
    parts = {"train": order[:300], "tune": order[300:900], "validation": order[900:]}
    return {name: Rows({"x": pixels[part]}, found["y"][part].astype(np.int64), origin=name) for name, part in parts.items()}


def mlp_weights(trained: MLPClassifier) -> dict[str, Array]:
    (w1, w2), (b1, b2) = trained.coefs_, trained.intercepts_
    return {name: array.astype(np.float32) for name, array in {"w1": w1, "b1": b1, "w2": w2, "b2": b2}.items()}


@pytest.fixture(scope="session")
def trained_mlps(digits: Mapping[str, Rows]) -> dict[str, dict[str, Array]]:
    """Two that were fine-tuned from one checkpoint on different rows, and one of another initialisation."""

    def fit(seed: int) -> MLPClassifier:
        model = MLPClassifier((32,), learning_rate_init=0.01, random_state=seed, max_iter=20)
        classes = np.arange(10)
        for _ in range(20):
            model.partial_fit(digits["train"].inputs["x"], digits["train"].labels, classes=classes)
        return model

    def tune(model: MLPClassifier, rows: Rows) -> MLPClassifier:
        for _ in range(10):
            model.partial_fit(rows.inputs["x"], rows.labels)
        return model

    halves = digits["tune"].take(slice(0, 300)), digits["tune"].take(slice(300, 600))
    return {
        "left": mlp_weights(tune(fit(0), halves[0])),
        "right": mlp_weights(tune(fit(0), halves[1])),
        "stranger": mlp_weights(tune(fit(1), halves[0])),
    }


@pytest.fixture
def write_mlp(write_model: Callable[..., OnnxFile]) -> Callable[[str, Mapping[str, Array]], OnnxFile]:
    return lambda name, arrays: write_model(name, MLP, arrays)


@pytest.fixture
def mlps(
    write_mlp: Callable[[str, Mapping[str, Array]], OnnxFile], trained_mlps: Mapping[str, Mapping[str, Array]]
) -> dict[str, OnnxFile]:
    return {name: write_mlp(name, arrays) for name, arrays in trained_mlps.items()}
