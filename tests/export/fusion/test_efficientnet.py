"""Two pretrained networks, each exported by another of PyTorch's exporters and at another opset, in one graph."""

from pathlib import Path

import numpy as np
import pytest
import torch

from monograph.export.fusion import fuse, plan_fusion
from monograph.export.trace import export_torch
from monograph.models.examples import efficientnet_lite
from monograph.models.onnx_file import read_onnx
from monograph.runtime.session import open_session

SIZE = 96


@pytest.mark.slow
def test_efficientnet_lite0_and_lite1(tmp_path: Path):
    members = [efficientnet_lite(variant, SIZE) for variant in (0, 1)]
    export_torch(members[0], tmp_path / "lite0.onnx")
    export_torch(members[1], tmp_path / "lite1.onnx", dynamo=False, opset=17)
    files = [read_onnx(tmp_path / name) for name in ("lite0.onnx", "lite1.onnx")]
    assert [file.opset for file in files] == [20, 17]

    fused = fuse(plan_fusion(files, weights=(0.4, 0.6)), tmp_path / "fused.onnx")
    assert fused.proof.worst.relative_error <= 1e-4
    assert {batch.batch_size: batch.top1_agreement for batch in fused.proof.batches} == {1: 1.0, 2: 1.0, 5: 1.0, 16: 1.0}
    assert fused.file.size_bytes == pytest.approx(sum(file.size_bytes for file in files), rel=0.02)

    pixels = np.random.default_rng(3).uniform(-1, 1, (3, 3, SIZE, SIZE)).astype(np.float32)
    with torch.inference_mode():
        first, second = (member.module(torch.from_numpy(pixels)).numpy() for member in members)
    expected = 0.4 * first + 0.6 * second
    (got,) = open_session(fused.file.path)({"pixels": pixels}).values()
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
