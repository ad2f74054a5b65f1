"""The options of ``fuse`` beyond the plain weighted mean, as a person meets them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from scipy.special import softmax

from monograph.models.contract import CONTRACT_KEY, Contract, Kind, TensorSpec
from monograph.pipelines.cli import _exit_code
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = _exit_code([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


def logits_of(path: Path, x: Array) -> Array:
    (output,) = open_session(path, spinning=False)({"x": x}).values()
    return output.astype(np.float64)


@pytest.fixture
def world(tmp_path: Path) -> Mapping[str, Path]:
    """Three linear classifiers, one of which lacks a class, and rows labelled as the first two together see them."""
    paths: dict[str, Path] = {}
    for seed, (name, classes) in enumerate({"a": "pqr", "b": "pqr", "part": "rp"}.items()):
        proto = onnx.parser.parse_model(
            f"""<ir_version: 8, opset_import: ["": 20]>
            m (float[batch, 4] x) => (float[batch, {len(classes)}] logits) {{ logits = MatMul(x, w) }}"""
        )
        weight = np.random.default_rng(seed).standard_normal((4, len(classes)), dtype=np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
        outputs = (TensorSpec("logits", "float32", ("batch", len(classes))),)
        contract = Contract((TensorSpec("x", "float32", ("batch", 4)),), outputs, Kind.LOGITS, tuple(classes))
        onnx.helper.set_model_props(proto, {CONTRACT_KEY: contract.to_json()})
        paths[name] = tmp_path / f"{name}.onnx"
        onnx.save(proto, paths[name])
    rng = np.random.default_rng(9)
    x = rng.standard_normal((300, 4), dtype=np.float32)
    noise = rng.gumbel(size=(300, 3))
    paths["rows"] = tmp_path / "rows.npz"
    np.savez(paths["rows"], x=x, y=(logits_of(paths["a"], x) + logits_of(paths["b"], x) + noise).argmax(1))
    return paths


def test_the_form_is_chosen_on_validation_rows(run: Run, world: Mapping[str, Path], tmp_path: Path):
    fused = tmp_path / "fused.onnx"
    code, out, _ = run("fuse", world["a"], world["b"], "-o", fused, "--fit", world["rows"], "--combine", "auto", "--json")
    assert code == 0
    plan = json.loads(out)["plan"]
    assert plan["fit"]["form"] == plan["form"]
    assert set(plan["fit"]["gain"]["forms_tried"]) == {"logits", "probs", "geometric", "vote", "stack"}
    with np.load(world["rows"]) as rows:
        right = [(logits_of(path, rows["x"]).argmax(1) == rows["y"]).mean() for path in (world["a"], world["b"], fused)]
    assert right[2] > max(right[:2])


def test_calibrated_members(run: Run, world: Mapping[str, Path], tmp_path: Path):
    arguments = ("--fit", world["rows"], "--combine", "probs", "--calibrate", "--search", "greedy", "--json")
    code, out, _ = run("fuse", world["a"], world["b"], "-o", tmp_path / "fused.onnx", *arguments)
    assert code == 0
    members = json.loads(out)["plan"]["members"]
    x = np.random.default_rng(1).standard_normal((5, 4), dtype=np.float32)
    expected = sum(m["weight"] * softmax(logits_of(world[m["name"]], x) / m["temperature"], 1) for m in members)
    np.testing.assert_allclose(logits_of(tmp_path / "fused.onnx", x), expected, atol=1e-6)
    assert all(member["temperature"] != 1 for member in members)


def test_a_member_without_some_classes_is_fitted_too(run: Run, world: Mapping[str, Path], tmp_path: Path):
    code, out, _ = run("fuse", world["part"], world["a"], "-o", tmp_path / "fused.onnx", "--fit", world["rows"], "--json")
    assert code == 0
    contract = json.loads(out)["plan"]["contract"]
    assert (contract["class_names"], contract["kind"]) == (["p", "q", "r"], "probabilities")


class TestCascade:
    @pytest.mark.parametrize(("threshold", "answers"), [("0", "a"), ("1.1", "b")])
    def test_threshold(self, run: Run, world: Mapping[str, Path], tmp_path: Path, threshold: str, answers: str):
        out_path = tmp_path / "cascade.onnx"
        code, out, _ = run("fuse", world["a"], world["b"], "--cascade", "--threshold", threshold, "-o", out_path)
        assert code == 0
        assert "equal at batch 1, 2, 5, 16" in out
        x = np.random.default_rng(1).standard_normal((7, 4), dtype=np.float32)
        np.testing.assert_allclose(logits_of(out_path, x), logits_of(world[answers], x), atol=1e-6)

    def test_fitted(self, run: Run, world: Mapping[str, Path], tmp_path: Path):
        arguments = ("--cascade", "--fit", world["rows"], "--gate", "margin", "--max-drop", "1")
        code, out, _ = run("fuse", world["a"], world["b"], *arguments, "-o", tmp_path / "cascade.onnx", "--json")
        assert code == 0
        fit = json.loads(out)["plan"]["fit"]
        assert fit["cascade_accuracy"] >= fit["member_accuracy"][-1] - 0.01
        assert 0 < fit["shares"][1] < 1

    def test_dry_run_states_the_cost(self, run: Run, world: Mapping[str, Path], tmp_path: Path):
        before = sorted(tmp_path.iterdir())
        code, out, _ = run("fuse", world["a"], world["b"], "--cascade", "--fit", world["rows"], "--dry-run")
        assert code == 0
        assert "worst case 2.000" in out
        code, out, _ = run("fuse", world["a"], world["b"], "--cascade", "--fit", world["rows"], "--dry-run", "--json")
        assert code == 0
        assert json.loads(out)["plan"]["cost"]["worst"] == 2
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--combine", "auto"], "--combine auto learns from labelled validation rows: give them by --fit DATA"),
        (["--calibrate"], "--calibrate learns from labelled validation rows: give them by --fit DATA"),
        (["--search", "greedy"], "--search learns from labelled validation rows: give them by --fit DATA"),
        (["--temperatures", "1,x"], "'1,x' holds something that is not a number: temperatures are written 0.3,0.7"),
        (["--temperatures", "1,-2"], "b has temperature -2, expected a positive number"),
        (["--threshold", "0.5"], "--threshold and --gate speak of a cascade: add --cascade"),
        (["--cascade"], "neither of --threshold and --fit given"),
        (["--cascade", "--threshold", "0.5,0.5"], "2 thresholds (0.5, 0.5) for 2 members: give 1"),
        (["--cascade", "--threshold", "0.5", "--gate", "hunch"], "hunch"),
        (["--cascade", "--threshold", "0.5", "--weights", "1,0"], "--weights does not go with --cascade"),
    ],
)
def test_refused(run: Run, world: Mapping[str, Path], tmp_path: Path, options: list[str], message: str):
    before = sorted(tmp_path.iterdir())
    code, out, err = run("fuse", world["a"], world["b"], "-o", tmp_path / "fused.onnx", *options)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert sorted(tmp_path.iterdir()) == before
