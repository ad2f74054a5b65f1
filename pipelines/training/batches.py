"""Rows as batches of tensors, each row with its number: what was computed for a row beforehand is found by that.

Shape letters: ``b`` batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

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
    view: int = 0
    """Which augmented view of the rows the inputs are; 0 where they are as they came."""

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
                yield Batch(tuple(inputs), labels, rows, self.view)


class RowTensors(Dataset[tuple[Tensor, ...]]):
    """Rows with their numbers, read a batch at a time: inputs in the contract's order, labels, row numbers."""

    def __init__(self, *tensors: Tensor) -> None:
        """Take tensors of as many rows."""
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[-1])

    def __getitem__(self, row: int) -> tuple[Tensor, ...]:
        return tuple(tensor[row] for tensor in self.tensors)

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, ...]:
        """Return a batch, which a loader asks for where a dataset has this; row by row takes as long as a small network."""
        chosen = torch.tensor(rows)
        return tuple(tensor[chosen] for tensor in self.tensors)


def as_it_is(batch: Any) -> Any:
    """Collate nothing: what a loader was given is a batch already."""
    return batch


def dataset_of(model: TorchModel, rows: Rows) -> RowTensors:
    """Return the rows as ``model`` takes them."""
    inputs = [torch.from_numpy(np.ascontiguousarray(rows.inputs[spec.name])) for spec in model.contract.inputs]
    if rows.labels is None:
        labels = torch.full((len(rows),), UNLABELLED)
    elif model.contract.kind.has_classes:
        labels = torch.from_numpy(rows.labels.astype(np.int64))
    else:
        labels = torch.from_numpy(rows.labels.astype(np.float32))
    return RowTensors(*inputs, labels, torch.arange(len(rows)))
