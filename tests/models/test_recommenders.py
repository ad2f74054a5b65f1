from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from monograph.errors import ConfigError
from monograph.export.fusion import fit_fusion, fuse, plan_fusion
from monograph.export.trace import export_torch
from monograph.models.contract import Kind, random_inputs
from monograph.models.data.movielens import ITEM_COUNT, Films
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import read_onnx
from monograph.models.recommenders import (
    FilmContent,
    film_content,
    film_features,
    matrix_factorisation,
    neural_collaborative_filtering,
)
from monograph.models.sources import load_python_model, parse_source
from monograph.models.students.contracts import ModuleAndContract
from monograph.models.torch_model import TorchModel
from monograph.runtime.session import open_session

FACTORIES = [matrix_factorisation, film_content, neural_collaborative_filtering]
FOUR_FILMS = Films(
    titles=np.array(["a", "b", "c", "d"]),
    years=np.array([1930, 1975, 1980, 0]),
    genres=np.array([[True, False], [True, True], [False, False], [False, True]]),
    genre_names=("Comedy", "Drama"),
)


def rows_of(contract, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    return random_inputs(contract, count, np.random.default_rng(seed))


@pytest.mark.parametrize("factory", FACTORIES)
class TestAll:
    def test_contract(self, factory: Callable[..., ModuleAndContract]):
        _, contract = factory(width=4)
        assert [spec.describe() for spec in contract.inputs] == ["user: int64 [batch]", "item: int64 [batch]"]
        assert [spec.upper_bound for spec in contract.inputs] == [671, ITEM_COUNT]
        assert (contract.kind, contract.output.describe()) == (Kind.SCORES, "scores: float32 [batch x 1]")

    def test_export(self, factory: Callable[..., ModuleAndContract], tmp_path: Path):
        torch.manual_seed(0)
        model = load_python_model(parse_source(f"py:monograph.models.recommenders:{factory.__name__}"), arguments={"width": 4})
        exported = export_torch(model, tmp_path / "m.onnx")
        assert [batch.batch_size for batch in exported.proof.batches] == [1, 2, 5]
        assert read_onnx(exported.path).contract == model.contract

    def test_a_row_is_scored_by_itself(self, factory: Callable[..., ModuleAndContract]):
        torch.manual_seed(0)
        model = TorchModel(*factory(width=4), "m")
        inputs = rows_of(model.contract, 6)
        together = model(inputs)["scores"]
        assert len(np.unique(together)) == 6
        alone = [model({name: array[row : row + 1] for name, array in inputs.items()})["scores"] for row in range(6)]
        np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-5, atol=1e-6)

    def test_a_size_that_cannot_be(self, factory: Callable[..., ModuleAndContract]):
        with pytest.raises(ConfigError, match="width is 0, expected a positive number"):
            factory(width=0)


def test_matrix_factorisation_is_biases_and_a_product():
    torch.manual_seed(0)
    module, contract = matrix_factorisation(7, 9, width=3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    weights = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    inputs = rows_of(contract, 5)
    users, items = inputs["user"], inputs["item"]
    taste = (weights["user.weight"][users] * weights["item.weight"][items]).sum(1)
    expected = weights["bias"] + weights["user_bias.weight"][users, 0] + weights["item_bias.weight"][items, 0] + taste
    np.testing.assert_allclose(TorchModel(module, contract, "m")(inputs)["scores"][:, 0], expected, rtol=1e-5, atol=1e-6)


def test_films_of_the_same_genres_and_year_differ_by_their_bias_alone():
    torch.manual_seed(0)
    module = FilmContent(3, torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), width=2)
    users = torch.arange(3)
    with torch.no_grad():
        module.item_bias.weight[1] = 0.5
        first, second, other = (module(users, torch.full((3,), item))[:, 0] for item in range(3))
    torch.testing.assert_close(second - first, torch.full((3,), 0.5))
    assert (other - first).std() > 0, "users like genres differently"


def test_features_of_films():
    features = film_features(FOUR_FILMS).numpy()
    root = np.sqrt(0.5)
    np.testing.assert_allclose(features[:, :2], [[1, 0], [root, root], [0, 0], [0, 1]], rtol=1e-6)
    years = features[:, 2:]  # shares of 1930, 1945, 1960, 1975, 1990, 2005 and 2020
    np.testing.assert_allclose(years[0], [1, 0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(years[1], [0, 0, 0, 1, 0, 0, 0])
    np.testing.assert_allclose(years[2], [0, 0, 0, 2 / 3, 1 / 3, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(years[3], np.zeros(7))


class _Probability(torch.nn.Module):
    """The sigmoid of what a recommender gives."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.module(user, item))


def test_three_kinds_become_one_graph_whose_weights_are_fitted_on_likes(tmp_path: Path):
    """The likes follow a mixture of what the members say, which the fit finds again."""
    files, shares = [], (0.3, 0.5, 0.2)
    for seed, factory in enumerate(FACTORIES):
        torch.manual_seed(seed)
        module, contract = factory(width=8)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(std=0.4)
        model = TorchModel(_Probability(module), contract, factory.__name__)
        files.append(read_onnx(export_torch(model, tmp_path / f"{factory.__name__}.onnx").path))
    inputs = rows_of(files[0].contract, 8000)
    probabilities = [open_session(file.path)(inputs)["scores"][:, 0] for file in files]
    likely = sum(share * each for share, each in zip(shares, probabilities, strict=True))
    rows = Rows(inputs, (np.random.default_rng(1).random(8000) < likely).astype(np.int64))
    fit = fit_fusion(files, [rows] * 3, seed=0)
    assert (fit.form, fit.loss_name) == ("mean", "RMSE")
    np.testing.assert_allclose(fit.weights, shares, atol=0.1)
    assert fit.loss < min(fit.member_loss)
    assert fit.gain is not None
    assert fit.gain.low > 0
    fused = fuse(plan_fusion(files, fit=fit), tmp_path / "fused.onnx", rows=rows.take(slice(0, 64)))
    assert fused.file.contract.kind is Kind.SCORES
    assert [member.name for member in fused.plan.running] == [file.path.stem for file in files]
    mixed = open_session(fused.file.path)(inputs)["scores"][:, 0]
    np.testing.assert_allclose(mixed, np.tensordot(fit.weights, probabilities, 1), atol=1e-6)
