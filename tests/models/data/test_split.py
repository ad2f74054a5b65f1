import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monograph.errors import DataError
from monograph.models.data.rows import Rows
from monograph.models.data.split import stratified_split


def rows(labels) -> Rows:
    labels = None if labels is None else np.asarray(labels)
    n = 10 if labels is None else len(labels)
    return Rows({"x": np.arange(n)[:, None]}, labels=labels, origin="here")


def members(part: Rows) -> list[int]:
    return part.inputs["x"][:, 0].tolist()


label_lists = st.lists(st.integers(0, 3), min_size=2, max_size=60)


@settings(deadline=None, max_examples=60)
@given(labels=label_lists, sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4), seed=st.integers(0, 2**32 - 1))
def test_parts_are_disjoint_of_the_size_asked_for_and_repeatable(labels, sizes, seed):
    whole = rows(labels)
    asked = {f"part{i}": size for i, size in enumerate(sizes)}
    if sum(sizes) > len(labels):
        with pytest.raises(DataError, match="ask for fewer"):
            stratified_split(whole, asked, seed)
        return
    parts = stratified_split(whole, asked, seed)
    assert {name: len(part) for name, part in parts.items()} == asked
    drawn = [row for part in parts.values() for row in members(part)]
    assert len(set(drawn)) == len(drawn)
    for part in parts.values():
        assert part.required_labels().tolist() == [labels[row] for row in members(part)]
    again = stratified_split(whole, asked, seed)
    assert {name: members(part) for name, part in again.items()} == {name: members(part) for name, part in parts.items()}


@settings(deadline=None, max_examples=60)
@given(labels=label_lists, cut=st.floats(0.3, 0.7), seed=st.integers(0, 1000))
def test_fractions_that_sum_to_one_are_a_partition(labels, cut, seed):
    parts = stratified_split(rows(labels), {"a": cut, "b": 1 - cut}, seed) if len(labels) > 3 else None
    if parts is not None:
        assert sorted(members(parts["a"]) + members(parts["b"])) == list(range(len(labels)))


def test_many_fractions_hand_out_every_row():
    parts = stratified_split(rows(np.arange(101) % 2), {"a": 0.7, "b": 0.2, "c": 0.1}, 0)
    assert [len(part) for part in parts.values()] == [71, 20, 10]


def test_classes_keep_their_proportion():
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    for part in stratified_split(rows(labels), {"train": 0.5, "test": 0.3}, 7).values():
        share = np.bincount(part.required_labels()) / len(part)
        assert share == pytest.approx([0.6, 0.3, 0.1], abs=0.005)
        assert part.assumed == ()


def test_another_seed_gives_other_parts():
    whole = rows(np.arange(100) % 2)
    assert members(stratified_split(whole, {"a": 50}, 0)["a"]) != members(stratified_split(whole, {"a": 50}, 1)["a"])


@pytest.mark.parametrize("labels", [None, np.linspace(0, 1, 10)])
def test_without_classes_it_is_a_plain_shuffle(labels):
    part = stratified_split(rows(labels), {"a": 0.5}, 0)["a"]
    assert len(part) == 5
    assert part.assumed == ()


@pytest.mark.parametrize(
    ("labels", "count", "reason"),
    [([0, 0, 0, 0, 1], 2, "class 1 has a single row left"), ([0, 0, 1, 1, 2, 2], 2, "2 of 6 rows cannot hold all 3 classes")],
)
def test_where_classes_cannot_be_kept_it_says_so(labels, count, reason):
    part = stratified_split(rows(labels), {"a": count}, 0)["a"]
    assert len(part) == count
    assert part.assumed[0].startswith(f"part 'a' was drawn without regard to its classes: {reason}")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"a": 0.8, "b": 0.3}, r"here: parts of a: 0\.8, b: 0\.3 sum to 1\.1, expected at most 1"),
        ({"a": 8, "b": 3}, r"here: parts of a: 8, b: 3 need 11 rows, but there are 10: ask for fewer"),
        ({"a": 8, "b": 0.1}, "mix fractions and counts"),
        ({"a": 0}, "expected a positive size"),
        ({"a": -0.5}, "expected a positive size"),
        ({"a": float("nan")}, "expected a positive size"),
        ({}, "cannot split into no parts"),
        ({"a": 0.01}, "part 'a' of 0.01 gets none of 10 rows"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes, message):
    with pytest.raises(DataError, match=message):
        stratified_split(rows(None), sizes, 0)
