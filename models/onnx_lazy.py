"""ONNX files whose large weights stay on disk: read without them, and written one after the other.

A weight that lies inside the file is a range of its bytes, so it can be read like external data, from the file itself.
The layout of the bytes is protobuf's: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, Message

LARGE_FILE_BYTES = 1 << 26
"""A smaller file is read at once."""
LARGE_TENSOR_BYTES = 1 << 20
"""A smaller weight of a large file is read with its graph."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number
_FLOAT_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["float_data"].number
_LONGEST_VARINT = 10


def load_proto(path: Path) -> onnx.ModelProto:
    """Load a model without its external data; large weights of a large file become external data that lies in ``path``.

    Raises:
        DecodeError: the file is no protobuf, or is cut short.
        OSError: it cannot be read.
    """
    if path.stat().st_size < LARGE_FILE_BYTES:
        return onnx.load(str(path), format="protobuf", load_external_data=False)
    with path.open("rb") as file:
        pieces: list[bytes] = []
        for number, piece, start, end in _fields(file, 0, path.stat().st_size):
            if number == _GRAPH and piece is None:
                body = b"".join(_graph_pieces(file, start, end, path.name))
                piece = _key(_GRAPH) + _varint(len(body)) + body
            pieces.append(_read(file, start, end, number) if piece is None else piece)
    proto = onnx.ModelProto()
    proto.ParseFromString(b"".join(pieces))
    return proto


def lies_in_own_file(tensor: onnx.TensorProto, path: Path) -> bool:
    """True where :func:`load_proto` left a weight of the file ``path`` in it."""
    return any(entry.key == "location" and entry.value == path.name for entry in tensor.external_data)


def _graph_pieces(file: BinaryIO, start: int, end: int, name: str) -> Iterator[bytes]:
    for number, piece, first, last in _fields(file, start, end):
        if piece is not None:
            yield piece
        elif number == _INITIALIZER and last - first >= LARGE_TENSOR_BYTES:
            body = _tensor_without_data(file, first, last, name).SerializeToString()
            yield _key(_INITIALIZER) + _varint(len(body)) + body
        else:
            yield _read(file, first, last, number)


def _tensor_without_data(file: BinaryIO, start: int, end: int, name: str) -> onnx.TensorProto:
    """Return the tensor at ``[start, end)`` of the file called ``name``, its bytes told by where they are."""
    pieces: list[bytes] = []
    data: list[tuple[int, int, int]] = []
    for number, piece, first, last in _fields(file, start, end):
        if piece is None and number in (_RAW_DATA, _FLOAT_DATA):
            data.append((number, first, last))
        else:
            pieces.append(_read(file, first, last, number) if piece is None else piece)
    tensor = onnx.TensorProto()
    tensor.ParseFromString(b"".join(pieces))
    # Packed floats are laid out as raw data is.
    is_range = len(data) == 1 and (data[0][0] == _RAW_DATA or tensor.data_type == onnx.TensorProto.FLOAT)
    if not is_range or tensor.data_type == onnx.TensorProto.STRING or tensor.data_location == onnx.TensorProto.EXTERNAL:
        file.seek(start)
        tensor.ParseFromString(file.read(end - start))
        return tensor
    _, first, last = data[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", name), ("offset", first), ("length", last - first)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _fields(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, bytes | None, int, int]]:
    """Yield the number, the encoded field (None where it is of a length), and the range of its contents."""
    position = start
    while position < end:
        file.seek(position)
        key, position = _read_varint(file, position)
        number, wire_type = key >> 3, key & 7
        piece: bytes | None = None
        first = position
        if wire_type == _BYTES:
            length, first = _read_varint(file, position)
            position = first + length
        elif wire_type == _VARINT:
            value, position = _read_varint(file, position)
            piece = _varint(key) + _varint(value)
        elif wire_type in (_FIXED64, _FIXED32):
            position += 8 if wire_type == _FIXED64 else 4
            piece = _varint(key) + file.read(position - first)
        else:
            raise DecodeError(f"no such wire type: {wire_type}")
        if position > end or number == 0:
            raise DecodeError(f"field {number} at byte {first} reaches beyond byte {end}")
        yield number, piece, first, position


def _read(file: BinaryIO, start: int, end: int, number: int) -> bytes:
    file.seek(start)
    return _key(number) + _varint(end - start) + file.read(end - start)


def _read_varint(file: BinaryIO, position: int) -> tuple[int, int]:
    value = 0
    for index in range(_LONGEST_VARINT):
        byte = file.read(1)
        if not byte:
            raise DecodeError(f"cut short at byte {position + index}")
        value |= (byte[0] & 0x7F) << (7 * index)
        if byte[0] < 0x80:
            return value, position + index + 1
    raise DecodeError(f"no varint at byte {position}")


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _key(number: int) -> bytes:
    return _varint(number << 3 | _BYTES)


def save_proto(proto: onnx.ModelProto, path: Path, on_disk: dict[str, ir.ExternalTensor]) -> None:
    """Write ``proto`` as ``onnx.save`` does, byte for byte, but take the data of the initializers in ``on_disk`` from there.

    At no time is more than one chunk of those in memory. ``proto`` loses its initializers.
    """
    initializers = [_tensor_parts(tensor, on_disk.get(tensor.name)) for tensor in proto.graph.initializer]
    del proto.graph.initializer[:]
    before, after = _around(proto.graph, _INITIALIZER)
    sizes = [len(head) + len(tail) + (data.nbytes if data is not None else 0) for head, data, tail in initializers]
    keys = [_key(_INITIALIZER) + _varint(size) for size in sizes]
    graph_size = len(before) + len(after) + sum(sizes) + sum(map(len, keys))
    model_before, model_after = _around(proto, _GRAPH)
    with path.open("wb") as file:
        file.write(model_before + _key(_GRAPH) + _varint(graph_size) + before)
        for key, (head, data, tail) in zip(keys, initializers, strict=True):
            file.write(key + head)
            if data is not None:
                data.tofile(file)
            file.write(tail)
        file.write(after + model_after)


def _tensor_parts(tensor: onnx.TensorProto, data: ir.ExternalTensor | None) -> tuple[bytes, ir.ExternalTensor | None, bytes]:
    """Return the encoded tensor as what stands before its raw data, the data, and what stands behind them."""
    if data is None:
        return tensor.SerializeToString(), None, b""
    bare = onnx.TensorProto()
    bare.CopyFrom(tensor)
    bare.ClearField("external_data")
    bare.ClearField("data_location")
    before, after = _around(bare, _RAW_DATA)
    return before + _key(_RAW_DATA) + _varint(data.nbytes), data, after


def _around(message: Message, number: int) -> tuple[bytes, bytes]:
    """Encode the fields below ``number``, and those above it."""
    parts = []
    for keep_low in (True, False):
        part = type(message)()
        part.CopyFrom(message)
        for field, _ in message.ListFields():
            if field.number == number or (field.number < number) != keep_low:
                part.ClearField(field.name)
        parts.append(part.SerializeToString())
    return parts[0], parts[1]


def absolute(tensor: ir.ExternalTensor, folder: Path) -> ir.ExternalTensor:
    """Return the tensor with its file told in full, so that the graph can be moved into another.

    onnx-ir's own checks of where it lies are made for relative paths; the file has been checked by then.
    """
    return ir.ExternalTensor(
        os.fspath((folder / tensor.location).resolve()),
        tensor.offset or 0,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
        base_dir="",
    )
