"""A model is cut before its own head, and put together again it is what it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from monograph.errors import ContractError
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.data.rows import Rows
from monograph.models.students import two_tower
from monograph.models.torch_model import TorchModel
from monograph.pipelines.adapt.features import trunk_features
from monograph.pipelines.adapt.network import FEATURES, Network, adaptable, network_of, pooled, shipped, split_model
from monograph.pipelines.adapt.task import Task, TaskKind

THREE = Task(TaskKind.CLASSIFICATION, 3, ("negative", "neutral", "positive"))
ODD = Task(TaskKind.CLASSIFICATION, 2, ("even", "odd"))


class Tokens(nn.Module):
    """Embeddings of tokens that know nothing of one another."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.table(ids)


def token_model() -> TorchModel:
    torch.manual_seed(0)
    inputs = tuple(TensorSpec(name, "int64", ("b", "s"), None, bound) for name, bound in (("ids", 10), ("attention_mask", 2)))
    return TorchModel(Tokens(), Contract(inputs, (TensorSpec("e", "float32", ("b", "s", 4)),), Kind.EMBEDDING), "tokens")


def outputs(model: TorchModel, rows: Rows) -> np.ndarray:
    return model(rows.inputs)[model.contract.output.name]


def test_the_head_of_a_convolution(pretrained: TorchModel, digits: Rows):
    split = split_model(pretrained)
    assert split.head is not None
    assert (split.width, split.head.in_features, split.head.out_features) == (16, 16, 10)
    rows, own = digits.take(slice(0, 7)), Task(TaskKind.CLASSIFICATION, 10, tuple("0123456789"))
    named = replace(pretrained, contract=replace(pretrained.contract, class_names=own.class_names))
    model, keeps_head = adaptable(named, own, 0)
    assert keeps_head
    np.testing.assert_array_equal(outputs(model, rows), outputs(named, rows))


def test_the_head_of_a_hugging_face_model(bert: TorchModel, texts: Rows):
    split = split_model(bert)
    assert split.head is not None
    assert (split.width, split.head.out_features, split.trunk.is_sequence) == (16, 3, False)
    model, keeps_head = adaptable(bert, THREE, 0)
    assert keeps_head
    np.testing.assert_array_equal(outputs(model, texts), outputs(bert, texts))
    assert bert.module.get_submodule("model.classifier").out_features == 3, "the model itself stays whole"


def test_other_classes_get_a_fresh_head_by_the_seed(bert: TorchModel):
    heads = []
    for seed in (0, 0, 1):
        model, keeps_head = adaptable(bert, ODD, seed)
        assert not keeps_head
        assert model.contract.class_names == ("even", "odd")
        heads.append(network_of(model).head.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_padding_of_an_embedding_model_does_not_change_its_features():
    model = token_model()
    split = split_model(model)
    assert (split.head, split.width, split.trunk.is_sequence, split.trunk.mask_at) == (None, 4, True, 1)
    ids, mask = torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.int64)
    longer, its_mask = torch.tensor([[1, 2, 3, 9, 9]]), torch.tensor([[1, 1, 1, 0, 0]])
    torch.testing.assert_close(split.trunk(ids, mask), split.trunk(longer, its_mask))
    torch.testing.assert_close(split.trunk(ids, mask)[0], model.module.table.weight[1:4].mean(0))


def test_tokens_of_which_none_counts_are_0():
    assert pooled(torch.ones(1, 2, 3), torch.zeros(1, 2)).tolist() == [[0.0, 0.0, 0.0]]
    assert pooled(torch.tensor([[[1.0], [3.0]]]), None).tolist() == [[2.0]]


def test_a_model_whose_output_no_linear_layer_makes():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh())
    contract = Contract((TensorSpec("x", "float32", ("b", 3)),), (TensorSpec("y", "float32", ("b", 5)),), Kind.REGRESSION)
    split = split_model(TorchModel(module, contract, "m"))
    assert (split.head, split.width) == (None, 5)
    model, keeps_head = adaptable(TorchModel(module, contract, "m"), Task(TaskKind.REGRESSION, 5, None), 0)
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(model({"x": x})["values"], module(torch.from_numpy(x)).detach().numpy())
    assert keeps_head


def test_two_towers_keep_their_own_head_for_clicks():
    torch.manual_seed(0)
    own = TorchModel(*two_tower(5, 6, width=4), "towers")
    model, keeps_head = adaptable(own, Task(TaskKind.CLICK, 1, None), 0)
    inputs = {"left": np.array([0, 4]), "right": np.array([5, 1])}
    logits = own(inputs)["scores"]
    assert keeps_head
    np.testing.assert_array_equal(model(inputs)["scores"], logits)
    np.testing.assert_allclose(shipped(model)(inputs)["scores"], 1 / (1 + np.exp(-logits)), rtol=1e-6)


def test_what_gives_no_features_by_row():
    contract = Contract((TensorSpec("x", "float32", ("b", 3)),), (TensorSpec("y", "float32", ("b", 5)),), Kind.EMBEDDING)

    class Sum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum(0, keepdim=True)

    with pytest.raises(ContractError, match=r"m gives \[1, 3\] for 3 rows, expected features for each row"):
        split_model(TorchModel(Sum(), contract, "m"))
    with pytest.raises(ContractError, match="m does not run on inputs that its contract allows"):
        split_model(TorchModel(nn.Linear(4, 2), contract, "m"))


def test_what_is_frozen_stays_in_eval_mode():
    network = Network(nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5)), nn.Linear(2, 1))
    network.trunk.requires_grad_(False)
    network.train()
    assert [module.training for module in (network.trunk, network.trunk[0], network.trunk[1], network.head)] == [False] * 3 + [
        True
    ]


class TestFeatures:
    def test_texts_sorted_and_cut_are_as_one_by_one(self, bert: TorchModel, texts: Rows, tmp_path: Path):
        model, _ = adaptable(bert, ODD, 0)
        features = trunk_features(model, tmp_path, lambda done, total: None).of(texts).inputs[FEATURES]
        trunk = network_of(model).trunk.eval()
        tensors = [torch.from_numpy(texts.inputs[spec.name]) for spec in model.contract.inputs]
        with torch.inference_mode():
            alone = torch.cat([trunk(*(each[row : row + 1] for each in tensors)) for row in range(len(texts))])
        np.testing.assert_allclose(features, alone.numpy(), atol=1e-5)
        assert features.std(0).max() > 1e-3, "the rows differ"

    def test_they_are_computed_once(self, pretrained: TorchModel, odd_parts: dict[str, Rows], tmp_path: Path):
        model, _ = adaptable(pretrained, ODD, 0)
        told: list[int] = []
        first = trunk_features(model, tmp_path, lambda done, total: told.append(done)).of(odd_parts["train"])
        assert told
        (file,) = tmp_path.iterdir()
        np.save(file, np.load(file) + 1)
        told.clear()
        again = trunk_features(model, tmp_path, lambda done, total: told.append(done)).of(odd_parts["train"])
        np.testing.assert_array_equal(again.inputs[FEATURES], first.inputs[FEATURES] + 1)
        assert not told
        np.testing.assert_array_equal(first.required_labels(), odd_parts["train"].required_labels())

    def test_other_weights_give_other_features(self, pretrained: TorchModel, odd_parts: dict[str, Rows], tmp_path: Path):
        model, _ = adaptable(pretrained, ODD, 0)
        first = trunk_features(model, tmp_path, lambda done, total: None).of(odd_parts["train"])
        with torch.no_grad():
            next(network_of(model).trunk.parameters()).mul_(2)
        other = trunk_features(model, tmp_path, lambda done, total: None).of(odd_parts["train"])
        assert not np.array_equal(first.inputs[FEATURES], other.inputs[FEATURES])

    def test_a_length_that_is_fixed_is_not_cut(self, texts: Rows, tmp_path: Path):
        """Positions of a network may be as many as it was made for."""
        from monograph.models.contract import TextPreprocessing

        class Fixed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table = nn.Embedding(20, 4)

            def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
                assert ids.shape[1] == 12
                return (self.table(ids) * mask[:, :, None]).sum(1)

        inputs = tuple(
            TensorSpec(role, "int64", ("b", 12), TextPreprocessing(role, 12), bound)
            for role, bound in (("input_ids", 20), ("attention_mask", 2))
        )
        contract = Contract(inputs, (TensorSpec("e", "float32", ("b", 4)),), Kind.EMBEDDING)
        model, _ = adaptable(TorchModel(Fixed(), contract, "fixed"), ODD, 0)
        short = texts.take(np.flatnonzero(texts.inputs["attention_mask"].sum(1) < 8))
        assert trunk_features(model, tmp_path, lambda done, total: None).of(short).inputs[FEATURES].shape == (len(short), 4)


@pytest.mark.parametrize("sigmoid", [nn.Sigmoid(), torch.sigmoid, nn.functional.sigmoid, torch.Tensor.sigmoid])
def test_scores_that_are_shares_already_are_refused(sigmoid):
    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, contract = two_tower(left_size=20, right_size=10, width=4)
            self.contract = contract

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return sigmoid(self.module(left, right))

    module, clicks = Shares(), Task(TaskKind.CLICK, 1, None)
    with pytest.raises(ContractError, match="ends in a sigmoid"):
        adaptable(TorchModel(module, module.contract, "shares"), clicks, 0)
    _, keeps_head = adaptable(TorchModel(module.module, module.contract, "logits"), clicks, 0)
    assert keeps_head
