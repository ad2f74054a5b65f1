"""A 64-bit digest of each row as its file has it, by which it is known again in another file and for another model.

Models prepare one row differently, so what is digested is the raw row, labels left out. Numbers count by their values in order,
floats rounded to single precision: neither their type nor the row's shape matters, so 64 columns of a CSV file and an 8 x 8 array
are one row. Text counts by its UTF-8, an encoded picture by the bytes of its file: the same picture saved anew is another row.

Shape letters: ``n`` rows, ``k`` columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from monograph.models.data.pictures import EncodedPictures
from monograph.models.data.preprocess import Values
from monograph.models.data.rows import Array

_DIGEST_BYTES = 8
_BLOCK_ROWS = 1024


def row_digests(columns: Sequence[Values]) -> Array:
    """Return the digest of each row of aligned raw columns: uint64 ``[n]``; the columns' order does not matter.

    Raises:
        DataError: a picture cannot be read.
    """
    digests = np.stack([np.fromiter(map(_digest, _contents(values)), np.uint64, len(values)) for values in columns], axis=1)
    if digests.shape[1] == 1:
        return digests[:, 0]
    return np.fromiter((_digest(row.tobytes()) for row in np.sort(digests, axis=1)), np.uint64, len(digests))


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest(), "little")


def _contents(values: Values) -> Iterator[bytes]:
    if isinstance(values, EncodedPictures):
        yield from map(values.content, range(len(values)))
    elif isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        for start in range(0, len(values), _BLOCK_ROWS):
            yield from map(np.ndarray.tobytes, _plain_numbers(values[start : start + _BLOCK_ROWS]))
    else:
        for value in values:
            yield str(value).encode() if isinstance(value, str) else _plain_numbers(np.asarray(value)[None]).tobytes()


def _plain_numbers(values: Array) -> Array:
    """Return numbers ``[n, …]`` as float64 ``[n, k]``."""
    rounded = values.astype(np.float32) if values.dtype.kind == "f" else values
    return rounded.reshape(len(values), -1).astype("<f8") + 0.0  # -0.0 becomes 0.0
