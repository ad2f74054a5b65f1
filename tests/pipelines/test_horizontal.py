"""``fuse --horizontal`` as a person meets it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from monograph.export.fusion import FUSION_KEY
from monograph.models.onnx_file import read_onnx
from monograph.pipelines.cli import _exit_code
from monograph.pipelines.fuse import fuse_models
from monograph.pipelines.horizontal import measured_horizontal
from monograph.runtime.job import Job, RawRun, run_in_process
from monograph.runtime.session import open_session
from monograph.runtime.targets import TARGETS

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = _exit_code([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return code, captured.out, " ".join(captured.err.split())

    return call


@pytest.fixture
def world(tmp_path: Path) -> Mapping[str, Path]:
    """Two perceptrons of one architecture, and one that is wider."""
    paths: dict[str, Path] = {}
    for seed, (name, width) in enumerate({"a": 16, "b": 16, "wide": 24}.items()):
        proto = onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["": 20]>
            m (float[batch, 4] x) => (float[batch, 3] logits) { h = Gemm(x, w) r = Relu(h) logits = Gemm(r, v) }"""
        )
        rng = np.random.default_rng(seed)
        for key, shape in {"w": (4, width), "v": (width, 3)}.items():
            proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32), key))
        paths[name] = tmp_path / f"{name}.onnx"
        onnx.save(proto, paths[name])
    return paths


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_off_by_default_with_a_note_where_it_might_pay(run: Run, world: Mapping[str, Path], tmp_path: Path):
    code, _, err = run("fuse", world["a"], world["b"], "-o", tmp_path / "fused.onnx")
    assert code == 0
    assert "members look like one architecture: --horizontal auto measures" in err
    assert operators(tmp_path / "fused.onnx").count("Gemm") == 4
    assert "horizontal" not in json.loads(read_onnx(tmp_path / "fused.onnx").metadata[FUSION_KEY])
    _, _, err = run("fuse", world["a"], world["wide"], "-o", tmp_path / "other.onnx")
    assert "one architecture" not in err


def test_on(run: Run, world: Mapping[str, Path], tmp_path: Path):
    code, out, _ = run("fuse", world["a"], world["b"], "-o", tmp_path / "fused.onnx", "--horizontal", "on")
    assert code == 0
    assert "horizontal: batched, as asked for" in out
    assert "3 of 3 nodes of each of 2 members run as one" in out
    assert "equal at batch 1, 2, 5, 16" in out
    assert operators(tmp_path / "fused.onnx").count("Gemm") == 1


def test_on_refuses_another_architecture_in_a_dry_run_too(run: Run, world: Mapping[str, Path], tmp_path: Path):
    before = sorted(tmp_path.iterdir())
    for options in (["-o", tmp_path / "fused.onnx"], ["--dry-run"]):
        code, out, err = run("fuse", world["a"], world["wide"], "--horizontal", "on", *options)
        assert (code, out) == (2, "")
        assert "node 'a/Gemm_0' and node 'wide/Gemm_0' differ in an input of Gemm" in err
        assert "a weight FLOAT [4, 16] and a weight FLOAT [4, 24]" in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_auto_takes_what_was_measured(run: Run, world: Mapping[str, Path], tmp_path: Path):
    path = tmp_path / "fused.onnx"
    code, out, _ = run("fuse", world["a"], world["b"], "-o", path, "--horizontal", "auto", "--on", "cpu", "--json")
    assert code == 0
    choice = json.loads(out)["plan"]["horizontal"]
    assert choice["target"] == "cpu"
    assert choice["ratio"]["low"] <= choice["ratio"]["estimate"] <= choice["ratio"]["high"]
    assert choice["batched"] is (choice["ratio"]["high"] < 1)
    assert operators(path).count("Gemm") == (1 if choice["batched"] else 4)
    assert json.loads(read_onnx(path).metadata[FUSION_KEY])["horizontal"] == choice
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.onnx", "b.onnx", "fused.onnx", "wide.onnx"]


def test_auto_leaves_other_architectures_apart_and_says_why(run: Run, world: Mapping[str, Path], tmp_path: Path):
    code, out, _ = run("fuse", world["a"], world["wide"], "-o", tmp_path / "fused.onnx", "--horizontal", "auto")
    assert code == 0
    assert "horizontal: apart, not measured: a, wide are not of one architecture" in out


def test_both_graphs_are_timed_in_processes_of_their_own(world: Mapping[str, Path], tmp_path: Path):
    plan = fuse_models([world["a"], world["b"]], tmp_path / "fused.onnx").plan
    timed: list[str] = []
    chosen = measured_horizontal(plan, None, on=None, tolerance=1e-4, blocks=1, on_progress=timed.append)
    assert sorted(timed) == ["apart", "apart", "batched", "batched"]
    assert timed == timed[::-1]
    assert chosen.horizontal is not None
    assert chosen.horizontal.ratio is not None
    assert chosen.horizontal.ratio.estimate > 0


def test_a_fused_file_computes_what_its_members_do(world: Mapping[str, Path], tmp_path: Path):
    fused = fuse_models([world["a"], world["b"]], tmp_path / "fused.onnx", weights=(0.3, 0.7), horizontal="on")
    x = np.random.default_rng(5).standard_normal((9, 4), dtype=np.float32)
    outputs = [open_session(path)({"x": x})["logits"] for path in (world["a"], world["b"], fused.file.path)]
    np.testing.assert_allclose(outputs[2], 0.3 * outputs[0] + 0.7 * outputs[1], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--horizontal", "perhaps"], "unknown choice 'perhaps': choose --horizontal from off, auto, on"),
        (["--horizontal", "on", "--no-share"], "--horizontal builds on what --share finds: leave out --no-share"),
        (["--horizontal", "on", "--on", "cpu"], "--on cpu says where --horizontal auto measures: add --horizontal auto"),
        (["--on", "cpu"], "--on cpu says where --horizontal auto measures: add --horizontal auto"),
        (["--horizontal", "auto", "--on", "abacus"], "unknown target 'abacus': choose from cpu"),
        (["--horizontal", "on", "--cascade", "--threshold", "0.5"], "--horizontal does not go with --cascade"),
    ],
)
def test_refused(run: Run, world: Mapping[str, Path], tmp_path: Path, options: list[str], message: str):
    before = sorted(tmp_path.iterdir())
    code, out, err = run("fuse", world["a"], world["b"], "-o", tmp_path / "fused.onnx", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["arm64", "nnapi"])
def test_a_target_without_a_latency_decides_nothing(run: Run, world: Mapping[str, Path], tmp_path: Path, name: str):
    if not TARGETS[name].is_available():
        pytest.skip(TARGETS[name].describe())
    code, _, err = run("fuse", world["a"], world["b"], "-o", tmp_path / "f.onnx", "--horizontal", "auto", "--on", name)
    assert code == 2
    assert f"decides by latency, and none can be measured on {name} here" in err
    assert not (tmp_path / "f.onnx").exists()


def test_the_target_itself_is_timed(world: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    jobs: list[Job] = []

    def run(job: Job) -> RawRun:
        jobs.append(job)
        return run_in_process(job)

    monkeypatch.setitem(TARGETS, "board", replace(TARGETS["cpu"], name="board", run=run))
    fuse_models([world["a"], world["b"]], tmp_path / "f.onnx", horizontal="auto", on="board")
    assert {job.contender.name for job in jobs} == {"batched", "apart"}
