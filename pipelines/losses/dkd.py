"""Decoupled knowledge distillation: the target class and the other classes, each with a weight of its own.

Shape letters: ``b`` batch, ``c`` classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from monograph.errors import ContractError
from monograph.pipelines.losses.checks import check_temperature, checked_labels, checked_pair
from monograph.pipelines.losses.kd import divergence
from monograph.pipelines.losses.loss import DistillationLoss, LossOptions

_NAME = "dkd"


def dkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    temperature: float,
    alpha: float | Tensor = 1.0,
    beta: float | Tensor = 8.0,
) -> Tensor:
    """Return ``T^2 (alpha TCKD + beta NCKD)`` of each row, with y its label.

    TCKD is ``KL`` between (p_y, 1 - p_y) of the teacher and of the student, NCKD is ``KL`` between their softmaxes over the
    classes other than y, all at temperature T. With alpha 1 and beta ``1 - p_y`` of the teacher the sum is `kd`.
    The authors let it grow linearly over the first epochs (their "warm-up"): that is the trainer's work.

    Args:
        student: logits ``[b x c]``, c at least 2.
        teacher: logits ``[b x c]``.
        labels: classes ``[b]``, one for every row.
        temperature: T, above 0.
        alpha: the weight of TCKD, one for all rows or ``[b]``.
        beta: the weight of NCKD, one for all rows or ``[b]``.

    Returns:
        ``[b]``, in nats times ``T^2``.

    Raises:
        ConfigError: a temperature that is not above 0.
        ContractError: shapes that differ, a row without a label, or a single class.

    Source: Zhao et al. 2022, arXiv 2203.08679.
    """
    check_temperature(_NAME, temperature)
    student, teacher = checked_pair(_NAME, student, teacher, 2)
    labels = checked_labels(_NAME, student, labels, all_labelled=True)
    c = student.shape[1]
    if c < 2:
        raise ContractError(f"the loss {_NAME} got {c} class, expected 2 or more: use the loss mse for a single output")
    other_classes = torch.arange(c - 1, device=student.device).expand(len(labels), -1)  # [b x c-1]
    other_classes = other_classes + (other_classes >= labels[:, None])
    student_binary, student_others = _decouple(student / temperature, labels, other_classes)
    teacher_binary, teacher_others = _decouple(teacher / temperature, labels, other_classes)
    target_class = divergence(student_binary, teacher_binary)  # [b]
    non_target_class = divergence(student_others, teacher_others)  # [b]
    return temperature**2 * (alpha * target_class + beta * non_target_class)


def _decouple(logits: Tensor, labels: Tensor, other_classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithms of (p_y, 1 - p_y), ``[b x 2]``, and of the softmax over the other classes, ``[b x c-1]``."""
    target = logits.gather(1, labels[:, None])  # [b x 1]
    others = logits.gather(1, other_classes)  # [b x c-1]
    # log(1 - p_y) is taken from the logits of the others: from p_y it would be -inf for a sure model.
    binary = log_softmax(torch.cat([target, others.logsumexp(1, keepdim=True)], 1), 1)
    return binary, log_softmax(others, 1)


def _compute(student: Tensor, teacher: Tensor, labels: Tensor | None, options: LossOptions) -> Tensor:
    return dkd(student, teacher, labels, options.temperature, options.alpha, options.beta)


DKD = DistillationLoss(
    name=_NAME,
    title="Decoupled knowledge distillation",
    source="arXiv 2203.08679",
    compute=_compute,
    takes="logits",
    defaults=LossOptions(temperature=4.0, alpha=1.0, beta=8.0),
    reads=("temperature", "alpha", "beta"),
    needs_labels=True,
)
