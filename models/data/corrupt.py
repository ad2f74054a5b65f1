"""Rows as a bad day gives them: noise, blur and lost contrast for pictures, typing errors for text, missing fields for tables.

What is corrupted is the raw row, before any model's preprocessing, so that several models are given the same bad row; a row's
damage depends on the seed and on its number alone, not on how many rows are read at a time.

Shape letters: ``n`` rows, ``h`` height, ``w`` width, ``c`` channels, ``k`` fields.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import overload

import numpy as np
from PIL import Image

from monograph.errors import DataError
from monograph.models.contract import ImagePreprocessing, TensorSpec, TextPreprocessing
from monograph.models.data.pictures import EncodedPictures
from monograph.models.data.preprocess import Values
from monograph.models.data.rows import Array
from monograph.models.data.stream import RowStream
from monograph.models.data.tables import Column, ColumnKind

_RANGE_ROWS = 256
_SMALLEST_SIDE = 32
"""Pixels; smaller pictures are blurred as if they had as many."""
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Material(StrEnum):
    """What a corruption is for."""

    PICTURES = "pictures"
    TEXT = "text"
    TABLE = "tables"


@dataclass(frozen=True)
class Corruption:
    """One way in which rows go bad, at five strengths."""

    material: Material
    strengths: tuple[float, float, float, float, float]
    unit: str
    """What the strength is."""


CORRUPTIONS = {
    # Of pictures as in CIFAR-10-C (Hendrycks and Dietterich 2019, arXiv 1903.12261), blur by the picture's size.
    "noise": Corruption(Material.PICTURES, (0.04, 0.06, 0.08, 0.12, 0.18), "standard deviation, of the range of the pixels"),
    "blur": Corruption(Material.PICTURES, (0.0125, 0.02, 0.025, 0.035, 0.05), "Gaussian radius, of the shorter side"),
    "contrast": Corruption(Material.PICTURES, (0.75, 0.5, 0.4, 0.3, 0.15), "contrast that is left"),
    "typos": Corruption(Material.TEXT, (0.01, 0.02, 0.04, 0.06, 0.1), "share of characters"),
    "missing": Corruption(Material.TABLE, (0.05, 0.1, 0.2, 0.3, 0.5), "share of fields, the column's median in their place"),
}


def fitting_corruptions(stream: RowStream) -> list[str]:
    """Return the names of the corruptions that the rows of ``stream`` can suffer."""
    materials = {_material(spec) for spec in stream.contract.inputs if _can_be_corrupted(stream, spec)}
    return [name for name, corruption in CORRUPTIONS.items() if corruption.material in materials]


def corrupted(stream: RowStream, name: str, severity: int, seed: int = 0) -> RowStream:
    """Return ``stream`` with rows corrupted as they are read.

    Args:
        stream: the rows; their labels, slices and groups stay.
        name: in ``CORRUPTIONS``.
        severity: 1 to 5.
        seed: the same one gives the same rows.

    Raises:
        DataError: no input of these rows can suffer it.
    """
    corruption = CORRUPTIONS[name]
    inputs = [
        spec for spec in stream.contract.inputs if _material(spec) is corruption.material and _can_be_corrupted(stream, spec)
    ]
    if not inputs:
        raise DataError(f"{stream.table.origin}: {name!r} is for {corruption.material.value}, and these rows hold none")
    strength, key = corruption.strengths[severity - 1], (seed, zlib.crc32(name.encode()))
    columns = dict(stream.table.columns)
    for column in dict.fromkeys(column for spec in inputs for column in stream.plan.inputs[spec.name]):
        own_key = (*key, zlib.crc32(column.encode()))
        columns[column] = _MAKERS[corruption.material](stream, columns[column], column, name, strength, own_key)
    return replace(stream, table=replace(stream.table, columns=columns))


def _material(spec: TensorSpec) -> Material | None:
    if isinstance(spec.preprocessing, TextPreprocessing):
        return Material.TEXT
    if isinstance(spec.preprocessing, ImagePreprocessing) or len(spec.shape) == 4:
        return Material.PICTURES
    return Material.TABLE if len(spec.shape) == 2 and np.dtype(spec.dtype).kind == "f" else None


def _can_be_corrupted(stream: RowStream, spec: TensorSpec) -> bool:
    """Token ids that stand in the place of a text have no letters to mistype."""
    kinds = {stream.table.columns[name].kind for name in stream.plan.inputs[spec.name]}
    return _material(spec) is not Material.TEXT or kinds == {ColumnKind.TEXT}


_Key = tuple[int, ...]


def _rng(key: _Key, row: int) -> np.random.Generator:
    return np.random.default_rng([*key, row])


class _EachChanged(Sequence[Image.Image]):
    """Pictures that are decoded and changed when they are asked for."""

    def __init__(self, pictures: Sequence[Image.Image], change: Callable[[Image.Image, int], Image.Image]) -> None:
        self._pictures, self._change = pictures, change

    def __len__(self) -> int:
        return len(self._pictures)

    @overload
    def __getitem__(self, row: int) -> Image.Image: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[Image.Image]: ...
    def __getitem__(self, row: int | slice) -> Image.Image | Sequence[Image.Image]:
        if isinstance(row, slice):
            return [self[index] for index in range(*row.indices(len(self)))]
        return self._change(self._pictures[row], row)


def _picture_column(stream: RowStream, column: Column, label: str, name: str, strength: float, key: _Key) -> Column:
    spoil = partial(_PICTURE_CHANGES[name], strength=strength)

    def read(start: int, stop: int) -> Values:
        values = column.read(start, stop)
        if isinstance(values, np.ndarray) and values.dtype.kind != "U":
            return _spoilt_arrays(values, low, high, spoil, key, start)
        if column.kind is ColumnKind.TEXT:  # paths of pictures
            values = EncodedPictures(
                len(values), values.__getitem__, f"{stream.table.origin}: column {label!r}", stream.table.folder
            )
        return _EachChanged(values, lambda picture, row: _spoilt_picture(picture, spoil, _rng(key, start + row)))  # type: ignore[arg-type]  # no strings are left here

    low, high = _pixel_range(column)
    return replace(column, kind=column.kind if column.kind is ColumnKind.ARRAY else ColumnKind.IMAGE, read=read)


def _pixel_range(column: Column) -> tuple[float, float]:
    """Return the least and the largest value of a pixel; of pixels that were scaled, those of the first rows."""
    if column.kind is not ColumnKind.ARRAY:
        return 0.0, 255.0
    first = np.asarray(column.read(0, min(_RANGE_ROWS, column.length)))
    return (float(first.min()), float(first.max())) if first.dtype.kind == "f" else (0.0, 255.0)


def _spoilt_arrays(values: Array, low: float, high: float, spoil: Callable[..., Array], key: _Key, start: int) -> Array:
    span = high - low or 1.0
    made = np.empty(values.shape, np.float64)
    for row, picture in enumerate(values):
        made[row] = spoil((picture.astype(np.float64) - low) / span, rng=_rng(key, start + row))
    made = np.clip(made, 0, 1) * span + low
    return (np.rint(made) if values.dtype.kind in "iu" else made).astype(values.dtype)


def _spoilt_picture(picture: Image.Image, spoil: Callable[..., Array], rng: np.random.Generator) -> Image.Image:
    plain = picture if picture.mode in ("L", "RGB") else picture.convert("RGB")
    made = spoil(np.asarray(plain, np.float64) / 255, rng=rng)
    return Image.fromarray(np.rint(np.clip(made, 0, 1) * 255).astype(np.uint8))


def _noise(picture: Array, strength: float, rng: np.random.Generator) -> Array:
    return np.asarray(picture + rng.normal(0, strength, picture.shape))


def _contrast(picture: Array, strength: float, rng: np.random.Generator) -> Array:
    mean = picture.mean()
    return np.asarray((picture - mean) * strength + mean)


def _blur(picture: Array, strength: float, rng: np.random.Generator) -> Array:
    from scipy.ndimage import gaussian_filter  # slow to import, and needed here only

    channels = None if picture.ndim == 2 else 0 if picture.shape[0] < picture.shape[-1] else picture.ndim - 1
    sides = [size for axis, size in enumerate(picture.shape) if axis != channels]
    radius = strength * max(min(sides), _SMALLEST_SIDE)  # a smaller one changes no pixel
    sigmas = [0.0 if axis == channels else radius for axis in range(picture.ndim)]
    return np.asarray(gaussian_filter(picture, sigmas))


_PICTURE_CHANGES = {"noise": _noise, "blur": _blur, "contrast": _contrast}


def _text_column(stream: RowStream, column: Column, label: str, name: str, strength: float, key: _Key) -> Column:
    def read(start: int, stop: int) -> Values:
        return [_mistyped(str(text), strength, _rng(key, start + row)) for row, text in enumerate(column.read(start, stop))]

    return replace(column, read=read)


def _mistyped(text: str, share: float, rng: np.random.Generator) -> str:
    """Swap a letter with the next, leave it out, double it or hit another key: at ``share`` of the characters, one at least."""
    letters = list(text)
    for place in sorted(rng.choice(len(letters), min(len(letters), max(1, round(share * len(letters)))), replace=False)):
        kind = int(rng.integers(4))
        if kind == 0 and place + 1 < len(letters):
            letters[place], letters[place + 1] = letters[place + 1], letters[place]
        elif kind == 1:
            letters[place] = ""
        elif kind == 2:
            letters[place] *= 2
        else:
            letters[place] = _LETTERS[int(rng.integers(len(_LETTERS)))]
    return "".join(letters)


def _field_column(stream: RowStream, column: Column, label: str, name: str, strength: float, key: _Key) -> Column:
    values = np.asarray(column.read(0, column.length))
    median = np.median(values, axis=0)

    def read(start: int, stop: int) -> Values:
        fields = np.asarray(column.read(start, stop))
        lost = np.stack([_rng(key, start + row).random(fields.shape[1:]) < strength for row in range(len(fields))])
        return np.where(lost, median, fields).astype(fields.dtype if fields.dtype.kind == "f" else np.float64)

    return replace(column, read=read)


_MAKERS = {Material.PICTURES: _picture_column, Material.TEXT: _text_column, Material.TABLE: _field_column}
