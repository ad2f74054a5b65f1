"""The main line, whole, on real digits: training to report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from monograph.models.data.rows import Rows
from monograph.models.onnx_file import read_onnx
from monograph.models.seen import read_seen
from monograph.pipelines.progress import Progress
from monograph.pipelines.run import run_pipeline
from monograph.runtime.session import open_session


@pytest.mark.slow
def test_a_run_trains_fuses_measures_and_reports(tiny_pipeline: Path, tmp_path: Path) -> None:
    result = run_pipeline(tiny_pipeline, tmp_path / "out", progress=Progress(quiet=True))

    fused = read_onnx(result.fused)
    assert fused.contract.class_names == tuple("0123456789")
    record = json.loads(result.result.read_text(encoding="utf-8"))
    assert {row["name"]: row["role"] for row in record["contenders"]} == {
        "mlp": "member",
        "conv": "member",
        "fused": "fused",
        "2 sessions + numpy": "baseline",
        "PyTorch eager": "baseline",
    }
    # The same computation three ways: the same rows are right.
    top1 = {name: one.accuracy.top1.estimate for name, one in result.measurements.items() if one.accuracy}
    assert top1["fused@cpu"] == top1["2 sessions + numpy@cpu"] == top1["PyTorch eager@cpu"]
    assert top1["fused@cpu"] > 0.5
    assert all(one.nodes_per_provider == {"CPUExecutionProvider": sum(one.nodes_per_provider.values())}
               for name, one in result.measurements.items() if "eager" not in name)  # fmt: skip
    assert len(record["proofs"]) == 3
    assert "<html" in result.report.read_text(encoding="utf-8")[:200]

    # The shipped file gives the accuracy that the report states, computed here by hand.
    (data,) = (tmp_path / "out" / "steps").glob("data-*")
    test = Rows.load(data / "test.npz")
    outputs = open_session(result.fused)(test.inputs)["logits"]
    assert np.mean(outputs.argmax(1) == test.labels) == pytest.approx(top1["fused@cpu"])
    # And it says what its members were trained and chosen on, so that no gate takes those rows.
    known = read_seen(fused)
    assert known.among(Rows.load(data / "train.npz").digests).all()
    assert known.among(Rows.load(data / "validation.npz").digests).all()
    assert not known.among(test.digests).any()

    began = time.monotonic()
    again = run_pipeline(tiny_pipeline, tmp_path / "out", progress=Progress(quiet=True))
    assert time.monotonic() - began < 30
    assert again.measurements == result.measurements


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tiny_pipeline: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "monograph", "run", str(tiny_pipeline), "--out", str(tmp_path / "out")]
    steps = tmp_path / "out" / "steps"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while not list(steps.glob("export-mlp-*")) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    finished = {folder.name: folder.stat().st_mtime_ns for folder in steps.iterdir() if not folder.name.startswith(".")}
    assert any(name.startswith("train-conv") for name in finished)

    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "done before" in done.stderr
    assert (tmp_path / "out" / "report.html").exists()
    for name, written_ns in finished.items():
        assert (steps / name).stat().st_mtime_ns == written_ns
    left_over = [entry.name for entry in (tmp_path / "out").rglob(".monograph-*")]
    assert left_over == []


@pytest.mark.slow
def test_an_interrupt_leaves_nothing_half_written(tiny_pipeline: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "monograph", "run", str(tiny_pipeline), "--out", str(tmp_path / "out")]
    steps = tmp_path / "out" / "steps"
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # Where the tests run in the background of a shell they ignore interrupts, and so would the child.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        while not list(steps.glob("data-*")) and process.poll() is None:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert not list((tmp_path / "out").rglob(".monograph-*"))
    assert not (tmp_path / "out" / "report.html").exists()
