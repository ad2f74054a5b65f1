"""DATA as it was given, read as a table of raw columns that nothing has been guessed about yet.

Columns are read late: of a dataset with many columns only those that the model needs are decoded.
Shape letters: ``n`` rows. Rows are counted from 0.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from monograph.errors import DataError, MonographError
from monograph.models.data.hub import (
    is_saved_dataset,
    looks_like_file,
    pick_split,
    read_file,
    read_hub,
    read_image_folder,
    read_saved,
    spool,
)
from monograph.models.data.pictures import EncodedPictures, OpenedPictures
from monograph.models.data.preprocess import Values
from monograph.models.data.rows import DIGESTS_KEY, Array, Rows
from monograph.models.data.unreadable import UnreadableRowError
from monograph.models.factories import FACTORY_PREFIX, import_factory

HUB_PREFIX = "hf:"
_CLASS_NAMES = "class_names"


class ColumnKind(StrEnum):
    """What the values of a column are."""

    NUMBER = "number"
    TEXT = "text"
    IMAGE = "image"
    ARRAY = "array"
    OTHER = "other"


@dataclass(frozen=True)
class Column:
    """One raw column; ``read(start, stop)`` returns the values of these rows."""

    kind: ColumnKind
    length: int
    read: Callable[[int, int], Values]
    take: Callable[[Array], Column]
    """Return the column, as it was first read, with the rows of these numbers alone."""
    class_names: tuple[str, ...] | None = None
    """For a column of class numbers: the names that its dataset states."""
    missing: Callable[[], Array] | None = None
    """Return which rows have no value, bool ``[n]``; None where every row has one."""
    missing_said: str = "has no value"
    """What a row without a value is said to have."""


@dataclass(frozen=True)
class Table:
    """The raw columns of DATA, by name and in their order."""

    columns: Mapping[str, Column]
    origin: str
    folder: Path
    """Where relative paths of pictures start."""
    class_names: tuple[str, ...] | None = None
    stated: tuple[str, str] | None = None
    """The columns that the format itself states to be the input and the labels; to use them guesses nothing."""
    assumed: tuple[str, ...] = ()

    def column(self, name: str, role: str) -> Column:
        """Return a column.

        Raises:
            DataError: there is none of that name; the message lists those there are.
        """
        if name not in self.columns:
            raise DataError(f"{self.origin}: no column {name!r} for {role}; the columns are {', '.join(self.columns) or 'none'}")
        return self.columns[name]

    def take(self, rows: Array, names: Collection[str]) -> Table:
        """Return the columns ``names`` with the rows of the numbers ``rows`` alone."""
        return replace(self, columns={name: self.columns[name].take(rows) for name in names})


def read_table(data: str, *, split: str | None, scratch: Path) -> Table:
    """Read DATA: a file, a folder, ``py:package.module:factory`` or a dataset on the hub.

    Args:
        data: as the user gave it.
        split: which of several splits to read.
        scratch: an empty folder for what the library ``datasets`` writes; columns are read from it later, so it must
            outlive the table.

    Raises:
        DataError: DATA is missing, unreadable, or has several splits of which none is named.
        SourceError: the factory cannot be imported.
    """
    if data.startswith(FACTORY_PREFIX):
        return _table_from_factory(data, split, scratch)
    path = Path(data).expanduser()
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:
        raise DataError(f"{data[:200]}: cannot be looked at ({error.strerror}): check the path") from error
    if not data:
        raise DataError("DATA is empty, expected a file, a folder, py:package.module:factory or a dataset on the hub")
    if is_folder:
        if is_saved_dataset(path):
            return _table_from_dataset(read_saved(path, split), data, path)
        return _table_from_dataset(read_image_folder(path, split, scratch), data, path, stated=("image", "label"))
    if is_file:
        if path.suffix.lower() == ".npz":
            return _table_from_arrays(_npz_arrays(path), data, split)
        return _table_from_dataset(read_file(path, split, scratch), data, path.parent)
    if looks_like_file(data):
        raise DataError(f"{data}: no such file or folder (looked in {Path.cwd()})")
    return _table_from_dataset(read_hub(data.removeprefix(HUB_PREFIX), split, scratch), data, Path.cwd())


def _table_from_factory(data: str, split: str | None, scratch: Path) -> Table:
    factory = import_factory(data)
    try:
        made = factory()
    except MonographError:
        raise
    except Exception as error:
        raise DataError(f"{data}: the factory failed with {type(error).__name__}: {error}") from error
    if isinstance(made, Rows):
        labels = {} if made.labels is None else {"y": made.labels}
        table = _table_from_arrays({**made.inputs, **labels, _CLASS_NAMES: made.class_names}, data, split)
        return replace(table, assumed=made.assumed)
    # A factory that returns a dataset has loaded the library already; one that does not need not wait for it.
    datasets = sys.modules.get("datasets")
    if datasets is not None and isinstance(made, datasets.Dataset | datasets.DatasetDict):
        return _table_from_dataset(pick_split(made, split, data), data, Path.cwd())
    if datasets is not None and isinstance(made, datasets.IterableDataset | datasets.IterableDatasetDict):
        return _table_from_dataset(spool(pick_split(made, split, data), data, scratch), data, Path.cwd())
    if not isinstance(made, Mapping):
        found = type(made).__name__
        raise DataError(f"{data}: the factory returned {found}, expected a mapping with arrays x and y, Rows, or a Dataset")
    return _table_from_arrays(made, data, split)


def _npz_arrays(path: Path) -> dict[str, Array]:
    arrays = {}
    name = ""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            for name in archive.files:
                arrays[name] = archive[name]
    except Exception as error:  # a damaged archive makes zipfile, zlib and numpy raise all manner of things
        what = f"array {name!r}" if name else "the file"
        if "pickle" in str(error):
            raise DataError(f"{path}: {what} is no array, and pickled objects are never loaded: save numbers or text") from error
        raise DataError(f"{path}: {what} cannot be read ({_one_line(error)}): write it again with numpy.savez") from error
    return arrays


def _table_from_arrays(arrays: Mapping[str, Any], origin: str, split: str | None) -> Table:
    """Make a table of arrays, strings and pictures by name; with a split, of those named ``x_train`` and so on."""
    arrays = {str(name): values for name, values in arrays.items() if values is not None}
    names = arrays.pop(_CLASS_NAMES, None)
    arrays.pop(DIGESTS_KEY, None)  # beside prepared rows that were saved: no column of theirs
    if split is not None:
        chosen = {name.removesuffix(f"_{split}"): values for name, values in arrays.items() if name.endswith(f"_{split}")}
        if not chosen:
            raise DataError(f"{origin}: no arrays of split {split!r}, expected x_{split}; the arrays are {', '.join(arrays)}")
        arrays = chosen
    columns = {name: _column_of_values(values, f"{origin}: array {name!r}") for name, values in arrays.items()}
    return Table(columns, origin, Path.cwd(), None if names is None else _class_names(names, origin), stated=("x", "y"))


def _class_names(names: Any, origin: str) -> tuple[str, ...]:
    array = np.asarray(names)
    if array.ndim != 1 or len(set(array.tolist())) != len(array):
        raise DataError(f"{origin}: class_names is {array.tolist()}, expected a list of names, each once".replace("\n", " "))
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in array.tolist())


def _column_of_values(values: Any, where: str) -> Column:
    if isinstance(values, list | tuple) and isinstance(next((one for one in values if one is not None), None), Image.Image):
        return Column(
            ColumnKind.IMAGE,
            len(values),
            lambda start, stop: OpenedPictures(values[start:stop], where),
            lambda rows: _column_of_values([values[row] for row in rows], where),
        )
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise DataError(f"{where} is no array ({_one_line(error)}): give every row the same shape") from error
    if array.dtype.kind == "S":
        array = array.astype(str)
    if array.dtype.kind == "O" and array.ndim == 1 and all(isinstance(value, str) for value in array):
        array = array.astype(str)
    if array.ndim == 0 or array.dtype.kind not in "biufU":
        refused = np.atleast_1d(array)
        return Column(
            ColumnKind.OTHER,
            len(refused),
            lambda start, stop: _refuse(array, where),
            lambda rows: _column_of_values(refused[rows], where),
        )
    scalar = ColumnKind.TEXT if array.dtype.kind == "U" else ColumnKind.NUMBER
    return Column(
        scalar if array.ndim == 1 else ColumnKind.ARRAY,
        len(array),
        lambda start, stop: array[start:stop],
        lambda rows: _column_of_values(array[rows], where),
        missing=(lambda: np.isnan(array).reshape(len(array), -1).any(axis=1)) if array.dtype.kind == "f" else None,
        missing_said="holds nan",
    )


def _refuse(array: Array, where: str) -> Values:
    found = "a single value" if array.ndim == 0 else f"{array.dtype} values"
    raise DataError(f"{where} holds {found}, expected numbers, text or pictures, one for each row")


def _table_from_dataset(dataset: Any, origin: str, folder: Path, stated: tuple[str, str] | None = None) -> Table:
    """Make a table of a ``datasets.Dataset``; relative paths of pictures start at ``folder``."""
    columns = {name: _column_of_dataset(dataset, name, f"{origin}: column {name!r}", folder) for name in dataset.features}
    return Table(columns, origin, folder, stated=stated)


def _column_of_dataset(dataset: Any, name: str, where: str, folder: Path) -> Column:
    kind = _kind(dataset.features[name])
    names = getattr(dataset.features[name], "names", None)
    return Column(
        kind,
        len(dataset),
        partial(_READERS.get(kind, _read_arrow), dataset, name, where, folder),
        lambda rows: _column_of_dataset(dataset.select(rows), name, where, folder),
        None if names is None else tuple(names),
        partial(_missing, dataset, name),
    )


def _kind(feature: Any) -> ColumnKind:
    if getattr(feature, "dtype", None) == "PIL.Image.Image" or (isinstance(feature, dict) and {"bytes", "path"} <= set(feature)):
        return ColumnKind.IMAGE
    leaf = feature
    while hasattr(leaf, "feature"):
        leaf = leaf.feature
    nested = leaf is not feature or hasattr(feature, "shape")
    dtype = str(getattr(leaf, "dtype", ""))
    if dtype.startswith(("int", "uint", "float", "bool")):
        return ColumnKind.ARRAY if nested else ColumnKind.NUMBER
    return ColumnKind.TEXT if dtype in ("string", "large_string") and not nested else ColumnKind.OTHER


def _read_arrow(dataset: Any, name: str, where: str, _folder: Path, start: int, stop: int) -> Values:
    """Return numbers, or equally long lists of numbers, as one array; anything else is refused."""
    values = _arrow_column(dataset, name, start, stop)
    shape = [len(values)]
    _require_no_nulls(values, where, start)
    values = getattr(values, "storage", values)
    while hasattr(values, "value_lengths"):
        lengths = values.value_lengths().to_numpy(zero_copy_only=False)
        if len(set(lengths.tolist())) > 1:
            # Only the outermost axis counts rows; deeper down, the place within the flattened column says as much.
            row = start + int((lengths != lengths[0]).argmax()) * shape[0] // len(lengths)
            raise DataError(f"{where}: row {row} has another length than row {start}: give every row the same shape")
        shape.append(int(lengths[0]) if len(lengths) else 0)
        values = values.flatten()
        _require_no_nulls(values, where, start, per_row=int(np.prod(shape[1:])))
    array = values.to_numpy(zero_copy_only=False)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where} holds {values.type}, expected numbers, text or pictures")
    # A copy, because Arrow's memory is read-only and may lie in a file that is about to be removed.
    return np.array(array).reshape(shape)


def _read_text(dataset: Any, name: str, where: str, _folder: Path, start: int, stop: int) -> list[str]:
    values = _arrow_column(dataset, name, start, stop)
    _require_no_nulls(values, where, start)
    return list(values.to_pylist())


def _read_pictures(dataset: Any, name: str, where: str, folder: Path, start: int, stop: int) -> Values:
    import datasets

    encoded = dataset.select_columns([name]).select(range(start, min(stop, len(dataset))))
    if not isinstance(dataset.features[name], dict):
        encoded = encoded.cast_column(name, datasets.Image(decode=False))
    return EncodedPictures(len(encoded), lambda row: encoded[row][name], where, folder)


_READERS: Mapping[ColumnKind, Callable[..., Values]] = {ColumnKind.TEXT: _read_text, ColumnKind.IMAGE: _read_pictures}


def _arrow_column(dataset: Any, name: str, start: int, stop: int) -> Any:
    column = dataset.select_columns([name]).with_format("arrow")[start:stop][name]
    return column.combine_chunks()


def _require_no_nulls(values: Any, where: str, start: int, per_row: int = 1) -> None:
    if values.null_count:
        row = start + int(values.is_null().to_numpy(zero_copy_only=False).argmax()) // max(per_row, 1)
        raise UnreadableRowError(f"{where}: row {row} has no value: fill or drop such rows", "it has no value")


def _missing(dataset: Any, name: str) -> Array:
    """Return which rows have no value, NaN, or a list in which one is missing: bool ``[n]``."""
    import pyarrow.compute

    values = _arrow_column(dataset, name, 0, len(dataset))
    values = getattr(values, "storage", values)
    missing = np.zeros(len(values), bool)
    row_of = np.arange(len(values))
    while True:
        null = values.is_null().to_numpy(zero_copy_only=False)
        missing[row_of[null]] = True
        if not hasattr(values, "value_lengths"):
            missing[row_of[values.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)]] = True
            return missing
        values, row_of = values.drop_null(), row_of[~null]
        row_of = row_of[pyarrow.compute.list_parent_indices(values).to_numpy(zero_copy_only=False)]
        values = values.flatten()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
