from __future__ import annotations

import base64
import tracemalloc
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from monograph.runtime.packing import LARGEST_BYTES, join, pack, unpack

Array = npt.NDArray[Any]
DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1", ">f4")


def there_and_back(*arrays: Array) -> list[Array]:
    packed = [pack(array) for array in arrays]
    return unpack([one.entry() for one in packed], join(packed))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(DTYPES))
def test_every_bit_comes_back(data: st.DataObject, dtype: str):
    few = st.sampled_from([0, 1]) if dtype == "b1" else None
    array = data.draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40), elements=few))
    (back,) = there_and_back(array)
    assert back.dtype == array.dtype.newbyteorder("=")
    assert back.shape == array.shape
    assert back.tobytes() == array.astype(back.dtype).tobytes()


def test_not_numbers_and_negative_zeros_among_few_values():
    array = np.tile(np.array([np.nan, -0.0, 0.0, np.inf, 1.5], np.float32), 100)
    packed = pack(array)
    assert packed.distinct == 5
    assert there_and_back(array)[0].tobytes() == array.tobytes()


@pytest.mark.parametrize("prepared", [lambda u: u.astype(np.float32), lambda u: (u.astype(np.float32) / 255 - 0.5) / 0.5])
def test_pixels_take_the_room_of_bytes(prepared: Any):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 50, 50), dtype=np.uint8)
    packed = pack(prepared(pixels))
    assert len(packed.data) < 1.1 * pixels.size
    np.testing.assert_array_equal(there_and_back(prepared(pixels))[0], prepared(pixels))


def test_texts():
    texts = np.array([["ein", ""], ["größer", "日本"]], object)
    back, empty = there_and_back(texts, np.array(["", ""], object))
    assert back.tolist() == texts.tolist()
    assert empty.tolist() == ["", ""]


def test_types_that_cannot_be_stored():
    with pytest.raises(TypeError, match="arrays of type complex64 cannot be stored"):
        pack(np.zeros(3, np.complex64))


ENTRY = {"dtype": "<f4", "shape": [4], "distinct": 0, "bytes": 0}


def entry_for(data: bytes, **changes: Any) -> tuple[list[dict[str, Any]], str]:
    return [ENTRY | {"bytes": len(data)} | changes], base64.b64encode(data).decode()


GOOD = zlib.compress(np.zeros(4, np.float32).tobytes())


@pytest.mark.parametrize(
    ("data", "changes", "message"),
    [
        (GOOD, {"dtype": "|O"}, "an array of type '|O'"),
        (GOOD, {"dtype": ">f4"}, "an array of type '>f4'"),
        (GOOD, {"dtype": None}, "an array of type None"),
        (GOOD, {"shape": [-4]}, "an array of shape [-4]"),
        (GOOD, {"shape": [True]}, "an array of shape [True]"),
        (GOOD, {"shape": [1] * 40}, "an array of shape"),
        (GOOD, {"shape": [1 << 14] * 3}, f"arrays of more than {LARGEST_BYTES} bytes"),
        (GOOD, {"shape": [5]}, "an array of [5] does not decompress to 20 bytes"),
        (GOOD, {"shape": [3]}, "an array of [3] does not decompress to 12 bytes"),
        (GOOD, {"bytes": 3}, "does not decompress"),
        (GOOD, {"distinct": 70_000}, "70000 distinct values"),
        (GOOD + b"more", {}, "does not decompress"),
        (GOOD[:-3], {}, "does not decompress"),
        (b"nothing", {}, "Error -3"),
        (zlib.compress(b"\0" * 4 + b"\1" * 4), {"distinct": 1}, "a code beyond the 1 distinct values"),
    ],
)
def test_damaged(data: bytes, changes: dict[str, Any], message: str):
    entries, text = entry_for(data, **changes)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the message is compared as it is
        unpack(entries, text)
    assert message in str(caught.value)


def test_a_good_one_is_read():
    np.testing.assert_array_equal(unpack(*entry_for(GOOD))[0], np.zeros(4, np.float32))


@pytest.mark.parametrize("text", ["not base64!", "AAA"])
def test_no_base64(text: str):
    with pytest.raises(ValueError, match="not base64"):
        unpack([], text)


def test_more_text_than_entries():
    with pytest.raises(ValueError, match="3 bytes, expected 0"):
        unpack([], "AAAA")


def test_a_bomb_takes_no_memory():
    bomb = zlib.compress(bytes(1 << 28))
    entries, text = entry_for(bomb)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="does not decompress to 16 bytes"):
            unpack(entries, text)
        assert tracemalloc.get_traced_memory()[1] < 8 * len(bomb)
    finally:
        tracemalloc.stop()
