from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monograph.errors import DataError
from monograph.models.data.rows import Rows
from monograph.models.data.tables import read_table


def rows(n: int = 5, **fields) -> Rows:
    return Rows({"x": np.arange(n * 2.0).reshape(n, 2), "mask": np.ones((n, 3), np.int64)}, labels=np.arange(n), **fields)


def test_refuses_columns_of_differing_length():
    with pytest.raises(DataError, match=r"cats: columns differ in length \(x has 3, y has 2\)"):
        Rows({"x": np.zeros((3, 1))}, labels=np.zeros(2, np.int64), origin="cats")


@pytest.mark.parametrize("inputs", [{}, {"x": np.zeros((0, 2))}])
def test_refuses_no_rows(inputs):
    with pytest.raises(DataError, match="cats: no rows, expected at least one"):
        Rows(inputs, origin="cats")


def test_required_labels_are_given_or_missed():
    assert rows().required_labels().tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="no labels, and this needs them"):
        Rows({"x": np.zeros((1, 1))}).required_labels()


def test_take_keeps_order_and_everything_else():
    taken = rows(class_names=("a", "b"), origin="here", assumed=("so",)).take(np.array([4, 0]))
    assert taken.inputs["x"].tolist() == [[8, 9], [0, 1]]
    assert taken.required_labels().tolist() == [4, 0]
    assert (taken.class_names, taken.origin, taken.assumed) == (("a", "b"), "here", ("so",))


@given(n=st.integers(1, 30), batch_size=st.integers(1, 40))
def test_batches_are_the_rows_in_order(n: int, batch_size: int):
    batches = list(rows(n).batches(batch_size))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert np.concatenate([batch.inputs["x"] for batch in batches]).tolist() == rows(n).inputs["x"].tolist()
    assert np.concatenate([batch.required_labels() for batch in batches]).tolist() == list(range(n))


def test_saved_rows_come_back_equal(tmp_path: Path):
    saved = rows(class_names=("a", "ß"))
    saved.save(tmp_path / "rows.npz")
    back = Rows.load(tmp_path / "rows.npz")
    assert back.class_names == ("a", "ß")
    assert list(back.inputs) == ["x", "mask"]
    assert back.sha256() == saved.sha256()


def test_saved_rows_are_still_known_and_their_digests_are_no_column(tmp_path: Path):
    known = replace(rows(), digests=np.arange(len(rows()), dtype=np.uint64))
    known.save(tmp_path / "rows.npz")
    assert Rows.load(tmp_path / "rows.npz").digests.tolist() == known.digests.tolist()
    assert set(read_table(str(tmp_path / "rows.npz"), split=None, scratch=tmp_path).columns) == {"x", "mask", "y"}


def test_digest_tells_values_dtypes_shapes_and_names_apart():
    array = np.arange(4, dtype=np.int64)
    others = [
        {"x": array},
        {"z": array},
        {"x": array.astype(np.float64)},
        {"x": array.reshape(4, 1)},
        {"x": array[::-1]},
        {"x": array, "z": array},
    ]
    assert len({Rows(inputs).sha256() for inputs in others}) == len(others)
    assert Rows({"x": array}, labels=array).sha256() != Rows({"x": array}).sha256()


def test_digest_does_not_depend_on_memory_layout_or_order_of_inputs():
    array = np.arange(6.0).reshape(2, 3)
    assert Rows({"x": array, "z": array}).sha256() == Rows({"z": np.asfortranarray(array), "x": array}).sha256()
