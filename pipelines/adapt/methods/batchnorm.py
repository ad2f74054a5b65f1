"""BatchNorm recalibration: the statistics of the pretrained network are replaced by those of the task's own rows.

Source: AdaBN, Li et al. 2017, arXiv 1603.04779. No labels are looked at for it; then the head is trained.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.optim.swa_utils import update_bn

from monograph.errors import ConfigError
from monograph.pipelines.adapt.features import has_batch_norm, trunk_features
from monograph.pipelines.adapt.methods.head import head_only
from monograph.pipelines.adapt.methods.method import Adaptation, Outcome
from monograph.pipelines.training.batches import dataset_of

_BATCH_SIZE = 256


def batchnorm(adaptation: Adaptation) -> Outcome:
    """Take the statistics of the training rows, then train the head on the features that come of them.

    Raises:
        ConfigError: no layer keeps statistics of batches.
    """
    network = adaptation.network
    if not has_batch_norm(network):
        raise ConfigError(f"{adaptation.model.name} has no batch norm to recalibrate: choose another --method")
    dataset = dataset_of(adaptation.model, adaptation.rows["train"])
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    starts = range(0, max(len(order) - len(order) % _BATCH_SIZE, 1), _BATCH_SIZE)  # a last batch of few rows would count as much
    batches = (dataset.__getitems__(order[start : start + _BATCH_SIZE])[:-2] for start in starts)
    update_bn(((_Inputs(batch),) for batch in batches), _Called(network))
    network.eval()
    features = trunk_features(adaptation.model, adaptation.folder.parent / "features", lambda done, total: None)
    outcome = head_only(replace(adaptation, features=features))
    return replace(outcome, notes=(f"batch statistics were taken anew from {len(order):,} training rows",))


class _Inputs(tuple[torch.Tensor, ...]):
    """All inputs of a batch, which torch's own function passes on as one."""

    def to(self, device: torch.device) -> _Inputs:
        return _Inputs(each.to(device) for each in self)


class _Called(torch.nn.Module):
    """The network, of which batch norms alone are ever set to train: a dropout before one would change its statistics."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def train(self, mode: bool = True) -> _Called:
        self.network.eval()
        for module in self.network.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.train(mode)
        return self

    def forward(self, inputs: _Inputs) -> torch.Tensor:
        output: torch.Tensor = self.network(*inputs)
        return output
