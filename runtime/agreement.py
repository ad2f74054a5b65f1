"""How far one target's outputs lie from another's, or from PyTorch's, over all rows: a line of the parity matrix.

Shape letters: ``n`` rows, ``c`` classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import ParityError
from monograph.runtime.closeness import compare_arrays
from monograph.runtime.results import Agreement
from monograph.runtime.statistics import proportion_interval

Array = npt.NDArray[Any]
_BLOCK_ROWS = 1024
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


def agreement(expected: Array, got: Array, reference: str, *, has_classes: bool) -> Agreement:
    """Compare outputs ``[n, …]`` of the same rows, a block at a time; either may lie on disk, mapped.

    Args:
        expected: what the reference gave.
        got: what the target gave.
        reference: what to call the reference.
        has_classes: whether the last axis runs over classes, of which the best is compared.

    Raises:
        ParityError: the two differ in shape, or there are no rows.
    """
    if expected.shape != got.shape or len(got) == 0:
        raise ParityError(
            f"outputs have the shape {list(got.shape)}, those of {reference} {list(expected.shape)}: no row to compare"
        )
    error, scale, row, same = 0.0, 0.0, None, 0
    dot = square = other_square = 0.0
    for start in range(0, len(got), _BLOCK_ROWS):
        a, b = np.asarray(expected[start : start + _BLOCK_ROWS]), np.asarray(got[start : start + _BLOCK_ROWS])
        found = compare_arrays(a, b)
        if found.max_abs_error > error:
            error, row = found.max_abs_error, start + (found.row or 0)
        scale = max(scale, found.scale)
        wide, other = (np.where(np.isfinite(part), part, 0).astype(np.float64).ravel() for part in (a, b))
        dot, square, other_square = dot + float(wide @ other), square + float(wide @ wide), other_square + float(other @ other)
        same += int((a.argmax(-1) == b.argmax(-1)).all(axis=tuple(range(1, a.ndim - 1))).sum()) if has_classes else 0
    norms = float(np.sqrt(square * other_square))
    return Agreement(
        reference=reference,
        row_count=len(got),
        max_abs_error=error if np.isfinite(error) else None,
        relative_error=None if not np.isfinite(error) else error / scale if scale >= _SMALLEST_SCALE else error,
        cosine=min(float(dot) / norms, 1.0) if norms > 0 else 1.0,
        worst_row=row,
        top1_agreement=proportion_interval(same, len(got)) if has_classes else None,
    )
