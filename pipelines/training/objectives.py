"""What is minimised where nothing else is asked for: by the kind of what a model gives, and how far labels count.

Shape letters: ``b`` batch, ``c`` classes, ``n`` rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from monograph.errors import DataError
from monograph.models.contract import Kind
from monograph.models.data.rows import UNLABELLED, Array
from monograph.pipelines.training.batches import Batch

Objective = Callable[[list[Tensor], Batch], Tensor]
"""From the module's outputs for a batch to the loss of each of its rows, ``[b]``.

One that is a module is trained along with the model: its weights go to the optimizer and into checkpoints.
"""


def own_objective(kind: Kind, label_smoothing: float = 0.0, class_weights: Array | None = None) -> Objective:
    """Return the loss that fits what a model gives, of each row.

    Classes: cross-entropy, with labels smoothed (Szegedy et al. 2016, arXiv 1512.00567) and rows weighted by their class where
    that is asked for. Scores: binary cross-entropy of their sigmoid, the mean over a row's labels. Numbers: squared error.

    Args:
        kind: of the output.
        label_smoothing: the share of a label that all classes get alike.
        class_weights: float ``[c]``, of the classes.
    """
    weights = None if class_weights is None else torch.from_numpy(np.asarray(class_weights, np.float32))

    def classes(outputs: list[Tensor], batch: Batch) -> Tensor:
        labels = batch.labels
        loss = cross_entropy(outputs[0], labels, label_smoothing=label_smoothing, ignore_index=UNLABELLED, reduction="none")
        return loss if weights is None else loss * weights.to(loss.device)[labels.clamp(min=0)]

    def scores(outputs: list[Tensor], batch: Batch) -> Tensor:
        loss = binary_cross_entropy_with_logits(outputs[0].reshape(batch.labels.shape), batch.labels, reduction="none")
        return loss.reshape(len(batch), -1).mean(1)

    def numbers(outputs: list[Tensor], batch: Batch) -> Tensor:
        error: Tensor = (outputs[0].reshape(batch.labels.shape) - batch.labels) ** 2
        return error.reshape(len(batch), -1).mean(1)

    if kind.has_classes:
        return classes
    return scores if kind is Kind.SCORES else numbers


def validation_loss(kind: Kind, outputs: Tensor, labels: Tensor) -> float:
    """Return the mean loss over rows by which epochs are compared: that of :func:`own_objective`, nothing smoothed or weighted.

    Scores of labels that are not from 0 to 1, as ratings are, are compared by their squared error.
    """
    if kind.has_classes:
        return float(cross_entropy(outputs, labels))
    given = outputs.reshape(labels.shape)
    if kind is Kind.SCORES and bool(((labels >= 0) & (labels <= 1)).all()):
        return float(binary_cross_entropy_with_logits(given, labels))
    return float(mse_loss(given, labels))


def check_score_labels(labels: Array, origin: str) -> None:
    """Refuse labels that no score can be the logit of.

    Raises:
        DataError: a label is below 0 or above 1.
    """
    outside = labels[(labels < 0) | (labels > 1)]
    if outside.size:
        raise DataError(
            f"{origin}: a label is {outside.flat[0]:g}, and scores are learned from labels of 0 and 1 (or shares between): "
            "for ratings take a model of the kind regression"
        )
