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
    (output,) = open_session(path)({"x": x}).values()
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
    assert set(plan["fit"]["gain"]["forms_tried"]) == {"logits", "probs", "class-weights", "geometric", "vote", "stack"}
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


class TestClassWeights:
    def test_from_a_file(self, run: Run, world: Mapping[str, Path], tmp_path: Path):
        table = tmp_path / "weights.csv"
        table.write_text("member,q,p,r\nb,0.25,0.5,1\na,0.75,0.5,0\n")
        code, out, _ = run("fuse", world["a"], world["b"], "-o", tmp_path / "fused.onnx", "--class-weights", table, "--json")
        assert code == 0
        assert json.loads(out)["plan"]["form"] == "class-weights"
        x = np.random.default_rng(1).standard_normal((5, 4), dtype=np.float32)
        a, b = (softmax(logits_of(world[name], x), 1) for name in "ab")
        expected = a * (0.5, 0.75, 0) + b * (0.5, 0.25, 1)
        np.testing.assert_allclose(logits_of(tmp_path / "fused.onnx", x), expected / expected.sum(1, keepdims=True), atol=1e-6)

    @pytest.mark.parametrize(
        ("text", "options", "message"),
        [
            ("member,p,q,r\na,1,1,1\nc,0,0,0\n", [], "weights.csv: members: 'c' is unknown; expected a, b, each once"),
            ("member,p,q,r\na,1,1,1\nb,0,0,1\n", [], "the weights for class 'r' sum to 2, expected 1: pass --normalize"),
            ("", ["--weights", "0.5,0.5"], "--class-weights and --weights exclude each other"),
            ("", ["--fit", "rows.npz"], "--class-weights and --fit exclude each other"),
            ("", ["--cascade", "--threshold", "0.5"], "--class-weights does not go with --cascade"),
            ("member,p,q,r\na,1,1,1\nb,0,0,0\n", ["--combine", "vote"], "--combine vote takes no weights by class"),
        ],
    )
    def test_refused(self, run: Run, world: Mapping[str, Path], tmp_path: Path, text: str, options: list[str], message: str):
        table = tmp_path / "weights.csv"
        table.write_text(text)
        code, out, err = run("fuse", world["a"], world["b"], "-o", tmp_path / "fused.onnx", "--class-weights", table, *options)
        assert (code, out) == (2, "")
        assert message in " ".join(err.split())
        assert not (tmp_path / "fused.onnx").exists()


@pytest.fixture
def prices(tmp_path: Path) -> Mapping[str, Path]:
    """Two linear regressions of three features, and a table of rows with targets halfway between them."""
    paths, x = {}, np.random.default_rng(2).standard_normal((60, 3), dtype=np.float32)
    for seed, name in enumerate("ab"):
        proto = onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["": 20]>
            m (float[batch, 3] x) => (float[batch, 1] price) { price = MatMul(x, w) }"""
        )
        weight = np.random.default_rng(seed).standard_normal((3, 1), dtype=np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
        specs = (TensorSpec("x", "float32", ("batch", 3)),), (TensorSpec("price", "float32", ("batch", 1)),)
        onnx.helper.set_model_props(proto, {CONTRACT_KEY: Contract(*specs, Kind.REGRESSION).to_json()})
        paths[name] = tmp_path / f"{name}.onnx"
        onnx.save(proto, paths[name])
    targets = (logits_of(paths["a"], x) + logits_of(paths["b"], x)) / 2
    paths["table"] = tmp_path / "rows.csv"
    np.savetxt(paths["table"], np.hstack([x, targets]), delimiter=",", header="f0,f1,f2,price", comments="")
    return paths


class TestRegression:
    @pytest.mark.parametrize("form", ["mean", "stack", "auto"])
    def test_fitted_on_a_table_of_targets(self, run: Run, prices: Mapping[str, Path], tmp_path: Path, form: str):
        arguments = ("--fit", prices["table"], "--data-column", "y=price", "--combine", form, "--json")
        code, out, _ = run("fuse", prices["a"], prices["b"], "-o", tmp_path / "fused.onnx", *arguments)
        assert code == 0
        plan = json.loads(out)["plan"]
        assert (plan["contract"]["kind"], plan["fit"]["loss_name"], plan["fit"]["gain"]["unit"]) == ("regression", "RMSE", "RMSE")
        table = np.loadtxt(prices["table"], delimiter=",", skiprows=1)
        fused = logits_of(tmp_path / "fused.onnx", table[:, :3].astype(np.float32))
        np.testing.assert_allclose(fused[:, 0], table[:, 3], atol=1e-3)

    def test_calibrate_is_refused(self, run: Run, prices: Mapping[str, Path], tmp_path: Path):
        arguments = ("--fit", prices["table"], "--data-column", "y=price", "--calibrate")
        code, out, err = run("fuse", prices["a"], prices["b"], "-o", tmp_path / "fused.onnx", *arguments)
        assert (code, out) == (2, "")
        assert "--calibrate fits temperatures of logits, but a and b give regression: leave it out" in " ".join(err.split())


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


class TestMemberOutputs:
    def test_a_second_file_gives_each_members_own(self, run: Run, world: Mapping[str, Path], tmp_path: Path):
        plain, fused = tmp_path / "plain/fused.onnx", tmp_path / "with/fused.onnx"
        arguments = ("--combine", "probs", "--weights", "0.3,0.7", "--temperatures", "2,1", "--data", world["rows"])
        assert run("fuse", world["a"], world["b"], "-o", plain, *arguments)[0] == 0
        code, out, _ = run("fuse", world["a"], world["b"], "-o", fused, *arguments, "--member-outputs", "--json")
        assert code == 0
        teaching = json.loads(out)["teaching"]
        assert [path.name for path in sorted(fused.parent.iterdir())] == ["fused.onnx", "fused.teaching.onnx"]
        assert fused.read_bytes() == plain.read_bytes()
        assert teaching["outputs"] == [
            {"output": f"member_{at}_{name}_logits", "kind": "logits", "weight": weight, "temperature": t, "class_weights": None}
            for at, (name, weight, t) in enumerate((("a", 0.3, 2.0), ("b", 0.7, 1.0)))
        ]
        assert {batch["rows"] for batch in teaching["proof"]["batches"]} == {"real"}
        x = np.random.default_rng(1).standard_normal((5, 4), dtype=np.float32)
        given = open_session(Path(teaching["path"]))({"x": x})
        np.testing.assert_allclose(given["member_0_a_logits"], logits_of(world["a"], x), atol=1e-6)
        np.testing.assert_allclose(given["member_1_b_logits"], logits_of(world["b"], x), atol=1e-6)
        np.testing.assert_allclose(given["probabilities"], logits_of(fused, x), atol=1e-6)

    def test_is_told_and_verified(self, run: Run, world: Mapping[str, Path], tmp_path: Path):
        code, out, err = run("fuse", world["part"], world["a"], "-o", tmp_path / "fused.onnx", "--member-outputs")
        assert code == 0
        assert "fused.teaching.onnx gives member_0_part_logits, member_1_a_logits too" in " ".join(out.split())
        assert "part does not know all classes: its own output gives those a probability of 0" in " ".join(err.split())
        code, out, _ = run("verify", tmp_path / "fused.teaching.onnx", "--members", world["a"], world["part"])
        assert code == 0
        assert "against part, a run apart: batch 16, random rows, output member_0_part_logits: equal" in out

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--soup"], "does not go with --soup, which leaves one network: give the members themselves to `monograph distill`"),
            (
                ["--cascade", "--threshold", "0.5"],
                "does not go with --cascade, whose later members run for unsure rows only: give",
            ),
        ],
    )
    def test_refused(self, run: Run, world: Mapping[str, Path], tmp_path: Path, options: list[str], message: str):
        before = sorted(tmp_path.iterdir())
        code, out, err = run("fuse", world["a"], world["b"], "-o", tmp_path / "fused.onnx", "--member-outputs", *options)
        assert (code, out) == (2, "")
        assert f"--member-outputs {message}" in " ".join(err.split())
        assert sorted(tmp_path.iterdir()) == before

    def test_a_member_is_not_written_over(self, run: Run, world: Mapping[str, Path], tmp_path: Path):
        member = world["a"].rename(tmp_path / "fused.teaching.onnx")
        code, _, err = run("fuse", member, world["b"], "-o", tmp_path / "fused.onnx", "--member-outputs")
        assert code == 2
        assert "is one of the members: choose another name" in " ".join(err.split())
        assert not (tmp_path / "fused.onnx").exists()


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
