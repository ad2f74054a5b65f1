"""A digest of an ONNX file without its metadata: it holds when metadata are added and tells every other changed byte.

An ONNX file is one protobuf message, a list of fields, each with its number and length before it; the fields are hashed as
they stand, so neither protobuf nor memory for the whole file is needed
(https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

from monograph.errors import SourceError

_METADATA_PROPS = 14
"""The number of ModelProto's field metadata_props (onnx/onnx.proto)."""
_VARINT, _LENGTH_DELIMITED = 0, 2
_FIXED_BYTES = {1: 8, 5: 4}
_LONGEST_VARINT = 10
_CHUNK_BYTES = 1 << 20


def graph_sha256(path: Path) -> str:
    """Return the SHA-256, in hexadecimal, of the file's fields other than metadata.

    Raises:
        SourceError: the file is cut short, or is no protobuf message.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while tag := _read_varint(file, path):
            head, key = tag
            field, wire = key >> 3, key & 7
            size = _FIXED_BYTES.get(wire, 0)
            if wire in (_VARINT, _LENGTH_DELIMITED):
                written, number = _read_varint(file, path) or _cut_short(path)
                head += written
                size = number if wire == _LENGTH_DELIMITED else 0
            elif not size:
                raise SourceError(f"{path.name} is damaged (a field of wire type {wire}): copy it again")
            _hash_field(file, path, head, size, None if field == _METADATA_PROPS else digest)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a whole file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_field(file: BinaryIO, path: Path, head: bytes, size: int, digest: hashlib._Hash | None) -> None:
    if digest is not None:
        digest.update(head)
    while size:
        chunk = file.read(min(size, _CHUNK_BYTES))
        if not chunk:
            _cut_short(path)
        if digest is not None:
            digest.update(chunk)
        size -= len(chunk)


def _read_varint(file: BinaryIO, path: Path) -> tuple[bytes, int] | None:
    """Return the next number with the bytes that it is written in; None at the end of the file."""
    written, number = b"", 0
    while byte := file.read(1):
        number |= (byte[0] & 0x7F) << (7 * len(written))
        written += byte
        if byte[0] < 0x80:
            return written, number
        if len(written) == _LONGEST_VARINT:
            break
    return _cut_short(path) if written else None


def _cut_short(path: Path) -> tuple[bytes, int]:
    raise SourceError(f"{path.name} is cut short or damaged: copy it again")
