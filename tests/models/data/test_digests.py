"""A row is known again, however its file writes it down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monograph.errors import DataError
from monograph.models.data.digests import row_digests
from monograph.models.data.pictures import EncodedPictures

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)


@pytest.mark.parametrize(
    "same",
    [
        PIXELS.astype(np.float64),
        PIXELS.astype(np.int64),
        PIXELS.reshape(6, 16),
        PIXELS[:, None],
        [Image.fromarray(one) for one in PIXELS],
    ],
    ids=["float", "integer", "flat", "channel", "pictures"],
)
def test_neither_type_nor_shape_matters(same):
    np.testing.assert_array_equal(row_digests([PIXELS]), row_digests([same]))


def test_doubles_are_rounded_and_zero_has_no_sign():
    values = np.array([[0.1, -0.0], [0.2, 3.0]])
    np.testing.assert_array_equal(row_digests([values]), row_digests([np.array([[0.1, 0.0], [0.2, 3.0]], np.float32)]))


def test_a_column_of_numbers_is_a_row_of_one():
    np.testing.assert_array_equal(row_digests([np.array([1.5, 2])]), row_digests([np.array([[1.5], [2]])]))


def test_every_value_and_every_place_counts():
    swapped = PIXELS.copy()
    swapped[0, 0, 0], swapped[0, 0, 1] = PIXELS[0, 0, 1], PIXELS[0, 0, 0]
    assert (row_digests([PIXELS]) != row_digests([swapped])).tolist() == [True, False, False, False, False, False]
    assert len(set(row_digests([["a", "b", "ab", ""]]).tolist())) == 4


def test_the_order_of_columns_does_not_matter():
    texts = ["one", "two", "three", "four", "five", "six"]
    both = row_digests([PIXELS, texts])
    np.testing.assert_array_equal(both, row_digests([texts, PIXELS]))
    assert not np.isin(both, row_digests([PIXELS])).any()


def test_an_encoded_picture_counts_by_its_file(tmp_path: Path):
    for name, value in (("a.png", 10), ("b.png", 20)):
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(tmp_path / name)
    by_path = EncodedPictures(2, ["a.png", "b.png"].__getitem__, "pictures", tmp_path)
    content = [{"bytes": (tmp_path / name).read_bytes(), "path": None} for name in ("a.png", "b.png")]
    by_content = EncodedPictures(2, content.__getitem__, "pictures", tmp_path)
    np.testing.assert_array_equal(row_digests([by_path]), row_digests([by_content]))
    missing = EncodedPictures(1, ["c.png"].__getitem__, "pictures", tmp_path)
    with pytest.raises(DataError, match="no such file"):
        row_digests([missing])
