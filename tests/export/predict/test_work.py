"""How the work of a graph is spread over the providers that ran it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from monograph.export.predict import with_work
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.runtime.results import Placed

CPU, GPU = "CPUExecutionProvider", "WebGpuExecutionProvider"


@pytest.fixture
def file(tmp_path: Path) -> OnnxFile:
    """Three products of 4 x 4 and a Softmax between the first two: 16 multiply-accumulates each."""
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[batch, 4] x) => (float[batch, 4] y) '
        "{ a = MatMul(x, w) b = Softmax(a) c = MatMul(b, w) y = MatMul(c, w) }"
    )
    for name, node in zip(("first", "soft", "second", "third"), proto.graph.node, strict=True):
        node.name = name
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    onnx.save(proto, tmp_path / "m.onnx")
    return read_onnx(tmp_path / "m.onnx")


def placed(provider: str, *names: str) -> Placed:
    return Placed(provider, names, ("?",) * len(names), 1)


def test_one_provider_did_all(file: OnnxFile):
    (all_of_it,) = with_work([placed(CPU, "?", "?")], file)
    assert (all_of_it.macs, all_of_it.partition_count) == (48, 1)


def test_each_provider_has_the_work_of_its_nodes_whatever_was_appended_to_their_names(file: OnnxFile):
    gpu, cpu = with_work([placed(GPU, "first_token_3", "second", "third_nchwc"), placed(CPU, "soft")], file)
    assert (gpu.macs, cpu.macs) == (48, 0)
    assert (gpu.partition_count, cpu.partition_count) == (2, 1), "the Softmax lies between its parts"


def test_parts_that_the_provider_told_stay(file: OnnxFile):
    gpu, _ = with_work([replace(placed(GPU, "first", "second", "third"), partition_count=3), placed(CPU, "soft")], file)
    assert gpu.partition_count == 3


def test_work_that_nobody_is_known_to_have_done_is_given_to_nobody(file: OnnxFile):
    given = [placed(GPU, "first", "something"), placed(CPU, "soft")]
    assert list(with_work(given, file)) == given


def test_another_file_of_the_same_name_is_counted_anew(file: OnnxFile):
    assert with_work([placed(CPU, "first")], file)[0].macs == 48
    proto = onnx.load(file.path)
    del proto.graph.node[3]
    proto.graph.node[2].output[0] = "y"
    onnx.save(proto, file.path)
    assert with_work([placed(CPU, "first")], read_onnx(file.path))[0].macs == 32
