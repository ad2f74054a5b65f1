"""Crops of two photographs that scikit-learn carries, without labels; for calibration and parity in examples and benchmarks.

Shape letters: ``n`` rows, ``h`` height, ``w`` width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_SIDE, _STEP = 224, 32
"""Pixels: of a crop, and from one crop to the next."""


def crops() -> dict[str, Any]:
    """Return crops of a temple and of a flower, 98 of each in an order drawn once: x uint8 [196 x 224 x 224 x 3]."""
    from sklearn.datasets import load_sample_images

    cut = [
        picture[top : top + _SIDE, left : left + _SIDE]
        for picture in load_sample_images().images
        for top in range(0, picture.shape[0] - _SIDE + 1, _STEP)
        for left in range(0, picture.shape[1] - _SIDE + 1, _STEP)
    ]
    return {"x": np.stack(cut)[np.random.default_rng(0).permutation(len(cut))]}
