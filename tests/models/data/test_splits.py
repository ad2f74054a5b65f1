import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monograph.errors import DataError
from monograph.models.data.rows import Rows
from monograph.models.data.split import stratified_split
from monograph.models.data.splits import split_once

SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


def rows(n: int = 20, *, classes: int = 2, **fields) -> Rows:
    return Rows({"x": np.arange(n, dtype=np.float32)[:, None]}, np.arange(n) % classes, origin="here", **fields)


def members(parts: dict[str, Rows]) -> dict[str, list[int]]:
    return {name: part.inputs["x"][:, 0].astype(int).tolist() for name, part in parts.items()}


def test_parts_are_those_of_a_stratified_split(tmp_path):
    parts = split_once(rows(), SHARES, 3, tmp_path / "new" / "splits.json")
    assert members(parts) == members(stratified_split(rows(), SHARES, 3))


def test_the_file_says_how_the_rows_were_divided(tmp_path):
    parts = split_once(rows(), SHARES, 3, tmp_path / "splits.json")
    record = json.loads((tmp_path / "splits.json").read_text())
    assert record["seed"] == 3
    assert record["sizes"] == SHARES
    assert len(record["sha256"]) == 64
    assert {name: part["rows"] for name, part in record["parts"].items()} == members(parts)
    assert {name: part["row_count"] for name, part in record["parts"].items()} == {"train": 12, "validation": 4, "test": 4}
    assert len({part["sha256"] for part in record["parts"].values()} | {record["sha256"]}) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["splits.json"]


def test_the_second_run_reads_the_parts(tmp_path):
    path = tmp_path / "splits.json"
    first = split_once(rows(), SHARES, 0, path)
    # Other parts, well told, show that they are read and not drawn again.
    swapped = path.read_text().replace('"validation": {"row_count"', '"?": {"row_count"').replace('"test": {', '"validation": {')
    path.write_text(swapped.replace('"?": {', '"test": {'))
    again = split_once(rows(), SHARES, 0, path)
    assert members(again) == {**members(first), "validation": members(first)["test"], "test": members(first)["validation"]}


def test_what_was_assumed_is_told_again(tmp_path):
    asked = {"train": 17, "test": 3}
    whole = rows(classes=20, assumed=("guessed",))
    first, again = (split_once(whole, asked, 0, tmp_path / "splits.json") for _ in range(2))
    assert first["train"].assumed[0] == "guessed"
    assert "part 'train' was drawn without regard to its classes" in first["train"].assumed[1]
    assert again["train"].assumed == first["train"].assumed


def test_rows_prepared_otherwise_and_mended_labels_are_the_same_rows(tmp_path):
    known = np.arange(20, dtype=np.uint64) + 100
    first = split_once(rows(digests=known), SHARES, 0, tmp_path / "splits.json")
    mended = replace(rows(digests=known), inputs={"other": np.zeros((20, 3))}, labels=np.zeros(20, int))
    again = split_once(mended, SHARES, 0, tmp_path / "splits.json")
    assert [part.digests.tolist() for part in again.values()] == [part.digests.tolist() for part in first.values()]


@settings(deadline=None, max_examples=25)
@given(n=st.integers(6, 40), classes=st.integers(1, 3), cut=st.floats(0.3, 0.7), seed=st.integers(0, 2**31))
def test_read_again_they_are_what_was_drawn(tmp_path_factory, n, classes, cut, seed):
    path = tmp_path_factory.mktemp("split") / "splits.json"
    drawn = split_once(rows(n, classes=classes), {"train": cut, "test": 1 - cut}, seed, path)
    read = split_once(rows(n, classes=classes), {"train": cut, "test": 1 - cut}, seed, path)
    assert members(read) == members(drawn)
    assert [part.required_labels().tolist() for part in read.values()] == [
        part.required_labels().tolist() for part in drawn.values()
    ]
    assert sorted(row for part in members(read).values() for row in part) == list(range(n))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, r"\(seed was 0 and is 1\)"),
        ({"sizes": {"train": 0.5, "test": 0.5}}, r"\(sizes was .*'validation': 0.2.* and is \{'train': 0.5, 'test': 0.5\}\)"),
        ({"rows": rows(21)}, r"\(row_count was 20 and is 21, sha256 was [0-9a-f]{64} and is [0-9a-f]{64}\)"),
        ({"rows": rows().take(np.arange(20)[::-1])}, r"\(sha256 was [0-9a-f]{64} and is [0-9a-f]{64}\): give the same DATA"),
    ],
)
def test_other_rows_sizes_or_seeds_are_refused_by_name(tmp_path, changed, message):
    path = tmp_path / "splits.json"
    given = {"rows": rows(), "sizes": SHARES, "seed": 0}
    split_once(**given, path=path)
    with pytest.raises(DataError, match=message):
        split_once(**{**given, **changed}, path=path)


def test_a_share_of_one_is_not_a_count_of_one(tmp_path):
    split_once(rows(), {"train": 1.0}, 0, tmp_path / "splits.json")
    with pytest.raises(DataError, match=r"sizes was \{'train': 1.0\} and is \{'train': 1\}"):
        split_once(rows(), {"train": 1}, 0, tmp_path / "splits.json")


def test_a_share_in_single_precision_is_a_share(tmp_path):
    half, tenth = ({"train": np.float32(share), "test": np.float32(1 - share)} for share in (0.5, 0.1))
    assert [len(part) for part in split_once(rows(), half, 0, tmp_path / "splits.json").values()] == [10, 10]
    with pytest.raises(DataError, match=r"sizes was \{'train': 0.5, 'test': 0.5\} and is \{'train': 0.1"):
        split_once(rows(), tenth, 0, tmp_path / "splits.json")


def _with(path: Path, change) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record["parts"]["train"]["rows"].__setitem__(0, 99), "names rows that there are not"),
        (lambda record: record["parts"]["train"]["rows"].__setitem__(0, -1), "names rows that there are not"),
        (lambda record: record["parts"]["train"]["rows"].__setitem__(0, record["parts"]["test"]["rows"][0]), "or one twice"),
        (lambda record: record["parts"].pop("test"), "or lacks a part"),
        (
            lambda record: record["parts"]["test"].update(rows=[], sha256=hashlib.sha256(b"").hexdigest()),
            "names other test rows than were drawn",
        ),
        (lambda record: record["parts"]["train"]["rows"].reverse(), "names other train rows than were drawn"),
        (lambda record: record["parts"]["train"]["rows"].__setitem__(0, 1.5), "is damaged"),
        (lambda record: record["parts"]["train"]["rows"].__setitem__(0, 2**70), "is damaged"),
        (lambda record: record.pop("seed"), "is damaged"),
        (lambda record: record.__setitem__("parts", []), "is damaged"),
    ],
)
def test_a_changed_file_is_refused(tmp_path, change, message):
    path = tmp_path / "splits.json"
    split_once(rows(), SHARES, 0, path)
    _with(path, change)
    with pytest.raises(DataError, match=rf"splits\.json .*{message}.*: remove it, and the rows are divided anew"):
        split_once(rows(), SHARES, 0, path)


@settings(deadline=None, max_examples=25)
@given(share=st.floats(0, 0.99))
def test_cut_anywhere_it_is_refused_in_one_line(tmp_path_factory, share):
    path = tmp_path_factory.mktemp("split") / "splits.json"
    split_once(rows(), SHARES, 0, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match="is damaged") as caught:
        split_once(rows(), SHARES, 0, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[]", b"3", b"{}", b"[" * 100_000])
def test_what_is_no_such_file(tmp_path, content):
    (tmp_path / "splits.json").write_bytes(content)
    with pytest.raises(DataError, match="is damaged and does not say how the rows were divided: remove it"):
        split_once(rows(), SHARES, 0, tmp_path / "splits.json")
