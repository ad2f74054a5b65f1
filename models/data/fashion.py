"""Fashion-MNIST, all 70,000 pictures of clothes, from Debian's package; for examples and benchmarks, no download.

Shape letters: ``n`` rows.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import DataError, MissingPackageError

FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where the package dataset-fashion-mnist puts its files."""
_CLASSES = np.array(["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"])
_UNSIGNED_BYTES = 8
"""The code of their type in the IDX format, whose header is 0, 0, the type, the rank, and a big-endian int32 a dimension."""


def fashion_mnist(folder: Path | str = FOLDER) -> dict[str, Any]:
    """Return the training rows, then the test rows: x uint8 [70,000 x 28 x 28], y int64 [70,000], class_names.

    Raises:
        MissingPackageError: the package is not installed.
        DataError: a file of it is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingPackageError(
            f"no folder {folder}: Fashion-MNIST comes with Debian's package, apt install dataset-fashion-mnist"
        )
    parts = ("train", "t10k")
    pictures = np.concatenate([_read_idx(folder / f"{part}-images-idx3-ubyte.gz", 3) for part in parts])
    labels = np.concatenate([_read_idx(folder / f"{part}-labels-idx1-ubyte.gz", 1) for part in parts])
    return {"x": pictures, "y": labels.astype(np.int64), "class_names": _CLASSES}


def _read_idx(path: Path, rank: int) -> npt.NDArray[np.uint8]:
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}): install dataset-fashion-mnist again") from error
    start = 4 + 4 * rank
    shape = tuple(int(size) for size in np.frombuffer(data[4:start], ">i4"))
    if data[:4] != bytes((0, 0, _UNSIGNED_BYTES, rank)) or len(data) != start + int(np.prod(shape)):
        raise DataError(f"{path}: is no whole IDX file of bytes in {rank} dimensions: install dataset-fashion-mnist again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()
