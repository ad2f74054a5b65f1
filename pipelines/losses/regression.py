"""Squared error, for values, scores and bare logits.

Shape letters: ``b`` batch, ``c`` values.
"""

from __future__ import annotations

from torch import Tensor

from monograph.pipelines.losses.checks import checked_pair
from monograph.pipelines.losses.loss import DistillationLoss, LossOptions

_NAME = "mse"


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over the values of a row of ``(student - teacher)^2``.

    ``[b x c]``, ``[b]`` or any ``[b x ...]`` of both to ``[b]``, in the square of the unit of the values.

    Raises:
        ContractError: shapes that differ.

    Source: Ba and Caruana 2014, arXiv 1312.6184, on logits, which has a half in place of the mean.
    """
    student, teacher = checked_pair(_NAME, student, teacher)
    return (student - teacher).square().reshape(len(student), -1).mean(1)


def _compute(student: Tensor, teacher: Tensor, labels: Tensor | None, options: LossOptions) -> Tensor:
    return squared_error(student, teacher)


MSE = DistillationLoss(
    name=_NAME,
    title="Mean squared error",
    source="arXiv 1312.6184",
    compute=_compute,
    takes="values",
    defaults=LossOptions(),
)
