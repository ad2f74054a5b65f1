"""Logit standardisation: distillation of the order and the spacing of logits, and not of their size.

Shape letters: ``b`` batch, ``c`` classes.
"""

from __future__ import annotations

import math

from torch import Tensor

from monograph.pipelines.losses.checks import centred_unit, check_temperature, checked_pair
from monograph.pipelines.losses.kd import kd
from monograph.pipelines.losses.loss import DistillationLoss, LossOptions

_NAME = "standardised-kd"


def standardised(logits: Tensor) -> Tensor:
    """Return the z-scores of each row, ``(z - mean) / deviation``: ``[b x c]`` to ``[b x c]``.

    The deviation divides by c; the authors' code divides by c - 1, which is another base
    temperature by a factor of sqrt(c / (c - 1)). Nothing is added to it, so that ``a z + d`` with a above 0 gives the same
    scores for every a. A row of equal logits gives zeros, without a gradient.

    Source: Sun et al. 2024, arXiv 2403.01427.
    """
    directions, _ = centred_unit(logits)
    return math.sqrt(logits.shape[1]) * directions


def standardised_kd(student: Tensor, teacher: Tensor, base_temperature: float) -> Tensor:
    """Return `kd` of the z-scores of both logits, at the base temperature.

    Args:
        student: logits ``[b x c]``.
        teacher: logits ``[b x c]``.
        base_temperature: T, above 0.

    Returns:
        ``[b]``, in nats times ``T^2``.

    Raises:
        ConfigError: a temperature that is not above 0.
        ContractError: shapes that differ.

    Source: Sun et al. 2024, arXiv 2403.01427. The authors run it with a base temperature of 2 and a weight of 9,
    https://github.com/sunshangquan/logit-standardization-KD/blob/07356adf21b260f472a6b8af33945048ac579bbb/README.md
    """
    check_temperature(_NAME, base_temperature)
    student, teacher = checked_pair(_NAME, student, teacher, 2)
    return kd(standardised(student), standardised(teacher), base_temperature)


def _compute(student: Tensor, teacher: Tensor, labels: Tensor | None, options: LossOptions) -> Tensor:
    return standardised_kd(student, teacher, options.temperature)


STANDARDISED_KD = DistillationLoss(
    name=_NAME,
    title="Knowledge distillation of standardised logits",
    source="arXiv 2403.01427",
    compute=_compute,
    takes="logits",
    defaults=LossOptions(temperature=2.0),
    reads=("temperature",),
)
