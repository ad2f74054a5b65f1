"""How good outputs are for a task: one number a row, so that two models are compared on the same rows.

Shape letters: ``c`` width of the output, ``n`` rows.
"""

from __future__ import annotations

import numpy as np

from monograph.models.data.rows import Array, Rows
from monograph.models.torch_model import TorchModel
from monograph.pipelines.adapt.task import Task, TaskKind
from monograph.runtime.runner import run_all_rows

_SMALLEST_PROBABILITY = 1e-7


def quality_name(task: Task) -> str:
    """Return what :func:`row_quality` is the mean of."""
    return {
        TaskKind.CLASSIFICATION: "top-1",
        TaskKind.MULTI_LABEL: "share of labels that are right",
        TaskKind.CLICK: "log-likelihood in nats",
    }.get(task.kind, "negative squared error")


def row_quality(outputs: Array, labels: Array, task: Task) -> Array:
    """Return how good each row's output is, more is better: float64 ``[n]``.

    Classes: 1 where the best is right. Several labels: the share of them that 0.5 decides rightly. Clicks: the log-likelihood.
    Numbers: minus the squared error.

    Args:
        outputs: as they leave the model, scores as probabilities, ``[n, c]``.
        labels: as :func:`~monograph.pipelines.adapt.task.as_targets` gives them.
        task: of them.
    """
    if task.kind is TaskKind.CLASSIFICATION:
        return np.asarray(outputs.argmax(1) == labels, np.float64)
    given, wanted = outputs.reshape(len(labels), -1).astype(np.float64), labels.reshape(len(labels), -1)
    if task.kind is TaskKind.MULTI_LABEL:
        return np.asarray(((given > 0.5) == (wanted > 0.5)).mean(1))
    if task.kind is TaskKind.CLICK:
        probability = np.clip(given, _SMALLEST_PROBABILITY, 1 - _SMALLEST_PROBABILITY)
        return np.asarray((wanted * np.log(probability) + (1 - wanted) * np.log1p(-probability)).mean(1))
    return np.asarray(-((given - wanted) ** 2).mean(1))


def outputs_of(model: TorchModel, rows: Rows) -> Array:
    """Return what ``model`` gives for each row, float32 ``[n, c]``."""
    return run_all_rows(model, model.contract, rows)
