"""What both models answered, brought to one numbering of classes.

Shape letters: ``n`` rows, ``c`` classes.
"""

from __future__ import annotations

import numpy as np

from monograph.errors import ConfigError, DataError, MonographError
from monograph.models.contract import Contract
from monograph.models.data.rows import Array
from monograph.models.data.stream import RowStream
from monograph.runtime.metrics import as_probabilities
from monograph.runtime.metrics.paired import Answers, answers_of


def class_numbering(candidate: Contract, reference: Contract) -> Array | None:
    """Return the reference's number of each of the candidate's classes ``[c]``; None where they are numbered alike.

    Raises:
        ConfigError: the two know different classes.
    """
    own, other = candidate.class_names, reference.class_names
    counts = candidate.class_count, reference.class_count
    if None not in counts and counts[0] != counts[1]:
        raise ConfigError(
            f"the candidate has {counts[0]} classes and the reference {counts[1]}: a gate compares models of the same ones"
        )
    if own is None or other is None or own == other:
        return None
    if strangers := sorted(set(own) ^ set(other)):
        raise ConfigError(
            f"only one of the two models knows the class {strangers[0]!r}: a gate compares models of the same classes"
        )
    return np.array([other.index(name) for name in own])


def check_alike(candidate: RowStream, reference: RowStream, numbering: Array | None) -> None:
    """Refuse rows that the two models read differently.

    Raises:
        DataError: their number or their labels differ.
    """
    assert candidate.labels is not None
    assert reference.labels is not None
    own = np.asarray(candidate.labels)
    if numbering is not None:
        own = numbering[own]
    if not np.array_equal(own, np.asarray(reference.labels)):
        raise DataError(
            f"{reference.table.origin}: the two models number the labels differently: give both contracts the same class names "
            "(monograph export MODEL.onnx --classes …)"
        )


def finite_outputs(outputs: Array, whose: str) -> Array:
    """Return outputs ``[n, …]`` in memory.

    Raises:
        MonographError: one is not finite.
    """
    values = np.asarray(outputs)
    finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if not finite.all():
        raise MonographError(f"{whose} gives no finite output for row {int(np.argmin(finite))}: it cannot ship")
    return values


def classifier_answers(outputs: Array, rows: RowStream, contract: Contract, numbering: Array | None = None) -> Answers:
    """Return what outputs ``[n, c]`` are to the labels.

    Raises:
        DataError: labels are no class numbers, or outputs no classes.
    """
    labels = np.asarray(rows.labels)
    if outputs.ndim != 2 or labels.ndim != 1:
        raise DataError(
            f"{rows.table.origin}: outputs are {list(outputs.shape)} and labels {list(labels.shape)}, expected [n, c] and [n]: "
            "one class a row"
        )
    return answers_of(as_probabilities(outputs, contract.kind), labels, numbering)
