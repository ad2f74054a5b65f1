"""What a distillation loss is, what may be set on it, and how it is mixed with cross-entropy on labels.

Shape letters: ``b`` batch, ``c`` classes (or values, or width of an embedding).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

from torch import Tensor, where
from torch.nn.functional import cross_entropy

from monograph.errors import ConfigError
from monograph.models.data.rows import UNLABELLED
from monograph.pipelines.losses.checks import checked_labels, in_single_precision

Takes = Literal["logits", "values", "embeddings", "feature maps"]
"""What the student and the teacher hand to a loss."""


@dataclass(frozen=True)
class LossOptions:
    """Everything that may be set on a loss; each loss names the fields that it reads, and ignores the others."""

    temperature: float = 1.0
    """Logits are divided by it before the softmax; without a unit, above 0."""
    alpha: float = 1.0
    """Weight of the target class, in decoupled distillation."""
    beta: float = 8.0
    """Weight of the other classes, in decoupled distillation."""
    inter_class_weight: float = 1.0
    """Weight of the relations inside a row, in DIST."""
    intra_class_weight: float = 1.0
    """Weight of the relations inside a class over the batch, in DIST."""
    distance_weight: float = 25.0
    """Weight of the distances, in relational distillation."""
    angle_weight: float = 50.0
    """Weight of the angles, in relational distillation."""
    hard_weight: float = 0.0
    """Share of cross-entropy on hard labels, 0 to 1. No loss reads it: it is what a trainer hands to `mixed`."""


Compute = Callable[[Tensor, Tensor, Tensor | None, LossOptions], Tensor]


@dataclass(frozen=True)
class DistillationLoss:
    """A loss between what a student gives and what its teacher gave.

    ``compute(student [b x c], teacher [b x c], labels [b] or None, options) -> [b]`` returns one value per row and does not
    reduce. So rows with and without labels can share a batch, and accumulated gradients can be averaged over rows exactly:
    divide the sum of the values by the number of rows of all micro-batches, not each micro-batch by its own.
    Only the student gets a gradient. Half-precision inputs are raised to float32.

    ``compute`` raises `ConfigError` for an option out of its range, and `ContractError` for shapes that do not fit and for
    labels that are missing.
    """

    name: str
    title: str
    source: str
    """The paper, as ``arXiv number``."""
    compute: Compute
    takes: Takes
    defaults: LossOptions
    """What the source recommends."""
    reads: tuple[str, ...] = ()
    """The fields of `LossOptions` that change this loss."""
    needs_labels: bool = False
    per_row: bool = True
    """Whether the value of a row depends on that row alone.

    Where not, the value also depends on which rows share its batch, and micro-batches are not the same as one large batch.
    """


def options_for(loss: DistillationLoss, given: Mapping[str, float]) -> LossOptions:
    """Return the defaults of ``loss`` with the ``given`` options in their place.

    Raises:
        ConfigError: an option that this loss does not read.
    """
    taken = (*loss.reads, "hard_weight")
    for name in given:
        if name not in taken:
            known = name in {field.name for field in fields(LossOptions)}
            fact = f"the loss {loss.name} does not read the option {name}" if known else f"there is no option {name} of a loss"
            raise ConfigError(f"{fact}: leave it out, or set one of {', '.join(taken)}")
    return replace(loss.defaults, **given)


def mixed(loss: DistillationLoss, hard_weight: float) -> DistillationLoss:
    """Mix ``loss`` with cross-entropy on hard labels, at temperature 1, for labelled rows only.

    A labelled row gets ``(1 - hard_weight) * soft + hard_weight * cross_entropy``, an unlabelled row ``soft`` alone. A row is
    unlabelled if its label is `UNLABELLED` (-1), and all rows are where ``labels`` is None. Weight 0 returns ``loss`` itself.
    Source: Hinton et al. 2015, arXiv 1503.02531, section 2.

    Raises:
        ConfigError: a weight outside 0 to 1, or a loss that does not take logits or values.
    """
    if not 0 <= hard_weight <= 1:
        raise ConfigError(f"hard_weight is {hard_weight}, expected a share from 0 (soft alone) to 1 (labels alone)")
    if hard_weight == 0:
        return loss
    if loss.takes not in ("logits", "values"):
        raise ConfigError(
            f"the loss {loss.name} compares {loss.takes}, and cross-entropy on labels needs logits: "
            "set hard_weight to 0 and add the cross-entropy of the logits yourself"
        )

    def compute(student: Tensor, teacher: Tensor, labels: Tensor | None, options: LossOptions) -> Tensor:
        soft = loss.compute(student, teacher, labels, options)  # [b]
        if labels is None:
            return soft
        labels = checked_labels(loss.name, student, labels)
        hard = cross_entropy(in_single_precision(student), labels, ignore_index=UNLABELLED, reduction="none")  # [b]
        return where(labels == UNLABELLED, soft, (1 - hard_weight) * soft + hard_weight * hard)

    title = f"{loss.title}, with {hard_weight:g} of cross-entropy on labels"
    return replace(loss, name=f"{loss.name}+labels", title=title, compute=compute)
