"""What a model's features must be, before two models' are compared or a map is fitted on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import DataError

Array = npt.NDArray[Any]


def as_features(features: Array, what: str, fewest_rows: int = 1) -> Array:
    """Return numbers ``[n, d]`` as float64.

    Args:
        features: one row of numbers a row of data.
        what: their name in messages, in the plural.
        fewest_rows: that the caller's formula needs.

    Raises:
        DataError: they are no such table, hold too few rows, or are not finite; the message names the row.
    """
    if features.ndim != 2 or features.shape[1] == 0:
        raise DataError(f"{what} have the shape {list(features.shape)}, expected [n, d]: flatten or pool each row to one vector")
    if len(features) < fewest_rows:
        raise DataError(f"{what} have {len(features)} rows, needed are {fewest_rows} or more: give more rows")
    values = features.astype(np.float64)
    if not (finite := np.isfinite(values).all(axis=1)).all():
        raise DataError(f"{what} are not finite in row {int(np.argmin(finite))}: leave such rows out, or mend the model")
    return values


def check_same_rows(first: Array, second: Array, what: str) -> None:
    """Check that two arrays have as many rows.

    Raises:
        DataError: they do not.
    """
    if len(first) != len(second):
        raise DataError(f"{what} have {len(first)} and {len(second)} rows: give both for the same rows in the same order")
