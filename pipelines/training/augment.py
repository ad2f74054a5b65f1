"""Augmented views of pictures and texts, drawn by seed, view and row: whoever asks for a view of a row gets the same one.

So a teacher sees exactly what its student sees, whatever the order of the rows, and what it gave for a view can be kept. A view
is drawn in shares of the picture's size and fills with what the picture holds, so it is the same one for models that take other
sizes, and it commutes with the scale and shift of each channel by which their preprocessing differs. A view of a text is the
same one for models that take the same tokens.

Source: Beyer et al. 2022, arXiv 2106.05237: a consistent teacher, which sees the student's own views.

Shape letters: ``b`` batch, ``k`` channels, ``h`` height, ``w`` width, ``s`` sequence, ``n`` rows.
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
from monograph.models.contract import Contract, ImagePreprocessing, TensorSpec

_SHIFT_SHARE = 0.08
_SMALLEST_CROP_SHARE = 0.7
_ERASED_SIDE_SHARE = (0.15, 0.5)
_DROPPED_SHARE = 0.15
_ROWS_A_BLOCK = 4096
_DRAWS = 5


@dataclass(frozen=True)
class Augmentation:
    """What is done to each picture or text before it is learned from."""

    operations: tuple[str, ...]
    """Of ``OPERATIONS`` and ``TEXT_OPERATIONS``, one after another, each on the inputs that it is for."""
    views: int = 0
    """Views of each row, taken in turn by the epochs; 0: a new one each epoch."""
    seed: int = 0
    """Of the views alone, so that other trainings see the same ones."""

    def __post_init__(self) -> None:
        for name in self.operations:
            if name not in OPERATIONS | TEXT_OPERATIONS:
                known = ", ".join(OPERATIONS | TEXT_OPERATIONS)
                raise ConfigError(f"unknown augmentation {name!r}: choose from {known}")
        if not self.operations or len(set(self.operations)) < len(self.operations):
            raise ConfigError(f"augmentations {', '.join(self.operations) or 'none'}: give one or more, each once")
        if self.views < 0:
            raise ConfigError(f"{self.views} views of each row: give 1 or more, or 0 for a new one each epoch")

    def view_of(self, epoch: int) -> int:
        """Return which view the epoch of this number takes."""
        return epoch % self.views if self.views else epoch

    def apply(self, inputs: Sequence[Tensor], rows: Tensor, view: int) -> tuple[Tensor, ...]:
        """Return this view of pictures, float ``[b x k x h x w]``, and of texts; other inputs stay as they are.

        All integers ``[b x s]`` are of one text: its token ids, and what is said of each token.

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
        return tuple(self._view(each, drawn) for each in inputs)

    def _view(self, rows: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        known = OPERATIONS if _is_picture(rows) else TEXT_OPERATIONS if _is_text(rows) else {}
        for name in self.operations:
            if name in known:
                rows = known[name](rows, drawn[name].to(rows.device))
        return rows


def check_augmentable(contract: Contract, name: str, operations: Sequence[str]) -> None:
    """Refuse a model that takes nothing which one of ``operations`` could be done to.

    Raises:
        ContractError: it takes no pictures, or no texts, which that one is for.
    """
    taken = "; ".join(spec.describe() for spec in contract.inputs)
    for operation in operations:
        if operation in OPERATIONS and not any(map(_takes_pictures, contract.inputs)):
            raise ContractError(
                f"{name} takes {taken}, and only pictures, float [b x k x h x w], can be augmented by {operation}: leave it out"
            )
        if operation in TEXT_OPERATIONS and not any(map(_takes_text, contract.inputs)):
            raise ContractError(
                f"{name} takes {taken}, and only texts, int64 [b x s], can be augmented by {operation}: leave it out"
            )


def _takes_pictures(spec: TensorSpec) -> bool:
    channels_last = isinstance(spec.preprocessing, ImagePreprocessing) and spec.preprocessing.layout != "NCHW"
    return len(spec.shape) == 4 and spec.dtype.startswith("float") and not channels_last


def _takes_text(spec: TensorSpec) -> bool:
    return len(spec.shape) == 2 and spec.dtype.startswith("int")


def _is_picture(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_floating_point()


def _is_text(tensor: Tensor) -> bool:
    return tensor.dim() == 2 and not tensor.is_floating_point()


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


def _drop(tokens: Tensor, drawn: Tensor) -> Tensor:
    """Leave out 15% of a text's tokens, never the first, and close the gaps (Wei and Zou 2019, arXiv 1901.11196: deletion).

    What is free at the end repeats the last place, which is padding unless the text fills the whole width.
    """
    places = torch.arange(tokens.shape[1], device=tokens.device)  # [s]
    dropped = (_mixed(drawn[:, :1], places) < _DROPPED_SHARE) & (places > 0)  # [b x s]
    kept_first = dropped.long().argsort(dim=1, stable=True)
    source = torch.where(places < (~dropped).sum(1, keepdim=True), kept_first, tokens.shape[1] - 1)
    return tokens.gather(1, source)


def _mixed(drawn: Tensor, places: Tensor) -> Tensor:
    """Return numbers from 0 to 1 for each place of each row, ``[b x s]``: however long a text is, a place gets the same one.

    ``drawn`` ``[b x 1]`` and ``places`` int64 ``[s]`` are hashed, by ``lowbias32`` of
    https://github.com/skeeto/hash-prospector/blob/005ae4119cb2d3508a186c09fdab281087ece3be/README.md
    """
    bits = 0xFFFFFFFF
    mixed = ((drawn * 2**24).long() + places * 0x9E3779B9) & bits  # float32 holds 24 bits
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        mixed = ((mixed ^ (mixed >> shift)) * factor) & bits
    return (mixed ^ (mixed >> 16)).double() / 2**32


TEXT_OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"drop": _drop}
"""From one input of texts, integers ``[b x s]``, and the same numbers to one of the same shape; all inputs of a text alike."""
