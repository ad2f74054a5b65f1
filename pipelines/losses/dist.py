"""DIST: the student keeps the teacher's relations between classes and between rows, and not its very probabilities.

Shape letters: ``b`` batch, ``c`` classes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softmax

from monograph.pipelines.losses.checks import centred_unit, check_temperature, checked_pair
from monograph.pipelines.losses.loss import DistillationLoss, LossOptions

_NAME = "dist"


def dist(
    student: Tensor, teacher: Tensor, temperature: float, inter_class_weight: float = 1.0, intra_class_weight: float = 1.0
) -> Tensor:
    """Return ``T^2 (inter_class_weight * inter + intra_class_weight * intra)`` of each row.

    inter is 1 minus Pearson's correlation of the student's and the teacher's probabilities of the row. intra is the mean over
    classes of 1 minus the correlation of the two columns of the batch: one number for the batch, which every row carries in
    full. So the mean over rows is the paper's loss, and a batch of doubled rows has the same mean. With accumulated
    gradients, intra is over each micro-batch.

    Two constant rows (or columns) agree, and add 0; a constant one and another add 1, without a gradient. So a batch of one
    row has intra 0.

    Args:
        student: logits ``[b x c]``.
        teacher: logits ``[b x c]``.
        temperature: T, above 0.
        inter_class_weight: the paper's beta.
        intra_class_weight: the paper's gamma.

    Returns:
        ``[b]``, without a unit.

    Raises:
        ConfigError: a temperature that is not above 0.
        ContractError: shapes that differ.

    Source: Huang et al. 2022, arXiv 2205.10536; weights, temperature and ``T^2`` as in the authors' code,
    https://github.com/hunto/image_classification_sota/blob/d9662f7df68fe46b973c4580b7c9b896cedcd301/lib/models/losses/dist_kd.py
    """
    check_temperature(_NAME, temperature)
    student, teacher = checked_pair(_NAME, student, teacher, 2)
    p_student, p_teacher = softmax(student / temperature, 1), softmax(teacher / temperature, 1)
    inter = 1 - correlation(p_student, p_teacher)  # [b]
    intra = (1 - correlation(p_student.T, p_teacher.T)).mean()
    return temperature**2 * (inter_class_weight * inter + intra_class_weight * intra)


def correlation(left: Tensor, right: Tensor) -> Tensor:
    """Return Pearson's correlation of each pair of vectors, ``[... x n]`` to ``[...]``: 1 if both are constant, 0 if one is."""
    left_direction, left_constant = centred_unit(left)
    right_direction, right_constant = centred_unit(right)
    both_constant = (left_constant & right_constant).squeeze(-1)
    return (left_direction * right_direction).sum(-1) + both_constant


def _compute(student: Tensor, teacher: Tensor, labels: Tensor | None, options: LossOptions) -> Tensor:
    return dist(student, teacher, options.temperature, options.inter_class_weight, options.intra_class_weight)


DIST = DistillationLoss(
    name=_NAME,
    title="DIST, distillation from a stronger teacher",
    source="arXiv 2205.10536",
    compute=_compute,
    takes="logits",
    defaults=LossOptions(temperature=1.0, inter_class_weight=1.0, intra_class_weight=1.0),
    reads=("temperature", "inter_class_weight", "intra_class_weight"),
    per_row=False,
)
