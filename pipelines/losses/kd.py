"""Knowledge distillation: the Kullback-Leibler divergence between tempered probabilities.

Shape letters: ``b`` batch, ``c`` classes.
"""

from __future__ import annotations

from torch import Tensor, where
from torch.nn.functional import log_softmax

from monograph.pipelines.losses.checks import check_temperature, checked_pair
from monograph.pipelines.losses.loss import DistillationLoss, LossOptions

_NAME = "kd"


def divergence(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    """Return ``KL(p || q) = sum_i p_i (log p_i - log q_i)`` of each row: log-probabilities ``[b x c]`` to ``[b]``, in nats.

    A class to which the teacher gives nothing, not even as a logarithm (-inf), adds 0.
    """
    teacher = log_teacher.exp()
    # The difference of logarithms is exactly 0 for equal rows, which the difference of two sums is not.
    return where(teacher > 0, teacher * (log_teacher - log_student), 0.0).sum(1)


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``T^2 KL(softmax(z_t / T) || softmax(z_s / T))`` of each row.

    The factor keeps the size of the gradient, which else falls as ``1 / T^2``. For a large T the gradient of a row tends to
    ``(z_s - z_t) / c`` with both logits centred. Beware of ``nn.KLDivLoss()``: its default reduction divides by ``b * c``
    and not by ``b``, and the factor is left to the caller.

    Args:
        student: logits ``[b x c]``.
        teacher: logits ``[b x c]``.
        temperature: T, above 0.

    Returns:
        ``[b]``, in nats times ``T^2``.

    Raises:
        ConfigError: a temperature that is not above 0.
        ContractError: shapes that differ.

    Source: Hinton et al. 2015, arXiv 1503.02531, sections 2 and 2.1.
    """
    check_temperature(_NAME, temperature)
    student, teacher = checked_pair(_NAME, student, teacher, 2)
    return temperature**2 * divergence(log_softmax(student / temperature, 1), log_softmax(teacher / temperature, 1))


def _compute(student: Tensor, teacher: Tensor, labels: Tensor | None, options: LossOptions) -> Tensor:
    return kd(student, teacher, options.temperature)


KD = DistillationLoss(
    name=_NAME,
    title="Knowledge distillation",
    source="arXiv 1503.02531",
    compute=_compute,
    takes="logits",
    defaults=LossOptions(temperature=4.0),
    reads=("temperature",),
)
