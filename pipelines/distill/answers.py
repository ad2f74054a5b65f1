"""What teachers give for the batches of a training: looked up, or asked for as they come.

Answers that are kept lie on disk, mapped, by the number of the row and of the view; so no shuffling, resuming or second run can
put one beside another row. Teachers that are asked live see the student's own view of each row, prepared as they want it.

Shape letters: ``b`` batch, ``c`` classes, ``n`` rows, ``t`` teachers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from monograph.errors import ConfigError
from monograph.models.contract import Contract
from monograph.models.data.rows import Array, Rows
from monograph.models.torch_model import output_tensors
from monograph.pipelines.distill.parts import prepared_alike
from monograph.pipelines.teachers import Teacher, cached_outputs
from monograph.pipelines.training import Augmentation, Batch

Answers = Callable[[Batch], Tensor]
"""What the teachers give for a batch: float32 ``[t x b x c]``, where the batch is."""
AUTO, KEPT, LIVE = "auto", "kept", "live"
MODES = (AUTO, KEPT, LIVE)


@dataclass(frozen=True)
class KeptAnswers:
    """Asked beforehand: once for each row and view."""

    views: tuple[tuple[Array, ...], ...]
    """Of each view, one array a teacher, float32 ``[n x c]``."""

    def prepare(self, accelerator: Accelerator) -> None:
        """Do nothing: they are looked up where they are."""

    def __call__(self, batch: Batch) -> Tensor:
        """Look the batch up."""
        rows = batch.rows.cpu().numpy()
        given = np.stack([outputs[rows] for outputs in self.views[batch.view]])  # [t x b x c]
        return torch.from_numpy(given).to(batch.rows.device)


class LiveAnswers:
    """Asked for each batch, in eval mode and without gradients, on the device that trains."""

    def __init__(
        self,
        teachers: Sequence[Teacher],
        orders: Sequence[Sequence[int] | None],
        rows: Sequence[Rows],
        student: Contract,
        augmentation: Augmentation | None,
    ) -> None:
        """Take the teachers, where the student's classes stand among theirs, and the training rows as each of them wants them."""
        self.teachers, self.orders, self.augmentation = teachers, orders, augmentation
        self.inputs = [
            None if prepared_alike(teacher.contract, student) else _tensors(each, teacher.contract)
            for teacher, each in zip(teachers, rows, strict=True)
        ]
        self.modules = [None if teacher.module is None else teacher.module.module for teacher in teachers]

    def prepare(self, accelerator: Accelerator) -> None:
        """Place modules where the training is, as what is only evaluated: no gradients, not wrapped for several processes."""
        self.modules = [
            None if module is None else accelerator.prepare_model(module, evaluation_mode=True) for module in self.modules
        ]

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Ask for the batch."""
        given = []
        for teacher, module, order, own in zip(self.teachers, self.modules, self.orders, self.inputs, strict=True):
            inputs = batch.inputs if own is None else self._view(own, batch)
            if module is None:
                arrays = {spec.name: each.cpu().numpy() for spec, each in zip(teacher.contract.inputs, inputs, strict=True)}
                logits = torch.from_numpy(teacher.logits(Rows(arrays))).to(batch.rows.device)
            else:
                module.eval()  # whatever has put it into train mode
                logits = teacher.as_logits(output_tensors(module(*inputs))[0].float())
            given.append(logits if order is None else logits[:, list(order)])
        return torch.stack(given)

    def _view(self, own: Sequence[Tensor], batch: Batch) -> tuple[Tensor, ...]:
        taken = [each[batch.rows.cpu()].to(batch.rows.device) for each in own]
        return tuple(taken) if self.augmentation is None else self.augmentation.apply(taken, batch.rows, batch.view)


def find_answers(
    teachers: Sequence[Teacher],
    orders: Sequence[Sequence[int] | None],
    rows: Sequence[Rows],
    student: Contract,
    folder: Path,
    augmentation: Augmentation | None,
    epochs: int,
    mode: str,
    on_progress: Callable[[int, int, str], None],
) -> tuple[KeptAnswers | LiveAnswers, str]:
    """Return the teachers' answers for training rows, and a sentence on how they are come by.

    Args:
        teachers: whom to ask.
        orders: of each, where the student's classes stand among its own; None where they stand alike.
        rows: as the student takes them, then as each teacher does.
        student: its contract.
        folder: where answers are kept.
        augmentation: of the rows.
        epochs: of the training.
        mode: ``kept``, ``live``, or ``auto``: kept where that asks less often than once a row and epoch.
        on_progress: told how much of a teacher's rows is done.

    Raises:
        ConfigError: there is no such mode, or the answers for a new view in each epoch were to be kept.
    """
    if mode not in MODES:
        raise ConfigError(f"unknown way {mode!r} to have teachers' outputs: choose from {', '.join(MODES)}")
    views = 1 if augmentation is None else augmentation.views or epochs
    if mode == LIVE or (mode == AUTO and views >= epochs > 1):
        why = f"asked live, {epochs} times a row" + (", each time for another view" if augmentation else "")
        return LiveAnswers(teachers, orders, rows[1:], student, augmentation), f"teachers are {why}"
    kept = []
    for view in range(min(views, epochs)):
        seen = None if augmentation is None else (augmentation, view)
        kept.append(tuple(ask_teachers(teachers, orders, rows[1:], folder, on_progress, seen)))
    once = "once a row" if len(kept) == 1 else f"once for each of {len(kept)} views of a row"
    return KeptAnswers(tuple(kept)), f"teachers are asked {once} and not in each of {epochs} epochs; their answers are kept"


def ask_teachers(
    teachers: Sequence[Teacher],
    orders: Sequence[Sequence[int] | None],
    rows: Sequence[Rows],
    folder: Path,
    on_progress: Callable[[int, int, str], None],
    view: tuple[Augmentation, int] | None = None,
) -> list[Array]:
    """Return what each teacher gives for each row, float32 ``[n x c]``, from ``folder`` where it was asked before.

    Args:
        teachers: whom to ask.
        orders: of each teacher, where the student's classes stand among its own; None where they stand alike.
        rows: as each teacher takes them.
        folder: where the answers lie.
        on_progress: told how much of a teacher's rows is done.
        view: of the rows; as they are by default.
    """
    outputs = []
    for teacher, order, each in zip(teachers, orders, rows, strict=True):
        shown = "" if view is None else f", view {view[1] + 1}"

        def show(done: int, total: int, name: str = teacher.name, shown: str = shown) -> None:
            on_progress(done, total, f"{name}: {done:,} of {total:,} rows{shown}")

        outputs.append(cached_outputs(teacher, each, folder, order, show, view))
    return outputs


def _tensors(rows: Rows, contract: Contract) -> list[Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(rows.inputs[spec.name])) for spec in contract.inputs]
