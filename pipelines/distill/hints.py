"""Layers inside the student that are taught by layers inside the teacher, beside what both give.

Hooks on the named layers keep what the last forward pass gave; so the teacher has to be asked live, on the student's own view.

Shape letters: ``b`` batch, ``k`` channels of the student, ``m`` of the teacher, ``h`` height, ``w`` width, ``s`` sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from monograph.errors import ConfigError, ContractError
from monograph.models.torch_model import TorchModel
from monograph.pipelines.losses import Hint
from monograph.pipelines.losses.features import attention_transfer
from monograph.pipelines.teachers import Teacher
from monograph.pipelines.training import Batch, Objective

HINT, ATTENTION = "hint", "attention"
HINT_LOSSES = (HINT, ATTENTION)
_DEFAULT_WEIGHTS = {HINT: 1.0, ATTENTION: 1000.0}  # of the authors: arXiv 1412.6550 and 1612.03928


@dataclass(frozen=True)
class Hints:
    """Which layers teach which."""

    layers: Mapping[str, str]
    """From the student's layers to the teacher's, by the names of their modules."""
    loss: str = HINT
    """``hint``: squared error after a learned projection of the student's layer; ``attention``: between maps of energy."""
    weight: float | None = None
    """Of the layers' loss beside that of the outputs; the authors' own by default."""

    def __post_init__(self) -> None:
        if self.loss not in HINT_LOSSES:
            raise ConfigError(f"unknown loss of layers {self.loss!r}: choose from {', '.join(HINT_LOSSES)}")
        if not self.layers:
            raise ConfigError("hints without layers: name a layer of the student and one of the teacher")


@contextmanager
def watched_layers(hints: Hints, learner: TorchModel, teachers: Sequence[Teacher]) -> Iterator[tuple[dict[str, Tensor], ...]]:
    """Keep what the named layers give while the context is open: of the student, and of the first teacher that is a module.

    Raises:
        ConfigError: no teacher is a PyTorch model, or a layer is none of its model.
    """
    teacher = next((one.module for one in teachers if one.module is not None), None)
    if teacher is None:
        raise ConfigError(
            f"{teachers[0].name} is an ONNX file, whose layers cannot be watched: give its PyTorch source for hints"
        )
    with ExitStack() as stack:
        kept = []
        for model, names in ((learner, hints.layers.keys()), (teacher, hints.layers.values())):
            kept.append(_watch(model, names, stack))
        yield tuple(kept)


def _watch(model: TorchModel, names: Iterable[str], stack: ExitStack) -> dict[str, Tensor]:
    modules = dict(model.module.named_modules())
    kept: dict[str, Tensor] = {}
    for name in names:
        if not name or name not in modules:
            known = [each for each in modules if each]
            shown = ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
            raise ConfigError(f"{model.name} has no layer {name!r}: it has {shown}")
        stack.callback(modules[name].register_forward_hook(partial(_keep, kept, name)).remove)
    return kept


def _keep(kept: dict[str, Tensor], name: str, module: nn.Module, inputs: object, output: object) -> None:
    given = output[0] if isinstance(output, tuple) else output
    if not isinstance(given, Tensor):
        raise ContractError(f"layer {name} gives a {type(given).__name__}, and a hint needs one tensor: choose another layer")
    kept[name] = given


class HintedObjective(nn.Module):
    """The loss of the outputs, and that of the layers; what it learns are their projections."""

    def __init__(
        self,
        base: Objective,
        hints: Hints,
        student: dict[str, Tensor],
        teacher: dict[str, Tensor],
        first_pass: Callable[[], None],
    ) -> None:
        """Make projections for the layers as wide as they are found.

        Args:
            base: the loss of the outputs, which asks the teacher live.
            hints: the layers.
            student: what its layers gave last, by :func:`watched_layers`.
            teacher: the same of the teacher.
            first_pass: runs both on a few rows.

        Raises:
            ContractError: two layers cannot be compared.
        """
        super().__init__()
        self._base, self._hints, self._student, self._teacher = base, hints, student, teacher
        self._weight = _DEFAULT_WEIGHTS[hints.loss] if hints.weight is None else hints.weight
        with torch.no_grad():
            first_pass()
        pairs = [_comparable(name, other, student, teacher, hints.loss) for name, other in hints.layers.items()]
        self.projections = nn.ModuleList(
            Hint(_width(own), _width(theirs), maps=own.dim() == 4) for own, theirs in pairs if hints.loss == HINT
        )

    def forward(self, outputs: list[Tensor], batch: Batch) -> Tensor:
        """Return the loss of each row, ``[b]``."""
        loss = self._base(outputs, batch)
        for place, (name, other) in enumerate(self._hints.layers.items()):
            own, theirs = _comparable(name, other, self._student, self._teacher, self._hints.loss)
            compared = self.projections[place](own, theirs) if self._hints.loss == HINT else attention_transfer(own, theirs)
            loss = loss + self._weight * compared
        return loss


def _comparable(
    name: str, other: str, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], loss: str
) -> tuple[Tensor, Tensor]:
    """Return both layers in float32, the larger maps pooled to the size of the smaller: ``[b x k (x h x w)]``, ``[b x m …]``."""
    own, theirs = student[name].float(), teacher[other].float()
    pair = f"layer {name} of the student gives {list(own.shape)} and {other} of the teacher {list(theirs.shape)}"
    if own.dim() != theirs.dim() or own.dim() not in (2, 3, 4) or (loss == ATTENTION and own.dim() != 4):
        raise ContractError(f"{pair}: {'attention needs two maps' if loss == ATTENTION else 'choose two of one kind'}")
    if own.dim() == 4:
        height, width = (min(sizes) for sizes in zip(own.shape[2:], theirs.shape[2:], strict=True))
        own, theirs = (adaptive_avg_pool2d(each, (height, width)) for each in (own, theirs))
    elif own.shape[1:-1] != theirs.shape[1:-1]:
        raise ContractError(f"{pair}: choose layers with as many places")
    return own, theirs


def _width(layer: Tensor) -> int:
    return layer.shape[1] if layer.dim() == 4 else layer.shape[-1]
