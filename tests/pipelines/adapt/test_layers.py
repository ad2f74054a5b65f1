"""How deep each weight lies below the head, and the learning rates that come of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monograph.models.torch_model import TorchModel
from monograph.pipelines.adapt.methods.layers import depths
from monograph.pipelines.adapt.network import Network, adaptable, network_of
from monograph.pipelines.adapt.task import Task, TaskKind
from monograph.pipelines.training.loop import _groups

ODD = Task(TaskKind.CLASSIFICATION, 2, ("even", "odd"))


def test_a_transformer(bert: TorchModel):
    depth = depths(network_of(adaptable(bert, ODD, 0)[0]))
    of = {part: {deep for name, deep in depth.items() if part in name} for part in ("embeddings", "layer.0", "layer.1", "pooler")}
    assert of == {"embeddings": {3}, "layer.0": {2}, "layer.1": {1}, "pooler": {1}}
    assert {deep for name, deep in depth.items() if name.startswith("head.")} == {0}


def test_a_convolution(pretrained: TorchModel):
    network = network_of(adaptable(pretrained, ODD, 0)[0])
    depth = depths(network)
    layers = [name for name, module in network.trunk.named_modules(prefix="trunk") if list(module.parameters(recurse=False))]
    found = [{deep for name, deep in depth.items() if name.rpartition(".")[0] == layer} for layer in layers]
    assert found == [{deep} for deep in range(len(layers), 0, -1)]


def test_a_trunk_without_a_list_counts_its_modules():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    assert depths(Network(Two(), nn.Linear(2, 1))) == {
        "trunk.first.weight": 2,
        "trunk.first.bias": 2,
        "trunk.second.weight": 1,
        "trunk.second.bias": 1,
        "head.weight": 0,
        "head.bias": 0,
    }


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_learning_rates(bert: TorchModel, decay: float):
    network = network_of(adaptable(bert, ODD, 0)[0])
    depth = depths(network)
    groups = _groups(network, 0.1, lambda name: decay ** depth[name])
    rate_of = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert len(rate_of) == sum(1 for _ in network.parameters()), "each weight once"
    for name, parameter in network.named_parameters():
        assert rate_of[id(parameter)] == pytest.approx(0.1 * decay ** depth[name])
    assert len(groups) == (4 if decay < 1 else 1)
    assert groups[0]["lr"] == pytest.approx(0.1), "the highest first"


def test_what_takes_no_gradient_gets_no_rate():
    network = Network(nn.Linear(2, 2), nn.Linear(2, 1))
    network.trunk.requires_grad_(False)
    (group,) = _groups(network, 0.1, lambda name: 1.0)
    assert [tensor.shape for tensor in group["params"]] == [torch.Size([1, 2]), torch.Size([1])]
