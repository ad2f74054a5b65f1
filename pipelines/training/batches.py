"""Rows as batches of tensors, each row with its number: what was computed for a row beforehand is found by that.

Shape letters: ``b`` batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from monograph.models.data.rows import UNLABELLED, Rows
from monograph.models.torch_model import TorchModel


@dataclass(frozen=True)
class Batch:
    """Some rows, on the device that trains."""

    inputs: tuple[Tensor, ...]
    """One an input of the contract, in its order: ``[b, …]``."""
    labels: Tensor
    """int64 ``[b]``; ``UNLABELLED`` where a row has none. Targets, ``float32 [b, …]``, for a model without classes."""
    rows: Tensor
    """int64 ``[b]``: each row's number among all rows of the training."""

    def __len__(self) -> int:
        return len(self.rows)

    def chunks(self, count: int) -> Iterator[Batch]:
        """Yield ``count`` parts of nearly equal size, fewer where there are fewer rows."""
        parts = zip(
            zip(*(tensor.tensor_split(count) for tensor in self.inputs), strict=True),
            self.labels.tensor_split(count),
            self.rows.tensor_split(count),
            strict=True,
        )
        for inputs, labels, rows in parts:
            if len(rows):
                yield Batch(tuple(inputs), labels, rows)


def dataset_of(model: TorchModel, rows: Rows) -> TensorDataset:
    """Return the rows with their numbers: inputs in the contract's order, labels, row numbers."""
    inputs = [torch.from_numpy(np.ascontiguousarray(rows.inputs[spec.name])) for spec in model.contract.inputs]
    if rows.labels is None:
        labels = torch.full((len(rows),), UNLABELLED)
    elif model.contract.kind.has_classes:
        labels = torch.from_numpy(rows.labels.astype(np.int64))
    else:
        labels = torch.from_numpy(rows.labels.astype(np.float32))
    return TensorDataset(*inputs, labels, torch.arange(len(rows)))
