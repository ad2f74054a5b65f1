"""The training loop: fit on training rows, choose the epoch on validation rows. There is one, and this is it.

What is minimised is told by an objective, which gives a loss for each row: so rows with and without labels can stand in one
batch, and a batch that is cut into parts for want of memory gives the same gradient as the whole.

A training can be resumed exactly: rows are ordered by seed and epoch, dropout is drawn by seed and step, and everything else
stands in the checkpoint, the number of threads included. As that is chosen by timing and another number adds in another order,
results of two trainings are equal bit for bit where the user has set it, and to rounding otherwise.

Shape letters: ``b`` batch, ``c`` classes, ``n`` rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from monograph.errors import ConfigError, ContractError, MonographError
from monograph.models.contract import Kind
from monograph.models.data.rows import Rows
from monograph.models.torch_model import TorchModel, output_tensors
from monograph.pipelines.training.augment import Augmentation
from monograph.pipelines.training.batches import Batch, as_it_is, dataset_of
from monograph.pipelines.training.checkpoint import load_checkpoint, save_checkpoint
from monograph.pipelines.training.objectives import Objective, check_score_labels, own_objective, validation_loss
from monograph.pipelines.training.processes import trains_on_processor
from monograph.pipelines.training.threads import Choice, ThreadChooser

SCHEDULES = ("one-cycle", "cosine", "constant")
SELECTIONS = ("loss", "top1")
_VALIDATION_BATCH_SIZE = 512
_STEPS_A_CHECKPOINT = 200


@dataclass(frozen=True)
class TrainingSettings:
    """How to train: AdamW, by default under a one-cycle schedule (Smith and Topin 2018, arXiv 1708.07120)."""

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 3e-3
    """The peak of the schedule."""
    weight_decay: float = 1e-2
    label_smoothing: float = 0.0
    seed: int = 0
    schedule: str = "one-cycle"
    gradient_accumulation: int = 1
    """Parts that a batch is cut into, one after another, for want of memory; the gradient is that of the whole batch."""
    max_gradient_norm: float | None = None
    ema_decay: float | None = None
    """Of an exponential moving average of the weights, which is validated and kept in place of them."""
    patience: int | None = None
    """Epochs without a better one after which to stop."""
    mixed_precision: str = "no"
    """``no``, ``fp16`` or ``bf16``, as accelerate takes it."""
    select: str = "loss"
    """By what the best epoch is chosen on validation rows: ``loss``, the lowest, or ``top1``, the highest, of classes."""


@dataclass(frozen=True)
class Epoch:
    """One epoch: mean losses (nats, or squared error), and the share of validation rows whose best class is right."""

    train_loss: float
    validation_loss: float
    validation_top1: float
    """Not a number for a model without classes."""


@dataclass(frozen=True)
class Training:
    """All epochs, and which of them was kept."""

    epochs: tuple[Epoch, ...]
    best_epoch: int
    """Counted from 0."""


@dataclass
class _Progress:
    """Where a training is, and what a checkpoint holds beside weights."""

    epoch: int = 0
    step_in_epoch: int = 0
    """Steps done of this epoch."""
    losses: list[float] = field(default_factory=list)
    """Of this epoch's steps."""
    epochs: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict)


def train(
    model: TorchModel,
    train_rows: Rows,
    validation_rows: Rows,
    settings: TrainingSettings,
    on_epoch: Callable[[int, Epoch], None] = lambda number, epoch: None,
    *,
    objective: Objective | None = None,
    augmentation: Augmentation | None = None,
    folder: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    rate_shares: Callable[[str], float] = lambda name: 1.0,
    on_start: Callable[[Accelerator], None] = lambda accelerator: None,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> Training:
    """Train ``model`` in place and leave it with the weights of its best epoch, in eval mode.

    Args:
        model: what to train.
        train_rows: labels may be missing where the objective asks for none.
        validation_rows: with labels; the epoch is chosen on them.
        settings: how.
        on_epoch: told each epoch's number, from 0, and what came of it.
        objective: what to minimise; by default what fits the model's kind (:func:`own_objective`).
        augmentation: what is done to training pictures; they are taken as they are by default.
        folder: where checkpoints lie; with one, a training that was stopped goes on from there.
        identity: what else must be the same for a checkpoint to be resumed, by name.
        rate_shares: which share of the learning rate the weights of this name get; those that take no gradient get none.
        on_start: told what places models on their devices, before the first step.
        on_step: told the number of steps done, of all steps, and the loss of the last one.

    Raises:
        ContractError: the model gives neither logits nor plain numbers.
        ConfigError: a setting is none, or a checkpoint was made with other settings.
        DataError: validation rows without labels.
        MonographError: the loss is not finite, or a checkpoint cannot be written; the last one is kept.
    """
    _check(model, settings)
    validation_rows.required_labels()
    if objective is None and model.contract.kind is Kind.SCORES:
        check_score_labels(train_rows.required_labels(), train_rows.origin)
    loop = _Loop(model, train_rows, validation_rows, settings, objective, augmentation, folder, identity or {}, rate_shares)
    on_start(loop.accelerator)
    return loop.run(on_epoch, on_step)


def _check(model: TorchModel, settings: TrainingSettings) -> None:
    if model.contract.kind not in (Kind.LOGITS, Kind.REGRESSION, Kind.EMBEDDING, Kind.SCORES):
        raise ContractError(f"{model.name} gives {model.contract.kind.value}, and training on classes needs logits")
    for name, chosen, known in (("schedule", settings.schedule, SCHEDULES), ("selection", settings.select, SELECTIONS)):
        if chosen not in known:
            raise ConfigError(f"unknown {name} {chosen!r}: choose from {', '.join(known)}")
    if settings.epochs < 1 or settings.batch_size < 1 or settings.gradient_accumulation < 1:
        raise ConfigError("epochs, batch size and gradient accumulation have to be at least 1")


class _Loop:
    """What one training holds: the model with its optimiser, the loaders, and where it is."""

    def __init__(
        self,
        model: TorchModel,
        train_rows: Rows,
        validation_rows: Rows,
        settings: TrainingSettings,
        objective: Objective | None,
        augmentation: Augmentation | None,
        folder: Path | None,
        identity: Mapping[str, Any],
        rate_shares: Callable[[str], float],
    ) -> None:
        set_seed(settings.seed)
        self.model, self.settings, self.folder, self.augmentation = model, settings, folder, augmentation
        self.objective = objective or own_objective(model.contract.kind, settings.label_smoothing)
        self.identity = asdict(settings) | {"augmentation": _described(augmentation)} | dict(identity)
        self.accelerator = _accelerator(settings.mixed_precision)
        self.memory_format = _memory_format(model.module)
        model.module.to(memory_format=self.memory_format)  # type: ignore[call-overload] # torch's stubs know it with tensors only
        self.order = torch.Generator()
        train_loader = DataLoader(
            dataset_of(model, train_rows),
            batch_size=settings.batch_size,
            shuffle=True,
            drop_last=len(train_rows) > settings.batch_size,
            generator=self.order,
            collate_fn=as_it_is,
        )
        validation_loader = DataLoader(dataset_of(model, validation_rows), batch_size=_VALIDATION_BATCH_SIZE, collate_fn=as_it_is)
        self.steps_an_epoch = len(train_loader)
        groups = _groups(model.module, settings.learning_rate, rate_shares)
        if isinstance(self.objective, nn.Module):
            groups[0]["params"] += self.objective.parameters()
        optimizer = torch.optim.AdamW(groups, settings.learning_rate, weight_decay=settings.weight_decay)
        schedule = _schedule(optimizer, settings, settings.epochs * self.steps_an_epoch)
        self.module, self.optimizer, self.train_loader, self.validation_loader, self.schedule = self.accelerator.prepare(
            model.module, optimizer, train_loader, validation_loader, schedule
        )
        if isinstance(self.objective, nn.Module):
            self.objective = self.accelerator.prepare_model(self.objective)
        self.averaged = None if settings.ema_decay is None else _average(self.module, settings.ema_decay)
        self.progress = _Progress()
        self.threads = self._thread_chooser()

    def run(self, on_epoch: Callable[[int, Epoch], None], on_step: Callable[[int, int, float], None]) -> Training:
        """Train to the end, from the last checkpoint on where there is one."""
        self._resume()
        progress = self.progress
        while progress.epoch < self.settings.epochs and not self._is_out_of_patience():
            self._train_epoch(on_step)
            validated = self._validate()
            epoch = Epoch(float(np.mean(progress.losses)), *validated)
            self._require_finite(epoch.validation_loss, "the validation loss")
            progress.epochs.append(epoch)
            if self._is_best(epoch):
                progress.best_epoch, progress.best_state = progress.epoch, self._weights()
            progress.epoch, progress.step_in_epoch, progress.losses = progress.epoch + 1, 0, []
            self._save()
            on_epoch(progress.epoch - 1, epoch)
        # Without this the model would go on answering in mixed precision, as accelerate lets it while it is trained.
        self.accelerator.unwrap_model(self.module, keep_fp32_wrapper=False)
        self.model.module.load_state_dict(progress.best_state)
        self.model.module.to("cpu").to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload] # as above
        return Training(tuple(progress.epochs), progress.best_epoch)

    def _train_epoch(self, on_step: Callable[[int, int, float], None]) -> None:
        progress, settings = self.progress, self.settings
        self.module.train()
        self.order.manual_seed(_seed(settings.seed, progress.epoch, 0))
        for *inputs, labels, rows in skip_first_batches(self.train_loader, progress.step_in_epoch):
            step = progress.epoch * self.steps_an_epoch + progress.step_in_epoch
            torch.manual_seed(_seed(settings.seed, step, 1 + self.accelerator.process_index))
            with self.threads.batch():
                loss = self._step(self._batch(inputs, labels, rows))
            progress.step_in_epoch += 1
            progress.losses.append(loss)
            self._require_finite(loss, "the loss")
            on_step(step + 1, settings.epochs * self.steps_an_epoch, loss)
            if progress.step_in_epoch % _STEPS_A_CHECKPOINT == 0:
                self._save()

    def _batch(self, inputs: list[Tensor], labels: Tensor, rows: Tensor) -> Batch:
        if self.augmentation is None:
            return Batch(self._laid_out(inputs), labels, rows)
        view = self.augmentation.view_of(self.progress.epoch)
        return Batch(self._laid_out(self.augmentation.apply(inputs, rows, view)), labels, rows, view)

    def _laid_out(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return inputs in the memory format of the module's weights, which is for pictures."""
        return tuple(each.contiguous(memory_format=self.memory_format) if each.dim() == 4 else each for each in inputs)

    def _step(self, batch: Batch) -> float:
        """Take one step of the optimiser; the mean over the batch's rows is minimised, however it is cut."""
        self.optimizer.zero_grad()
        total = torch.zeros((), device=batch.rows.device)
        for part in batch.chunks(self.settings.gradient_accumulation):
            with self.accelerator.autocast():
                outputs = output_tensors(self.module(*part.inputs))
            loss = self.objective([output.float() for output in outputs], part).sum() / len(batch)
            self.accelerator.backward(loss)
            total += loss.detach()
        if self.settings.max_gradient_norm is not None:
            self.accelerator.clip_grad_norm_(self.module.parameters(), self.settings.max_gradient_norm)
        self.optimizer.step()
        self.schedule.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.module)
        return float(total)

    @torch.inference_mode()
    def _validate(self) -> tuple[float, float]:
        module = self.module if self.averaged is None else self.averaged
        module.eval()
        all_outputs, all_labels = [], []
        for *inputs, labels, _ in self.validation_loader:
            given = output_tensors(module(*self._laid_out(inputs)))[0].float()
            outputs, targets = self.accelerator.gather_for_metrics((given, labels))
            all_outputs.append(outputs)
            all_labels.append(targets)
        outputs, labels = torch.cat(all_outputs), torch.cat(all_labels)  # [n, c], [n]
        kind = self.model.contract.kind
        top1 = float((outputs.argmax(1) == labels).float().mean()) if kind.has_classes else math.nan
        return validation_loss(kind, outputs, labels), top1

    def _is_best(self, epoch: Epoch) -> bool:
        past = self.progress.epochs[:-1]
        if not past:
            return True
        best = self.progress.epochs[self.progress.best_epoch]
        # A model without classes has no top-1: it is chosen by its loss.
        by_top1 = self.settings.select == "top1" and self.model.contract.kind.has_classes
        if by_top1 and epoch.validation_top1 != best.validation_top1:
            return epoch.validation_top1 > best.validation_top1
        return epoch.validation_loss <= best.validation_loss

    def _is_out_of_patience(self) -> bool:
        return self.settings.patience is not None and self.progress.epoch - self.progress.best_epoch > self.settings.patience

    def _weights(self) -> dict[str, Tensor]:
        """Return the weights to keep: the average's, where there is one."""
        module = self.accelerator.unwrap_model(self.module if self.averaged is None else self.averaged.module)
        return {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in module.state_dict().items()
        }

    def _require_finite(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            step = self.progress.epoch * self.steps_an_epoch + self.progress.step_in_epoch
            kept = "; the last checkpoint is kept" if self.folder is not None else ""
            raise MonographError(
                f"{self.model.name}: {what} is not finite in epoch {self.progress.epoch + 1}, at step {step}{kept}: try a lower "
                "learning rate"
            )

    def _save(self) -> None:
        if self.folder is None or not self.accelerator.is_main_process:
            return
        progress = self.progress
        state = {
            "module": self.accelerator.unwrap_model(self.module).state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "objective": self.accelerator.unwrap_model(self.objective).state_dict() if self._learns_objective() else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "threads": None if self.threads.choice is None else asdict(self.threads.choice),
            "progress": vars(progress) | {"epochs": [asdict(epoch) for epoch in progress.epochs]},
        }
        save_checkpoint(self.folder, state, self.identity)

    def _thread_chooser(self, start: Choice | None = None) -> ThreadChooser:
        return ThreadChooser(start, is_on_processor=self.accelerator.device.type == "cpu")

    def _learns_objective(self) -> bool:
        return isinstance(self.objective, nn.Module)

    def _resume(self) -> None:
        state = None if self.folder is None else load_checkpoint(self.folder, self.identity)
        if state is None:
            return
        self.accelerator.unwrap_model(self.module).load_state_dict(state["module"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        if self._learns_objective():
            self.accelerator.unwrap_model(self.objective).load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if state.get("threads") is not None:  # older checkpoints do not have it
            self.threads = self._thread_chooser(Choice(**state["threads"]))
        told = state["progress"]
        self.progress = _Progress(**told | {"epochs": [Epoch(**epoch) for epoch in told["epochs"]]})


def _accelerator(mixed_precision: str) -> Accelerator:
    # Its state is that of the process, and refuses another precision than that of the training before.
    AcceleratorState._reset_state()
    # Processes share each batch, so that any number of them takes the same steps.
    loaders = DataLoaderConfiguration(split_batches=True)
    return Accelerator(mixed_precision=mixed_precision, dataloader_config=loaders, cpu=trains_on_processor())


def _described(augmentation: Augmentation | None) -> dict[str, Any] | None:
    return None if augmentation is None else asdict(augmentation) | {"operations": list(augmentation.operations)}


def _memory_format(module: nn.Module) -> torch.memory_format:
    """Return how pictures lie in memory: channels last under convolutions, which takes 0.6 of the time on a CPU."""
    has_convolutions = any(isinstance(each, nn.Conv2d) for each in module.modules())
    return torch.channels_last if has_convolutions else torch.contiguous_format


def _schedule(optimizer: torch.optim.Optimizer, settings: TrainingSettings, steps: int) -> LRScheduler:
    if settings.schedule == "one-cycle":
        return OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=steps)
    if settings.schedule == "cosine":
        return CosineAnnealingLR(optimizer, steps)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def _groups(module: nn.Module, learning_rate: float, rate_shares: Callable[[str], float]) -> list[dict[str, Any]]:
    """Return the weights that take a gradient, those of one learning rate together, the highest first."""
    by_share: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            by_share.setdefault(rate_shares(name), []).append(parameter)
    return [{"params": by_share[share], "lr": learning_rate * share} for share in sorted(by_share, reverse=True)]


def _average(module: nn.Module, decay: float) -> AveragedModel:
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call] # torch's own


def _seed(seed: int, number: int, purpose: int) -> int:
    """Mix three numbers to one of 63 bits, so that neighbours share nothing."""
    return int(np.random.SeedSequence([seed, number, purpose]).generate_state(1, np.uint64)[0] >> 1)
