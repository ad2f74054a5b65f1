"""Rows: aligned arrays, ready for a model's inputs, with their labels. Needs numpy only.

Shape letters: ``n`` rows, ``k`` targets a row.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from monograph.errors import DataError

Array = npt.NDArray[Any]
UNLABELLED = -1
"""The label of a row that has none, among others that have one."""
_LABELS = "y"
_CLASS_NAMES = "class_names"
DIGESTS_KEY = "row digests"
"""With a space, as no input is called."""


@dataclass(frozen=True)
class Rows:
    """Aligned rows: one array ``[n, …]`` per model input, and labels where they are known.

    Labels are class numbers ``int64 [n]``; for a model without classes targets ``float64 [n]``, ``[n, k]`` or wider.
    """

    inputs: Mapping[str, Array]
    labels: Array | None = None
    class_names: tuple[str, ...] | None = None
    origin: str = "rows"
    """Where the rows came from, for messages."""
    assumed: tuple[str, ...] = ()
    """What had to be guessed while reading, each a sentence for the user."""
    digests: Array | None = None
    """uint64 ``[n]``, of the rows as their file had them (:mod:`monograph.models.data.digests`); None where that is not known."""

    def __post_init__(self) -> None:
        sizes = {name: len(array) for name, array in self.inputs.items()}
        if self.labels is not None:
            sizes[_LABELS] = len(self.labels)
        if self.digests is not None:
            sizes["digests"] = len(self.digests)
        if len(set(sizes.values())) > 1:
            found = ", ".join(f"{name} has {size}" for name, size in sizes.items())
            raise DataError(f"{self.origin}: columns differ in length ({found}): give every row all of its columns")
        if not sizes or next(iter(sizes.values())) == 0:
            raise DataError(f"{self.origin}: no rows, expected at least one")

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, indices: slice | Array) -> Self:
        """Return the rows at ``indices``, in that order."""
        return replace(
            self,
            inputs={name: array[indices] for name, array in self.inputs.items()},
            labels=None if self.labels is None else self.labels[indices],
            digests=None if self.digests is None else self.digests[indices],
        )

    def batches(self, batch_size: int) -> Iterator[Self]:
        """Yield the rows in order, ``batch_size`` at a time; the last batch may be smaller."""
        for start in range(0, len(self), batch_size):
            yield self.take(slice(start, start + batch_size))

    def required_labels(self) -> Array:
        """Return the labels.

        Raises:
            DataError: the rows have none.
        """
        if self.labels is None:
            raise DataError(f"{self.origin}: no labels, and this needs them: add an array `y` or name the label column")
        return self.labels

    def sha256(self) -> str:
        """Return a digest of all arrays, in hexadecimal."""
        digest = hashlib.sha256()
        arrays = dict(self.inputs) | ({} if self.labels is None else {_LABELS: self.labels})
        for name in sorted(arrays):
            array = np.ascontiguousarray(arrays[name])
            digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
            digest.update(array.data if array.size else b"")
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the rows as an uncompressed ``.npz``, one array an input and ``y``: DATA that :meth:`load` reads back.

        Raises:
            DataError: an input has the name under which labels or class names are kept.
        """
        if taken := {_LABELS, _CLASS_NAMES, DIGESTS_KEY} & set(self.inputs):
            raise DataError(f"{self.origin}: an input is called {taken.pop()!r}, which names the labels in a file: rename it")
        arrays: dict[str, Array] = dict(self.inputs)
        if self.labels is not None:
            arrays[_LABELS] = self.labels
        if self.digests is not None:
            arrays[DIGESTS_KEY] = self.digests
        if self.class_names is not None:
            arrays[_CLASS_NAMES] = np.array(self.class_names)
        # Not np.savez: it takes the arrays' names as keywords, beside its own.
        with zipfile.ZipFile(path, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what :meth:`save` wrote; never unpickles."""
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        names, digests = arrays.pop(_CLASS_NAMES, None), arrays.pop(DIGESTS_KEY, None)
        return cls(
            inputs={name: array for name, array in arrays.items() if name != _LABELS},
            labels=arrays.get(_LABELS),
            class_names=None if names is None else tuple(map(str, names)),
            origin=str(path),
            digests=digests,
        )


@dataclass(frozen=True)
class Codes:
    """A column of few or many values, each by its number."""

    numbers: Array
    """int32 ``[n]``."""
    values: tuple[str, ...]
