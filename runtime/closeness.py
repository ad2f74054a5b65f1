"""How far two arrays lie apart: the one comparison of proofs and of golden batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Closeness:
    """Of two arrays of one shape."""

    max_abs_error: float
    """Infinite where they differ in where they are infinite or not a number."""
    scale: float
    """Largest absolute finite value of the first."""
    cosine: float
    """Of both, flattened."""
    row: int | None
    """Along the first axis, where the largest error stands; None without rows, or without an error."""


def compare_arrays(expected: Array, got: Array) -> Closeness:
    """Compare in float64; both have one shape."""
    wide, other = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(wide)
    gaps_differ = (finite != np.isfinite(other)) | (~finite & (wide != other) & ~(np.isnan(wide) & np.isnan(other)))
    wide, other = np.where(finite, wide, 0.0), np.where(np.isfinite(other), other, 0.0)
    errors = np.where(gaps_differ, np.inf, np.abs(wide - other))
    error = float(np.max(errors, initial=0.0))
    norms = float(np.linalg.norm(wide) * np.linalg.norm(other))
    return Closeness(
        max_abs_error=error,
        scale=float(np.max(np.abs(wide), initial=0.0)),
        cosine=float(np.vdot(wide, other)) / norms if norms > 0 else 1.0,
        row=int(np.unravel_index(np.argmax(errors), errors.shape)[0]) if errors.ndim and error > 0 else None,
    )
