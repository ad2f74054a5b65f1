"""The training loop: fit on training rows, choose the epoch on validation rows. There is one, and this is it.

Shape letters: ``b`` batch, ``c`` classes, ``n`` rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from monograph.errors import ContractError, MonographError
from monograph.models.contract import Kind
from monograph.models.data.rows import Rows
from monograph.models.torch_model import TorchModel, output_tensors
from monograph.runtime.session import usable_cores


@dataclass(frozen=True)
class TrainingSettings:
    """How to train: AdamW under a one-cycle schedule (Smith and Topin 2018, arXiv 1708.07120)."""

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 3e-3
    """The peak of the cycle."""
    weight_decay: float = 1e-2
    label_smoothing: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """One epoch: mean losses in nats, and the share of validation rows whose best class is right."""

    train_loss: float
    validation_loss: float
    validation_top1: float


@dataclass(frozen=True)
class Training:
    """All epochs, and which of them was kept."""

    epochs: tuple[Epoch, ...]
    best_epoch: int
    """The one with the lowest validation loss, counted from 0."""


def train(
    model: TorchModel,
    train_rows: Rows,
    validation_rows: Rows,
    settings: TrainingSettings,
    on_epoch: Callable[[int, Epoch], None] = lambda number, epoch: None,
) -> Training:
    """Train ``model`` in place on cross-entropy and leave it with the weights of its best epoch, in eval mode.

    Raises:
        ContractError: the model gives no logits.
        DataError: rows without labels.
        MonographError: the loss is not finite.
    """
    if model.contract.kind is not Kind.LOGITS:
        raise ContractError(f"{model.name} gives {model.contract.kind.value}, and training on classes needs logits")
    # In a container torch counts the host's cores, and threads beyond the quota only wait for one another.
    torch.set_num_threads(usable_cores())
    set_seed(settings.seed)
    accelerator = Accelerator()
    loader = DataLoader(
        _dataset(model, train_rows),
        batch_size=settings.batch_size,
        shuffle=True,
        drop_last=len(train_rows) > settings.batch_size,
        generator=torch.Generator().manual_seed(settings.seed),
    )
    validation_loader = DataLoader(_dataset(model, validation_rows), batch_size=512)
    optimizer = torch.optim.AdamW(model.module.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=settings.epochs * len(loader))
    module, optimizer, loader, validation_loader, schedule = accelerator.prepare(
        model.module, optimizer, loader, validation_loader, schedule
    )
    epochs: list[Epoch] = []
    best_state: dict[str, torch.Tensor] = {}
    for number in range(settings.epochs):
        train_loss = _train_epoch(module, loader, optimizer, schedule, accelerator, settings.label_smoothing)
        epoch = Epoch(train_loss, *_validate(module, validation_loader, accelerator))
        if not np.isfinite([epoch.train_loss, epoch.validation_loss]).all():
            raise MonographError(f"{model.name}: the loss is not finite in epoch {number + 1}: try a lower learning rate")
        epochs.append(epoch)
        if epoch.validation_loss <= min(past.validation_loss for past in epochs):
            best_state = {name: tensor.detach().clone() for name, tensor in model.module.state_dict().items()}
        on_epoch(number, epoch)
    model.module.load_state_dict(best_state)
    model.module.to("cpu").eval()
    return Training(tuple(epochs), int(np.argmin([epoch.validation_loss for epoch in epochs])))


def _dataset(model: TorchModel, rows: Rows) -> TensorDataset:
    inputs = [torch.from_numpy(np.ascontiguousarray(rows.inputs[spec.name])) for spec in model.contract.inputs]
    return TensorDataset(*inputs, torch.from_numpy(rows.required_labels().astype(np.int64)))


def _train_epoch(
    module: nn.Module, loader: Any, optimizer: Any, schedule: Any, accelerator: Accelerator, label_smoothing: float
) -> float:
    module.train()
    losses = []
    for *inputs, labels in loader:
        optimizer.zero_grad()
        logits = output_tensors(module(*inputs))[0]  # [b, c]
        loss = cross_entropy(logits, labels, label_smoothing=label_smoothing)
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


@torch.inference_mode()
def _validate(module: nn.Module, loader: Any, accelerator: Accelerator) -> tuple[float, float]:
    module.eval()
    all_logits, all_labels = [], []
    for *inputs, labels in loader:
        logits, targets = accelerator.gather_for_metrics((output_tensors(module(*inputs))[0], labels))
        all_logits.append(logits)
        all_labels.append(targets)
    logits, labels = torch.cat(all_logits), torch.cat(all_labels)  # [n, c], [n]
    return float(cross_entropy(logits, labels)), float((logits.argmax(1) == labels).float().mean())
