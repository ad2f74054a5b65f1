"""Weights of classes, for rows that are unevenly shared among them: each class counts as much as any other.

Source: King and Zeng 2001, doi 10.1093/oxfordjournals.pan.a004868: n / (c · nᵢ), as scikit-learn's ``balanced``.

Shape letters: ``c`` classes, ``n`` rows.
"""

from __future__ import annotations

import numpy as np

from monograph.models.data.rows import Array


def balanced_weights(labels: Array, class_count: int) -> Array:
    """Return a weight for each class, float64 ``[c]``, whose mean over rows ``int64 [n]`` is 1; a class without rows gets 0."""
    counts = np.bincount(labels, minlength=class_count)
    present = counts > 0
    weights: Array = np.divide(len(labels), present.sum() * counts, out=np.zeros(class_count), where=present)
    return weights
