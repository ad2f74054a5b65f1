"""Corrupted rows: the same for every reader, worse with the severity, and nothing else changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monograph.errors import DataError
from monograph.models.contract import Contract, ImagePreprocessing, Kind, TensorSpec, TextPreprocessing
from monograph.models.data.corrupt import CORRUPTIONS, corrupted, fitting_corruptions
from monograph.models.data.digits import optical_digits
from monograph.models.data.stream import RowStream, open_stream

OUTPUT = (TensorSpec("logits", "float32", ("b", 2)),)


def contract(*inputs: TensorSpec) -> Contract:
    return Contract(inputs, OUTPUT, Kind.LOGITS)


PIXELS = contract(TensorSpec("x", "float32", ("b", 1, 8, 8), ImagePreprocessing(mean=(0.0,), std=(1.0,))))
FIELDS = contract(TensorSpec("x", "float32", ("b", 4)))


@pytest.fixture
def pictures(tmp_path: Path):
    np.savez(tmp_path / "digits.npz", x=optical_digits()["x"][:20], y=np.arange(20) % 2)
    with open_stream(str(tmp_path / "digits.npz"), PIXELS) as stream:
        yield stream


def values(stream: RowStream, start: int = 0, stop: int = 20) -> np.ndarray:
    return stream.read(start, stop).inputs["x"]


@pytest.mark.parametrize("name", ["noise", "blur", "contrast"])
def test_pictures_go_bad_by_degrees(pictures: RowStream, name: str):
    clean = values(pictures)
    errors = [np.abs(values(corrupted(pictures, name, severity)) - clean).mean() for severity in (1, 3, 5)]
    assert 0 < errors[0] < errors[1] < errors[2]
    spoilt = corrupted(pictures, name, 3)
    assert values(spoilt).min() >= 0
    assert values(spoilt).max() <= 1
    np.testing.assert_array_equal(values(spoilt)[7:12], values(spoilt, 7, 12))
    np.testing.assert_array_equal(values(spoilt), values(corrupted(pictures, name, 3)))
    np.testing.assert_array_equal(spoilt.labels, pictures.labels)


def test_another_seed_is_other_noise(pictures: RowStream):
    assert np.abs(values(corrupted(pictures, "noise", 1, seed=1)) - values(corrupted(pictures, "noise", 1))).max() > 0


def test_two_models_are_given_the_same_bad_row(tmp_path: Path, pictures: RowStream):
    other = contract(TensorSpec("pixels", "float32", ("b", 1, 8, 8), ImagePreprocessing(mean=(0.5,), std=(0.5,))))
    with open_stream(str(tmp_path / "digits.npz"), other) as stream:
        scaled = corrupted(stream, "noise", 2).read(0, 20).inputs["pixels"]
    np.testing.assert_allclose(scaled * 0.5 + 0.5, values(corrupted(pictures, "noise", 2)), atol=1e-6)


def test_a_folder_of_pictures(tmp_path: Path):
    for index in range(4):
        folder = tmp_path / "pictures" / str(index % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(optical_digits()["x"][index]).save(folder / f"{index}.png")
    with open_stream(str(tmp_path / "pictures"), PIXELS) as stream:
        assert fitting_corruptions(stream) == ["noise", "blur", "contrast"]
        assert np.abs(values(corrupted(stream, "blur", 5)) - values(stream)).mean() > 0.01


def test_texts_are_mistyped(tmp_path: Path):
    (tmp_path / "texts.csv").write_text(
        "text,y\nthe quick brown fox jumps over it,0\nanother line of words,1\n", encoding="utf-8"
    )
    spec = TensorSpec("input_ids", "int64", ("b", "s"), TextPreprocessing("input_ids"))
    with open_stream(str(tmp_path / "texts.csv"), contract(spec), tokenizer_json=TOKENIZER) as stream:
        assert fitting_corruptions(stream) == ["typos"]
        clean = list(stream.table.columns["text"].read(0, 2))
        mild, wild = (list(corrupted(stream, "typos", level).table.columns["text"].read(0, 2)) for level in (1, 5))
    assert all(a != b for a, b in zip(clean, mild, strict=True))
    assert sum(a == b for a, b in zip(clean[0], mild[0], strict=False)) > sum(
        a == b for a, b in zip(clean[0], wild[0], strict=False)
    )


def test_missing_fields_hold_the_median(tmp_path: Path):
    x = np.arange(400, dtype=np.float32).reshape(100, 4)
    np.savez(tmp_path / "table.npz", x=x, y=np.arange(100) % 2)
    with open_stream(str(tmp_path / "table.npz"), FIELDS) as stream:
        assert fitting_corruptions(stream) == ["missing"]
        spoilt = corrupted(stream, "missing", 4).read(0, 100).inputs["x"]
        with pytest.raises(DataError, match="'noise' is for pictures"):
            corrupted(stream, "noise", 1)
    lost = spoilt != x
    assert 0.2 < lost.mean() < 0.4
    np.testing.assert_array_equal(spoilt[lost], np.broadcast_to(np.median(x, axis=0), x.shape)[lost])


def test_each_has_five_strengths_that_grow_or_fall():
    for corruption in CORRUPTIONS.values():
        assert len(set(corruption.strengths)) == 5
        assert list(corruption.strengths) in (sorted(corruption.strengths), sorted(corruption.strengths, reverse=True))


TOKENIZER = (
    '{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,'
    '"pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,'
    '"model":{"type":"WordLevel","vocab":{"[UNK]":0,"[PAD]":1,"the":2},"unk_token":"[UNK]"}}'
)
