"""Relational knowledge distillation: distances and angles between the rows of a batch.

Shape letters: ``b`` batch, ``d`` width of the student's embedding, ``e`` of the teacher's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import smooth_l1_loss

from monograph.errors import ContractError
from monograph.pipelines.losses.checks import check_dimensions, in_single_precision, unit
from monograph.pipelines.losses.loss import DistillationLoss, LossOptions

_NAME = "rkd"


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return, for each row i, the mean over all rows j of ``huber(|s_i - s_j| / m_s, |t_i - t_j| / m_t)``.

    m is the mean of the distances above 0 in the batch. huber is ``x^2 / 2`` up to 1 and ``|x| - 1/2`` beyond. The mean over
    rows is the loss of the batch.

    Args:
        student: embeddings ``[b x d]``.
        teacher: embeddings ``[b x e]``; its width may be another.

    Returns:
        ``[b]``, without a unit.

    Raises:
        ContractError: another number of rows, or no embeddings.

    Source: Park et al. 2019, arXiv 1904.05068. The mean over pairs takes in those of a row with itself, as
    the authors' code does, https://github.com/lenscloth/RKD.
    """
    student, teacher = _checked_embeddings(student, teacher)
    return smooth_l1_loss(_relative_distances(student), _relative_distances(teacher), reduction="none").mean(1)


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return, for each row j, the mean over all rows i and k of ``huber(cos of the angle i-j-k)``, student against teacher.

    Where rows coincide there is no angle, and its cosine is taken as 0. It holds ``b^3`` cosines: 64 MB for 256 rows.

    Args:
        student: embeddings ``[b x d]``.
        teacher: embeddings ``[b x e]``; its width may be another.

    Returns:
        ``[b]``, without a unit.

    Raises:
        ContractError: another number of rows, or no embeddings.

    Source: Park et al. 2019, arXiv 1904.05068; the mean is over all triples, as in the authors' code.
    """
    student, teacher = _checked_embeddings(student, teacher)
    return smooth_l1_loss(_cosines(student), _cosines(teacher), reduction="none").mean((1, 2))


def _relative_distances(embeddings: Tensor) -> Tensor:
    """``[b x d]`` to the distances over their mean, ``[b x b]``."""
    # By products of matrices, the distance between equal rows would not be exactly 0.
    distances = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (distances > 0).sum().clamp_min(1)
    return distances / torch.where(mean > 0, mean, 1.0)


def _cosines(embeddings: Tensor) -> Tensor:
    """``[b x d]`` to the cosine at vertex j of the angle between i and k, ``[b (j) x b (i) x b (k)]``."""
    norms = vector_norm(embeddings, dim=-1, keepdim=True)  # [b x 1]
    sizes = torch.maximum(norms[:, None], norms[None])  # [b x b x 1]
    directions, _ = unit(embeddings[None] - embeddings[:, None], sizes)  # [b (j) x b (i) x d]
    # Autocast would take the product in half precision, in which a cosine has three digits.
    with torch.autocast(embeddings.device.type, enabled=False):
        return directions @ directions.mT


def _checked_embeddings(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    for embeddings in (student, teacher):
        check_dimensions(_NAME, embeddings, 2)
    if len(student) != len(teacher):
        raise ContractError(
            f"the loss {_NAME} got {len(student)} rows of the student and {len(teacher)} of the teacher: give both the same rows"
        )
    return in_single_precision(student), in_single_precision(teacher.detach())


def _compute(student: Tensor, teacher: Tensor, labels: Tensor | None, options: LossOptions) -> Tensor:
    return options.distance_weight * distance_loss(student, teacher) + options.angle_weight * angle_loss(student, teacher)


RKD = DistillationLoss(
    name=_NAME,
    title="Relational knowledge distillation",
    source="arXiv 1904.05068",
    compute=_compute,
    takes="embeddings",
    defaults=LossOptions(distance_weight=25.0, angle_weight=50.0),
    reads=("distance_weight", "angle_weight"),
    per_row=False,
)
