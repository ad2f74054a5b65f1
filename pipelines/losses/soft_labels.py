"""Cross-entropy on soft labels.

Shape letters: ``b`` batch, ``c`` classes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from monograph.errors import ContractError
from monograph.pipelines.losses.checks import check_temperature, checked_pair
from monograph.pipelines.losses.loss import DistillationLoss, LossOptions

_NAME = "soft-labels"
_SUM_TOLERANCE = 1e-2
"""How far the probabilities of a row may sum from 1; half precision and a thousand classes stay inside."""


def soft_cross_entropy(student: Tensor, soft_labels: Tensor) -> Tensor:
    """Return ``-sum_i y_i log p_i`` of each row, with p the softmax of the student's logits.

    Args:
        student: logits ``[b x c]``.
        soft_labels: probabilities ``[b x c]``; one-hot rows give the usual cross-entropy.

    Returns:
        ``[b]``, in nats.

    Raises:
        ContractError: shapes that differ, or rows that are no probabilities.

    Source: Szegedy et al. 2015, arXiv 1512.00567, section 7, for labels that are smoothed.
    """
    student, soft_labels = checked_pair(_NAME, student, soft_labels, 2)
    sums = soft_labels.sum(1)
    wrong = (soft_labels < 0).any(1) | ~((sums - 1).abs() <= _SUM_TOLERANCE)
    if bool(wrong.any()):
        raise ContractError(
            f"soft labels must be probabilities, and a row of them sums to {float(sums[wrong][0]):g} with the lowest at "
            f"{float(soft_labels[wrong][0].min()):g}: pass logits through a softmax first"
        )
    return -(soft_labels * log_softmax(student, 1)).sum(1)


def tempered_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``T^2`` times the cross-entropy of the student under the teacher's probabilities, both at temperature T.

    Logits ``[b x c]`` of both to ``[b]``, in nats. It is `kd` plus ``T^2`` times the teacher's entropy, so that its gradient
    is that of `kd` and its lowest value is not 0.

    Raises:
        ConfigError: a temperature that is not above 0.
        ContractError: shapes that differ.

    Source: Hinton et al. 2015, arXiv 1503.02531, section 2.
    """
    check_temperature(_NAME, temperature)
    student, teacher = checked_pair(_NAME, student, teacher, 2)
    return -(temperature**2) * (softmax(teacher / temperature, 1) * log_softmax(student / temperature, 1)).sum(1)


def _compute(student: Tensor, teacher: Tensor, labels: Tensor | None, options: LossOptions) -> Tensor:
    return tempered_cross_entropy(student, teacher, options.temperature)


SOFT_LABELS = DistillationLoss(
    name=_NAME,
    title="Cross-entropy on the teacher's probabilities",
    source="arXiv 1503.02531",
    compute=_compute,
    takes="logits",
    defaults=LossOptions(temperature=1.0),
    reads=("temperature",),
)
