"""What a fusion was fitted on, and what its members have seen, it says itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from monograph.export.trace import export_torch
from monograph.models.data.digits import optical_digits
from monograph.models.data.load import load_rows
from monograph.models.onnx_file import read_onnx
from monograph.models.seen import mark_seen, read_seen, seen
from monograph.models.students import conv
from monograph.models.torch_model import TorchModel
from monograph.pipelines.cascade import cascade_models
from monograph.pipelines.fuse import fuse_models
from monograph.pipelines.lower import lower_model
from monograph.pipelines.measure import onnx_file_of
from monograph.pipelines.verify import verify_model


def test_a_fit_and_its_members_rows_are_told(tmp_path: Path):
    table = optical_digits()
    for name, part in (("fit", slice(0, 100)), ("training", slice(100, 130)), ("test", slice(200, 260))):
        np.savez(tmp_path / f"{name}.npz", x=table["x"][part], y=table["y"][part])
    members = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        export_torch(TorchModel(*conv((1, 8, 8), width=4), "member"), tmp_path / f"member{seed}.onnx")
        members.append(tmp_path / f"member{seed}.onnx")
    contract = read_onnx(members[0]).contract
    rows = {name: load_rows(str(tmp_path / f"{name}.npz"), contract) for name in ("fit", "training", "test")}
    mark_seen(members[1], seen("training", rows["training"]))
    fit = str(tmp_path / "fit.npz")
    written = {
        "fused": fuse_models(members, tmp_path / "fused.onnx", fit=fit).file,
        "cascade": cascade_models(members, tmp_path / "cascade.onnx", fit=fit).file,
    }
    for name, file in written.items():
        known = read_seen(file)
        assert known.among(rows["fit"].digests).all(), name
        assert known.among(rows["training"].digests).all(), name
        assert not known.among(rows["test"].digests).any(), name
        assert verify_model(file.path).passed, name
    lower_model(tmp_path / "cascade.onnx", tmp_path / "stages", to="sessions")
    assert read_seen(onnx_file_of(str(tmp_path / "stages"))).among(rows["fit"].digests).all()
    plain = fuse_models(members[:1] * 2, tmp_path / "plain.onnx").file
    assert len(read_seen(plain)) == 0
