"""Augmented views of pictures, drawn by seed, view and row: whoever asks for a view of a row gets the same one.

So a teacher sees exactly what its student sees, whatever the order of the rows, and what it gave for a view can be kept. A view
is drawn in shares of the picture's size and fills with what the picture holds, so it is the same one for models that take other
sizes, and it commutes with the scale and shift of each channel by which their preprocessing differs.

Source: Beyer et al. 2022, arXiv 2106.05237: a consistent teacher, which sees the student's own views.

Shape letters: ``b`` batch, ``k`` channels, ``h`` height, ``w`` width, ``n`` rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from monograph.errors import ConfigError, ContractError
from monograph.models.contract import Contract, ImagePreprocessing

_SHIFT_SHARE = 0.08
_SMALLEST_CROP_SHARE = 0.7
_ERASED_SIDE_SHARE = (0.15, 0.5)
_ROWS_A_BLOCK = 4096
_DRAWS = 5


@dataclass(frozen=True)
class Augmentation:
    """What is done to each picture before it is learned from."""

    operations: tuple[str, ...]
    """Of ``OPERATIONS``, one after another."""
    views: int = 0
    """Views of each row, taken in turn by the epochs; 0: a new one each epoch."""
    seed: int = 0
    """Of the views alone, so that other trainings see the same ones."""

    def __post_init__(self) -> None:
        for name in self.operations:
            if name not in OPERATIONS:
                raise ConfigError(f"unknown augmentation {name!r}: choose from {', '.join(OPERATIONS)}")
        if not self.operations or len(set(self.operations)) < len(self.operations):
            raise ConfigError(f"augmentations {', '.join(self.operations) or 'none'}: give one or more, each once")
        if self.views < 0:
            raise ConfigError(f"{self.views} views of each row: give 1 or more, or 0 for a new one each epoch")

    def view_of(self, epoch: int) -> int:
        """Return which view the epoch of this number takes."""
        return epoch % self.views if self.views else epoch

    def apply(self, inputs: Sequence[Tensor], rows: Tensor, view: int) -> tuple[Tensor, ...]:
        """Return this view of pictures, float ``[b x k x h x w]``; other inputs stay as they are.

        Args:
            inputs: of a model, each with ``b`` rows.
            rows: int64 ``[b]``, their numbers.
            view: its number.
        """
        numbers = rows.cpu().numpy()
        # A power of two, so that few tables are made, whichever row of a batch comes last.
        blocks = 1 << (int(numbers.max()) // _ROWS_A_BLOCK).bit_length()
        drawn = {
            name: torch.from_numpy(_table(self.seed, view, place, blocks)[numbers]) for place, name in enumerate(self.operations)
        }
        return tuple(self._view(each, drawn) if _is_picture(each) else each for each in inputs)

    def _view(self, pictures: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        for name in self.operations:
            pictures = OPERATIONS[name](pictures, drawn[name].to(pictures.device))
        return pictures


def check_augmentable(contract: Contract, name: str) -> None:
    """Refuse a model that takes no pictures which could be augmented.

    Raises:
        ContractError: none of its inputs is one.
    """
    for spec in contract.inputs:
        channels_last = isinstance(spec.preprocessing, ImagePreprocessing) and spec.preprocessing.layout != "NCHW"
        if len(spec.shape) == 4 and spec.dtype.startswith("float") and not channels_last:
            return
    taken = "; ".join(spec.describe() for spec in contract.inputs)
    raise ContractError(f"{name} takes {taken}, and only pictures, float [b x k x h x w], can be augmented: leave it out")


def _is_picture(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_floating_point()


@lru_cache(maxsize=8)
def _table(seed: int, view: int, operation: int, blocks: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return numbers from 0 to 1 for rows in order, ``[n x draws]``: those of a row do not depend on how many follow it."""
    drawn = [
        np.random.default_rng([seed, view, operation, block]).random((_ROWS_A_BLOCK, _DRAWS), np.float32)
        for block in range(blocks)
    ]
    return np.concatenate(drawn)


def _flip(pictures: Tensor, drawn: Tensor) -> Tensor:
    """Mirror half of them, left and right."""
    return torch.where((drawn[:, 0] < 0.5)[:, None, None, None], pictures.flip(-1), pictures)


def _shift(pictures: Tensor, drawn: Tensor) -> Tensor:
    """Move by whole pixels, up to 8% of the size; what is uncovered repeats the border."""
    for axis, moved in ((2, drawn[:, 0]), (3, drawn[:, 1])):
        size = pictures.shape[axis]
        offset = ((2 * moved - 1) * _SHIFT_SHARE * size).round().long()  # [b]
        source = (torch.arange(size, device=pictures.device) + offset[:, None]).clamp(0, size - 1)  # [b x size]
        shape = [len(pictures), 1, 1, 1]
        shape[axis] = size
        pictures = pictures.gather(axis, source.reshape(shape).expand_as(pictures))
    return pictures


def _crop(pictures: Tensor, drawn: Tensor) -> Tensor:
    """Cut out at least 70% of each side, at any place, and stretch it to the whole by bilinear interpolation."""
    scale = _SMALLEST_CROP_SHARE + (1 - _SMALLEST_CROP_SHARE) * drawn[:, :2]  # [b x 2], width then height
    centre = (2 * drawn[:, 2:4] - 1) * (1 - scale)
    affine = torch.zeros(len(pictures), 2, 3, device=pictures.device)
    affine[:, 0, 0], affine[:, 1, 1], affine[:, :, 2] = scale[:, 0], scale[:, 1], centre
    grid = affine_grid(affine, list(pictures.shape), align_corners=False)
    return grid_sample(pictures, grid.to(pictures.dtype), padding_mode="border", align_corners=False)


def _erase(pictures: Tensor, drawn: Tensor) -> Tensor:
    """Fill a rectangle in half of them with the mean of each channel (Zhong et al. 2020, arXiv 1708.04896)."""
    least, most = _ERASED_SIDE_SHARE
    erased = (drawn[:, 0] < 0.5)[:, None, None, None]
    for axis, (side, place) in ((2, (drawn[:, 1], drawn[:, 3])), (3, (drawn[:, 2], drawn[:, 4]))):
        share = least + (most - least) * side  # [b]
        start = (place * (1 - share))[:, None]
        at = (torch.arange(pictures.shape[axis], device=pictures.device) + 0.5) / pictures.shape[axis]
        inside = (at >= start) & (at < start + share[:, None])  # [b x size]
        shape = [len(pictures), 1, 1, 1]
        shape[axis] = pictures.shape[axis]
        erased = erased & inside.reshape(shape)
    return torch.where(erased, pictures.mean((2, 3), keepdim=True), pictures)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"flip": _flip, "shift": _shift, "crop": _crop, "erase": _erase}
"""From pictures and numbers drawn for each of them, from 0 to 1 ``[b x 5]``, to pictures of the same shape."""
