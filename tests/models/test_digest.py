from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from monograph.errors import SourceError
from monograph.models.digest import graph_sha256


@pytest.fixture
def path(tmp_path: Path) -> Path:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 20]> m (float[b, 4] x) => (float[b, 3] y) { y = MatMul(x, w) }'
    )
    weight = np.random.default_rng(0).standard_normal((4, 3), dtype=np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    file = tmp_path / "model.onnx"
    onnx.save(proto, file)
    return file


def test_metadata_do_not_count(path: Path):
    before = graph_sha256(path)
    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, {"author": "somebody", "long": "x" * 3_000_000})
    onnx.save(proto, path)
    assert graph_sha256(path) == before


def digest_or_refusal(path: Path) -> str:
    try:
        return graph_sha256(path)
    except SourceError as error:
        return str(error)


def test_every_other_byte_counts(path: Path):
    before, whole = graph_sha256(path), path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert digest_or_refusal(path) != before


def test_what_is_cut_off_or_added_counts(path: Path):
    before, whole = graph_sha256(path), path.read_bytes()
    found = set()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        found.add(digest_or_refusal(path))
    assert before not in found
    assert "model.onnx is cut short or damaged: copy it again" in found
    path.write_bytes(whole + whole)
    assert graph_sha256(path) != before


def test_a_number_that_never_ends(path: Path):
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(SourceError, match=r"model\.onnx is cut short or damaged"):
        graph_sha256(path)
