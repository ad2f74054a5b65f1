"""A pretrained network on the providers of phones."""

from pathlib import Path

import pytest

from monograph.export.fusion.macs import count_macs
from monograph.export.ort_format import to_ort_format
from monograph.export.predict import predict
from monograph.export.predict.coreml import coreml
from monograph.export.predict.nnapi import nnapi
from monograph.export.predict.xnnpack import XNNPACK
from monograph.export.trace import export_torch
from monograph.models.examples import efficientnet_lite
from monograph.models.onnx_file import read_onnx


@pytest.mark.slow
def test_efficientnet_lite0_was_made_for_phones(tmp_path: Path):
    export_torch(efficientnet_lite(0, 96), tmp_path / "lite0.onnx")
    file = read_onnx(tmp_path / "lite0.onnx")

    for rules in (coreml(), nnapi()):
        one = predict(file, rules)
        assert (one.node_share, one.macs_share, len(one.partition_sizes)) == (1.0, 1.0, 1), rules.name
    assert sum(node.macs or 0 for node in one.nodes) == count_macs(file.path)

    one = predict(file, XNNPACK)
    assert one.macs_share == 1.0
    assert {node.op_type for node in one.nodes if not node.is_supported} == {"Add", "ReduceMean", "Reshape"}
    # Each of the nine shortcuts, and the pooling at the end, cuts the graph.
    assert len(one.partition_sizes) == 11
    assert one.free_node_share == one.node_share  # the batch may stay free

    made = to_ort_format(file, tmp_path / "lite0.ort")
    assert made.proof.worst.relative_error <= 1e-5
    assert made.size_bytes == pytest.approx(file.size_bytes, rel=0.02)
