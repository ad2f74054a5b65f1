"""The cosine distance between embeddings.

Shape letters: ``b`` batch, ``d`` width of an embedding.
"""

from __future__ import annotations

from torch import Tensor
from torch.linalg import vector_norm

from monograph.pipelines.losses.checks import checked_pair, unit
from monograph.pipelines.losses.loss import DistillationLoss, LossOptions

_NAME = "cosine"


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return ``1 - cos(student, teacher)`` of each row: embeddings ``[b x d]`` of both to ``[b]``, from 0 to 2.

    An embedding of zeros has no direction: it gives 1, without a gradient.

    Raises:
        ContractError: shapes that differ.

    Source: Sanh et al. 2019, arXiv 1910.01108.
    """
    student, teacher = checked_pair(_NAME, student, teacher, 2)
    directions = [unit(side, vector_norm(side, dim=-1, keepdim=True))[0] for side in (student, teacher)]
    return 1 - (directions[0] * directions[1]).sum(1)


def _compute(student: Tensor, teacher: Tensor, labels: Tensor | None, options: LossOptions) -> Tensor:
    return cosine_distance(student, teacher)


COSINE = DistillationLoss(
    name=_NAME,
    title="Cosine distance between embeddings",
    source="arXiv 1910.01108",
    compute=_compute,
    takes="embeddings",
    defaults=LossOptions(),
)
