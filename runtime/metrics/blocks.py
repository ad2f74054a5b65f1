"""Rows of outputs and labels a block at a time: both may lie on disk, mapped, and be larger than the memory.

Shape letters: ``n`` rows, ``m`` chosen rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import DataError
from monograph.runtime.results import Interval, Score

Array = npt.NDArray[Any]
_BLOCK_BYTES = 1 << 23


@dataclass(frozen=True)
class Scored:
    """Outputs ``[n, …]`` beside the labels of the same rows, and which of the rows are meant."""

    outputs: Array
    labels: Array
    rows: Array | None = None
    """int64 ``[m]``; None means all."""
    groups: Array | None = None
    """int ``[n]``: rows of one number are ranked against each other."""
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels) if self.rows is None else len(self.rows)

    def blocks(self) -> Iterator[tuple[Array, Array, Array]]:
        """Yield outputs, labels and row numbers of some rows, read into memory.

        Raises:
            DataError: an output is not finite; the message names its row.
        """
        row_bytes = max(self.outputs.nbytes // max(len(self.outputs), 1), 1)
        size = max(_BLOCK_BYTES // row_bytes, 1)
        for start in range(0, len(self), size):
            rows = np.arange(start, min(start + size, len(self))) if self.rows is None else self.rows[start : start + size]
            # A slice is read without a copy of its numbers; of chosen rows only those are read.
            chosen = slice(start, start + size) if self.rows is None else rows
            outputs = np.asarray(self.outputs[chosen])
            finite = np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1)
            if not finite.all():
                raise DataError(
                    f"the model's output for row {int(rows[np.argmin(finite)])} is not finite: it has no accuracy on these rows"
                )
            yield outputs, np.asarray(self.labels[chosen]), rows

    def values(self) -> tuple[Array, Array]:
        """Return outputs and labels of the meant rows in memory: float64, and labels as they are.

        Raises:
            DataError: an output is not finite.
        """
        parts = [(outputs.astype(np.float64), labels) for outputs, labels, _ in self.blocks()]
        return np.concatenate([outputs for outputs, _ in parts]), np.concatenate([labels for _, labels in parts])

    def name(self, number: int) -> str:
        """Return the name of a class or label."""
        return self.class_names[number] if self.class_names is not None and number < len(self.class_names) else str(number)


def score_of(interval: Interval, note: str | None = None) -> Score:
    """Return a metric with its interval."""
    return Score(interval.estimate, interval.low, interval.high, interval.confidence, note)


def no_score(reason: str) -> Score:
    """Return a metric that these rows do not have."""
    return Score(None, note=reason)


def one_column(outputs: Array, what: str) -> Array:
    """Return ``[n]`` of outputs ``[n]`` or ``[n, 1]``.

    Raises:
        DataError: there are more columns.
    """
    flat = outputs.reshape(len(outputs), -1)
    if flat.shape[1] != 1:
        raise DataError(f"outputs have the shape {list(outputs.shape)}, expected [n] or [n, 1]: {what}")
    return np.asarray(flat[:, 0])
