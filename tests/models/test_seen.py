"""What a model says it has seen: written, read back, joined, and refused where it was damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from monograph.errors import SourceError
from monograph.models import seen as module
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.data.load import load_rows
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile
from monograph.models.seen import SEEN_KEY, SeenRows, read_seen, seen, seen_by, seen_metadata

CONTRACT = Contract((TensorSpec("x", "float32", ("b", 3)),), (TensorSpec("logits", "float32", ("b", 2)),), Kind.LOGITS)


def rows(count: int, seed: int = 0) -> Rows:
    return Rows({"x": np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)})


def file_with(path: Path, metadata: dict[str, str]) -> OnnxFile:
    return OnnxFile(path, CONTRACT, "", 0, 17, metadata)


def test_it_is_read_back(tmp_path: Path):
    known = seen("calibration", rows(20))
    again = read_seen(file_with(tmp_path / "m.onnx", seen_metadata(known, tmp_path / "m.onnx")))
    np.testing.assert_array_equal(again.digests, known.digests)
    assert again.uses == {"calibration": 20}
    assert list(tmp_path.iterdir()) == []


def test_many_rows_lie_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST_INLINE", 10)
    file = file_with(tmp_path / "m.onnx", seen_metadata(seen("training", rows(20)), tmp_path / "m.onnx"))
    assert len(read_seen(file)) == 20
    (beside,) = tmp_path.iterdir()
    assert beside.name in file.metadata[SEEN_KEY]
    beside.write_bytes(b"\0" * 160)
    with pytest.raises(SourceError, match="was changed"):
        read_seen(file)
    beside.unlink()
    with pytest.raises(SourceError, match=r"has seen 20 rows, which the file .* lists, and that is missing: copy it"):
        read_seen(file)


def test_what_several_have_seen_is_joined(tmp_path: Path):
    first, second = seen("training", rows(20)), seen("training", rows(20)) | seen("fit", rows(5, seed=1))
    files = [file_with(tmp_path / "m.onnx", seen_metadata(one, tmp_path / "m.onnx")) for one in (first, second)]
    joined = seen_by([*files, file_with(tmp_path / "silent.onnx", {})])
    assert len(joined) == 25
    assert joined.uses == {"training": 20, "fit": 5}
    assert joined.among(seen("", rows(30, seed=1)).digests).sum() == 5
    assert "20 rows of training, 5 rows of fit" in joined.describe()


def test_nothing_seen_writes_nothing(tmp_path: Path):
    assert seen_metadata(SeenRows() | seen("calibration", None), tmp_path / "m.onnx") == {}


@pytest.mark.parametrize(
    "record", ["[]", "{", '{"version": 1}', '{"version": 9, "uses": {}, "row_count": 0, "digests": ""}', '{"digests": "?"}']
)
def test_a_damaged_record_is_refused(tmp_path: Path, record: str):
    with pytest.raises(SourceError, match=r"is damaged .*: make the model again"):
        read_seen(file_with(tmp_path / "m.onnx", {SEEN_KEY: record}))


def test_a_file_elsewhere_is_not_read(tmp_path: Path):
    record = {"version": 1, "uses": {}, "row_count": 1, "file": "../secret", "sha256": ""}
    (tmp_path / "secret").write_bytes(b"\0" * 8)
    with pytest.raises(SourceError, match="is missing"):
        read_seen(file_with(tmp_path / "inner" / "m.onnx", {SEEN_KEY: json.dumps(record)}))


def test_digests_follow_rows_that_are_taken(tmp_path: Path):
    np.savez(tmp_path / "rows.npz", x=rows(20).inputs["x"], y=np.arange(20) % 2)
    loaded = load_rows(str(tmp_path / "rows.npz"), CONTRACT)
    part = replace(loaded.take(np.array([3, 1])), labels=None)
    np.testing.assert_array_equal(part.digests, loaded.digests[[3, 1]])
    assert len(seen("fit", part) | seen("fit", loaded.take(slice(0, 4)))) == 4
