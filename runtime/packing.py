"""Arrays as text, for a model's metadata, which holds nothing else: small to store and safe to read.

Each array is compressed on its own. Its type and shape stand in an entry beside the text, so that a reader knows how much
memory it will take before anything is decompressed. Nothing is ever unpickled.

Few distinct values, as pixels and token ids have, are stored once each with a short code in the place of each element:
float32 pixels made of bytes take a byte each and come back bit for bit.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
LARGEST_BYTES = 1 << 28
"""Of all arrays of one text together, decompressed."""
_DTYPE = re.compile(r"<f[248]|<[iu][248]|\|[iu]1|\|b1|<U[1-9][0-9]{0,4}")
_CODES = (np.dtype("<u1"), np.dtype("<u2"))
_SMALLEST_CODED = 256
"""Elements. In a smaller array the table of distinct values costs more than it saves."""


@dataclass(frozen=True)
class Packed:
    """One array, compressed."""

    dtype: str
    shape: tuple[int, ...]
    distinct: int
    """How many distinct values stand before the codes; 0 where the elements stand there themselves."""
    data: bytes

    def entry(self) -> dict[str, Any]:
        """Return what a reader must know of it, for JSON."""
        return {"dtype": self.dtype, "shape": list(self.shape), "distinct": self.distinct, "bytes": len(self.data)}


def pack(array: Array) -> Packed:
    """Compress ``array``; its values come back bit for bit.

    Raises:
        TypeError: it is of a type that cannot be stored.
    """
    array = np.asarray(array)
    if array.dtype.kind in "OST":
        array = np.asarray(array.tolist(), np.str_).reshape(array.shape)
    array = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    dtype = array.dtype.str if array.dtype.itemsize else "<U1"
    if not _DTYPE.fullmatch(dtype):
        raise TypeError(f"arrays of type {array.dtype} cannot be stored")
    values, codes = _encode(array)
    return Packed(dtype, array.shape, len(values), zlib.compress(values.tobytes() + codes.tobytes(), 9))


def join(arrays: Sequence[Packed]) -> str:
    """Return the arrays' contents as one text."""
    return base64.b64encode(b"".join(array.data for array in arrays)).decode("ascii")


def unpack(entries: Sequence[Mapping[str, Any]], text: str) -> list[Array]:
    """Return the arrays that :func:`join` wrote; never takes more than ``LARGEST_BYTES``, whatever the text holds.

    Raises:
        ValueError: entries and text do not belong together, are damaged, or are too large.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"not base64: {error}") from error
    arrays, start, left = [], 0, LARGEST_BYTES
    for entry in entries:
        dtype, shape, distinct, size = _checked_entry(entry)
        left -= 3 * math.prod(shape) + (math.prod(shape) + distinct) * dtype.itemsize
        if left < 0:
            raise ValueError(f"arrays of more than {LARGEST_BYTES} bytes")
        arrays.append(_decode(data[start : start + size], dtype, shape, distinct))
        start += size
    if start != len(data):
        raise ValueError(f"{len(data)} bytes, expected {start}")
    return arrays


def _encode(array: Array) -> tuple[Array, Array]:
    """Return distinct values and codes, or nothing and the array itself where that is smaller."""
    plain = np.zeros(0, array.dtype), array
    if array.size < _SMALLEST_CODED or array.dtype.kind not in "fiu" or array.dtype.itemsize == 1:
        return plain
    bits, codes = np.unique(array.view(f"<u{array.dtype.itemsize}"), return_inverse=True)
    for dtype in _CODES:
        if len(bits) <= np.iinfo(dtype).max + 1 and bits.nbytes + array.size * dtype.itemsize < array.nbytes:
            return bits, codes.astype(dtype)
    return plain


def _checked_entry(entry: Mapping[str, Any]) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    dtype, shape, distinct, size = (entry[key] for key in ("dtype", "shape", "distinct", "bytes"))
    if not isinstance(dtype, str) or not _DTYPE.fullmatch(dtype):
        raise ValueError(f"an array of type {dtype!r}")
    whole = [*shape, distinct, size]
    if not all(type(number) is int and 0 <= number <= LARGEST_BYTES for number in whole) or len(shape) > 16:
        raise ValueError(f"an array of shape {str(shape)[:80]}")
    return np.dtype(dtype), tuple(shape), distinct, size


def _decode(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], distinct: int) -> Array:
    if distinct > np.iinfo(_CODES[-1]).max + 1:
        raise ValueError(f"{distinct} distinct values")
    codes = dtype if not distinct else next(code for code in _CODES if distinct <= np.iinfo(code).max + 1)
    expected = distinct * dtype.itemsize + math.prod(shape) * codes.itemsize
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(data, expected + 1)  # a bomb gives no more than this
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(raw) != expected or not stream.eof or stream.unused_data:
        raise ValueError(f"an array of {list(shape)} does not decompress to {expected} bytes")
    elements = np.frombuffer(raw, codes, offset=distinct * dtype.itemsize)
    if distinct:
        values = np.frombuffer(raw, dtype, count=distinct)
        if elements.size and int(elements.max()) >= distinct:
            raise ValueError(f"a code beyond the {distinct} distinct values")
        elements = values[elements]
    elif dtype.kind == "b":
        elements = np.frombuffer(raw, np.uint8) != 0  # a byte that is neither 0 nor 1 is no bool
    return elements.reshape(shape)
