"""Several teachers made into one, so that every loss on logits takes them.

Shape letters: ``t`` teachers, ``b`` batch, ``c`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, softmax

from monograph.errors import ConfigError, ContractError
from monograph.models.data.rows import UNLABELLED
from monograph.pipelines.losses.checks import check_dimensions, check_temperature, checked_labels, in_single_precision

_NAME = "of several teachers"


def combine_teachers(teachers: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Return logits whose softmax at temperature T is the weighted mean of the teachers' probabilities at T.

    They are ``z = T log sum_t w_t softmax(z_t / T)``. Distil from them at the same T: as
    ``sum_t w_t KL(p_t || q) = KL(sum_t w_t p_t || q) + constant``, the gradient of `kd` is then the weighted mean of the
    gradients towards each teacher, for the cost of one.

    Args:
        teachers: logits ``[t x b x c]``.
        weights: ``[t]``, or ``[t x b]`` for weights of each row; they sum to 1 over teachers. See `fixed_weights` and
            `confidence_weights`.
        temperature: T, above 0.

    Returns:
        Logits ``[b x c]``, without a gradient.

    Raises:
        ConfigError: a temperature that is not above 0.
        ContractError: shapes that do not fit.
    """
    check_temperature(_NAME, temperature)
    check_dimensions(_NAME, teachers, 3)
    if weights.shape not in (teachers.shape[:1], teachers.shape[:2]):
        raise ContractError(
            f"weights of shape {list(weights.shape)} do not fit teachers of shape {list(teachers.shape)}: "
            "give one for each teacher, [t], or one for each teacher and row, [t x b]"
        )
    log_probabilities = log_softmax(in_single_precision(teachers.detach()) / temperature, 2)  # [t x b x c]
    log_weights = weights.detach().to(log_probabilities).log().reshape(len(teachers), -1, 1)  # [t x 1 or b x 1]
    return temperature * (log_weights + log_probabilities).logsumexp(0)


def fixed_weights(weights: Sequence[float]) -> Tensor:
    """Return one weight for each teacher, divided by their sum, ``[t]``; ``[1] * t`` gives equal weights.

    Raises:
        ConfigError: no weight, one below 0 or not finite, or none above 0.
    """
    if not weights or not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise ConfigError(f"the weights of the teachers are {list(weights)}, expected numbers from 0 up, one of them above 0")
    values = torch.tensor(list(weights), dtype=torch.float32)
    return values / values.sum()


def confidence_weights(teachers: Tensor, labels: Tensor | None) -> Tensor:
    """Return, for each row, more weight to the teachers that are right: ``w_t = (1 - softmax_t(ce_t)) / (t - 1)``.

    ce_t is the cross-entropy of teacher t against the label of the row, at temperature 1. No teacher gets more than
    ``1 / (t - 1)``, so that with two teachers the better one can get all and with many the weights are nearly equal.
    **A row without a label (-1), and every row where labels is None, gives equal weights 1 / t**: nothing tells who is right.

    Args:
        teachers: logits ``[t x b x c]``.
        labels: classes ``[b]``, or None.

    Returns:
        ``[t x b]``, summing to 1 over teachers.

    Raises:
        ContractError: shapes that do not fit, or labels outside the classes.

    Source: Zhang et al. 2022, arXiv 2201.00007.
    """
    check_dimensions(_NAME, teachers, 3)
    teachers = in_single_precision(teachers.detach())
    t, b, _ = teachers.shape
    equal = teachers.new_full((t, b), 1 / t)
    if labels is None or t == 1:
        return equal
    labels = checked_labels(_NAME, teachers[0], labels)
    losses = [cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="none") for logits in teachers]
    weights = (1 - softmax(torch.stack(losses), 0)) / (t - 1)
    return torch.where(labels == UNLABELLED, equal, weights)
