"""Labels as they are written down, to the numbers that the model's classes have.

Shape letters: ``n`` rows, ``k`` targets a row. Rows are counted from 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monograph.errors import DataError
from monograph.models.contract import Contract, Kind
from monograph.models.data.preprocess import Values, first_row, require_finite
from monograph.models.data.rows import Array

_PLACEHOLDER = re.compile(r"LABEL_\d+")
_NUMBER = re.compile(r"[0-9]{1,9}")
_MOST_NAMES_SHOWN = 10


@dataclass(frozen=True)
class Labels:
    """Labels by the model's numbering, and how they came about."""

    values: Array
    """int64 ``[n]`` of class numbers; for models without classes also float64 targets ``[n]``, ``[n x k]`` or wider."""
    class_names: tuple[str, ...] | None
    assumed: tuple[str, ...]


def encode_labels(values: Values, data_names: tuple[str, ...] | None, contract: Contract, where: str) -> Labels:
    """Give labels the numbers that the model's classes have.

    Names are mapped to the contract's class names, and so are numbers whose dataset names its classes otherwise than the
    model does. Where neither names classes, the sorted unique names are numbered.

    Args:
        values: class numbers or names ``[n]``, or, for models without classes, targets as the output is shaped.
        data_names: the names of the classes by the dataset's numbering, where it states them.
        contract: the model's kind and class names.
        where: where the labels came from, for messages.

    Raises:
        DataError: names that the model does not know, numbers out of range, or floats for a model of classes.
    """
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    # Rows of embeddings or scores may be labelled with classes too, which whoever reads the vectors makes use of.
    is_target = not contract.kind.has_classes and (array.dtype.kind == "f" or array.ndim > 1)
    if contract.kind is Kind.REGRESSION or is_target:
        return Labels(_targets(array, contract.kind, where), None, ())
    if array.ndim != 1 or array.dtype.kind not in "biuU":
        shape = " x ".join(map(str, ("n", *array.shape[1:])))
        raise DataError(
            f"{where}: labels are {array.dtype} [{shape}], a model of {contract.kind.value} needs class numbers or names [n]: "
            "give whole numbers as integers; other targets are for a model of the kind regression"
        )
    model_names, assumed = _stated_names(contract, where)
    if array.dtype.kind == "U":
        labels = _numbers_of_names(array, model_names or data_names, where)
        _require_range(labels.values, contract.class_count, where)
        return Labels(labels.values, model_names or labels.class_names, assumed + labels.assumed)
    if data_names is not None and model_names is not None and data_names != model_names:
        _require_range(array, len(data_names), where)
        array = _numbers_of_names(np.array(data_names)[array.astype(np.int64)], model_names, where).values
    _require_range(array, contract.class_count, where)
    numbers = array.astype(np.int64)
    return Labels(numbers, model_names or data_names or contract.class_names, assumed)


def _targets(array: Array, kind: Kind, where: str) -> Array:
    if array.dtype.kind not in "biuf":
        what = "is a regression" if kind is Kind.REGRESSION else f"gives {kind.value}"
        raise DataError(f"{where}: labels are {array.dtype}, expected numbers, because the model {what}")
    require_finite(array, where)
    return array.astype(np.float64)


def _stated_names(contract: Contract, where: str) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Return the contract's class names, unless they are the placeholders that transformers writes, which name nothing."""
    names = contract.class_names
    if names is not None and all(_PLACEHOLDER.fullmatch(name) for name in names):
        return None, (f"{where}: labels were taken by number, for the model names its classes {names[0]} and so on",)
    return names, ()


def _numbers_of_names(array: Array, names: tuple[str, ...] | None, where: str) -> Labels:
    unique, inverse = np.unique(array, return_inverse=True)
    found = unique.tolist()
    assumed: tuple[str, ...] = ()
    if names is None and all(_NUMBER.fullmatch(name) for name in found):
        assumed = (f"{where}: labels are numbers written as text, and were taken as class numbers",)
        return Labels(unique.astype(np.int64)[inverse], None, assumed)
    if names is None:
        names = tuple(found)
        assumed = (f"{where}: classes were numbered by their sorted names: {_shown(names)}",)
    number_of = {name: number for number, name in enumerate(names)}
    unknown = [name for name in found if name not in number_of]
    if unknown:
        raise DataError(
            f"{where}: the model has no class {_shown(unknown)}; its classes are {_shown(names)}: rename or drop those labels"
        )
    return Labels(np.array([number_of[name] for name in found], np.int64)[inverse], names, assumed)


def _require_range(numbers: Array, class_count: int | None, where: str) -> None:
    bad = numbers < 0 if class_count is None else (numbers < 0) | (numbers >= class_count)
    if bad.any():
        row = first_row(bad)
        expected = "0 or more" if class_count is None else f"0 to {class_count - 1}"
        raise DataError(f"{where}: row {row} has label {numbers[row]}, expected {expected}: correct or drop such rows")


def _shown(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_MOST_NAMES_SHOWN]))
    return shown if len(names) <= _MOST_NAMES_SHOWN else f"{shown} and {len(names) - _MOST_NAMES_SHOWN} more"
