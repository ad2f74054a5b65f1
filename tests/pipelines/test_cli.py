"""The command line as a person meets it: results, exit codes, one clear line for every wrong input, nothing written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from monograph.models.onnx_file import read_onnx
from monograph.pipelines.cli import _exit_code
from monograph.runtime.session import open_session, usable_cores

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = _exit_code([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


def classifier(path: Path, class_count: int = 3, width: int = 4) -> Path:
    rng = np.random.default_rng(class_count * 10 + width)
    weight = numpy_helper.from_array(rng.standard_normal((width, class_count)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", class_count])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    return [classifier(tmp_path / "a.onnx"), classifier(tmp_path / "b.onnx")]


def labelled_rows(path: Path, count: int = 60, classes: int = 3, width: int = 4) -> Path:
    rng = np.random.default_rng(0)
    np.savez(path, x=rng.standard_normal((count, width)).astype(np.float32), y=rng.integers(0, classes, count))
    return path


def test_fuse_writes_a_proven_graph(run: Run, pair: list[Path], tmp_path: Path) -> None:
    code, out, _ = run("fuse", *pair, "-o", tmp_path / "fused.onnx", "--weights", "0.25,0.75")
    assert code == 0
    assert "equal at batch 1, 2, 5" in out
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    members = [open_session(path)({"x": x})["logits"] for path in pair]
    fused = open_session(tmp_path / "fused.onnx")({"x": x})["logits"]
    np.testing.assert_allclose(fused, 0.25 * members[0] + 0.75 * members[1], rtol=1e-5)


def test_json_is_all_that_stands_on_standard_output(run: Run, pair: list[Path], tmp_path: Path) -> None:
    data = labelled_rows(tmp_path / "rows.npz")
    code, out, _ = run("fuse", *pair, "-o", tmp_path / "fused.onnx", "--json")
    assert code == 0
    assert json.loads(out)["proof"]["tolerance"] == 1e-4
    code, out, _ = run("measure", pair[0], "--data", data, "--min-runs", "40", "--batch-sizes", "1", "--json")
    assert code == 0
    (measurement,) = json.loads(out)
    assert measurement["accuracy"]["row_count"] == 60
    assert len(measurement["latency"]["samples_ns"]) >= 40
    code, out, _ = run("targets", "--json")
    assert json.loads(out)[0]["evidence"] == "executed"


@pytest.mark.parametrize(("option", "spins"), [([], True), (["--no-spinning"], False)])
def test_threads_that_are_timed_spin_unless_asked_not_to(run: Run, pair: list[Path], option: list[str], spins: bool) -> None:
    code, out, _ = run("measure", pair[0], "--min-runs", "40", "--min-seconds", "0", "--batch-sizes", "1", "--json", *option)
    assert code == 0
    (measurement,) = json.loads(out)
    assert measurement["environment"]["spinning"] is spins
    assert measurement["environment"]["threads"] == usable_cores(), "those that are timed are documented, and not the default's"


def test_measure_writes_a_file_and_a_table(run: Run, pair: list[Path], tmp_path: Path) -> None:
    code, out, _ = run("measure", pair[0], "--min-runs", "40", "--batch-sizes", "1", "-o", tmp_path / "m.json")
    assert code == 0
    assert "p50 ms" in out
    assert json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))[0]["target"] == "cpu"


def test_export_gives_an_onnx_file_a_contract(run: Run, pair: list[Path], tmp_path: Path) -> None:
    code, _, _ = run("export", pair[0], "-o", tmp_path / "named.onnx", "--classes", "cat,dog,eel", "--kind", "logits")
    assert code == 0
    contract = read_onnx(tmp_path / "named.onnx").contract
    assert contract.class_names == ("cat", "dog", "eel")
    assert contract.assumed == ()


def test_export_a_python_factory_by_both_exporters(run: Run, tmp_path: Path) -> None:
    for flag, route in (("--dynamo", "dynamo"), ("--no-dynamo", "torchscript")):
        path = tmp_path / f"{route}.onnx"
        code, out, _ = run("export", "py:monograph.models.students:mlp", "-o", path, "--argument", "width=8", flag, "--json")
        assert code == 0
        assert json.loads(out)["route"] == route


def test_fit_chooses_weights_on_rows(run: Run, pair: list[Path], tmp_path: Path) -> None:
    data = labelled_rows(tmp_path / "rows.npz")
    code, out, _ = run("fuse", *pair, "-o", tmp_path / "fused.onnx", "--fit", data, "--json")
    assert code == 0
    fit = json.loads(out)["plan"]["fit"]
    assert sum(fit["weights"]) == pytest.approx(1)
    assert fit["loss"] <= fit["equal_weights_loss"] + 1e-9


def test_dry_run_prints_the_plan_and_writes_nothing(run: Run, pair: list[Path], tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    code, out, _ = run("fuse", *pair, "--dry-run")
    assert code == 0
    assert "0.5000 x a" in out
    assert sorted(tmp_path.iterdir()) == before


def _missing(folder: Path) -> list[str | Path]:
    return ["fuse", folder / "a.onnx", folder / "missing.onnx", "-o", folder / "out.onnx"]


def _truncated(folder: Path) -> list[str | Path]:
    whole = classifier(folder / "whole.onnx", width=500).read_bytes()
    (folder / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    return ["fuse", folder / "a.onnx", folder / "cut.onnx", "-o", folder / "out.onnx"]


def _random_bytes(folder: Path) -> list[str | Path]:
    (folder / "noise.onnx").write_bytes(np.random.default_rng(0).bytes(5000))
    return ["measure", folder / "noise.onnx"]


def _outside_data(folder: Path) -> list[str | Path]:
    (folder / "inner").mkdir()
    model = onnx.load(classifier(folder / "whole.onnx", width=500))
    onnx.save(model, folder / "inner" / "model.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    (folder / "inner" / "w.data").rename(folder / "w.data")
    proto = onnx.load(folder / "inner" / "model.onnx", load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../w.data"
    (folder / "inner" / "model.onnx").write_bytes(proto.SerializeToString())
    return ["fuse", folder / "a.onnx", folder / "inner" / "model.onnx", "-o", folder / "out.onnx"]


def _class_counts(folder: Path) -> list[str | Path]:
    return ["fuse", folder / "a.onnx", classifier(folder / "c.onnx", class_count=5), "-o", folder / "out.onnx"]


def _shapes(folder: Path) -> list[str | Path]:
    return ["fuse", folder / "a.onnx", classifier(folder / "c.onnx", width=6), "-o", folder / "out.onnx"]


def _weights(text: str) -> Callable[[Path], list[str | Path]]:
    return lambda folder: ["fuse", folder / "a.onnx", folder / "b.onnx", "--weights", text, "-o", folder / "out.onnx"]


def _pickle(folder: Path) -> list[str | Path]:
    import torch

    torch.save({"weight": torch.zeros(2)}, folder / "model.pt")
    return ["export", "py:monograph.models.students:mlp", "--weights", folder / "model.pt", "-o", folder / "out.onnx"]


def _empty_data(folder: Path) -> list[str | Path]:
    labelled_rows(folder / "empty.npz", count=0)
    return ["measure", folder / "a.onnx", "--data", folder / "empty.npz"]


def _label_range(folder: Path) -> list[str | Path]:
    labelled_rows(folder / "labels.npz", classes=9)
    return ["measure", folder / "a.onnx", "--data", folder / "labels.npz"]


def _option(*option: str) -> Callable[[Path], list[str | Path]]:
    return lambda folder: ["fuse", folder / "a.onnx", folder / "b.onnx", "-o", folder / "out.onnx", *option]


WRONG: dict[str, tuple[Callable[[Path], list[str | Path]], str]] = {
    "missing file": (_missing, "no such file"),
    "truncated file": (_truncated, "not an ONNX file, or is cut short"),
    "random bytes": (_random_bytes, "noise.onnx"),
    "external data outside": (_outside_data, "outside the model's folder"),
    "class counts": (_class_counts, "a has 3 classes but c has 5"),
    "shapes": (_shapes, "4 is not 6"),
    "NaN weight": (_weights("nan,1"), "not all finite"),
    "weights that do not sum to 1": (_weights("0.5,0.7"), "sum to 1.2, expected 1: pass --normalize"),
    "too few weights": (_weights("1"), "1 weights (1) for 2 members"),
    "negative weight": (_weights("-0.5,1.5"), "not all positive"),
    "weights that are no numbers": (_weights("a,b"), "not a number"),
    "pickle": (_pickle, "is a pickle"),
    "empty dataset": (_empty_data, "no rows"),
    "labels out of range": (_label_range, "row 0 has label 3, expected 0 to 2"),
    "unknown option": (_option("--wieghts"), "No such option"),
    "unknown form": (_option("--combine", "blend"), "choose --combine"),
    "one member": (lambda f: ["fuse", f / "a.onnx", "-o", f / "out.onnx"], "two or more"),
    "no output": (lambda f: ["fuse", f / "a.onnx", f / "b.onnx"], "give -o"),
    "output is a member": (lambda f: ["fuse", f / "a.onnx", f / "b.onnx", "-o", f / "a.onnx"], "one of the members"),
    "unknown target": (lambda f: ["measure", f / "a.onnx", "--on", "abacus"], "unknown target 'abacus'"),
    "no source": (lambda f: ["export", "resnet", "-o", f / "out.onnx"], "no model source"),
    "unknown module": (lambda f: ["export", "py:no_such_module:build", "-o", f / "out.onnx"], "no module"),
    "bad input text": (lambda f: ["export", "py:torch.nn:Identity", "--input", "x", "-o", f / "out.onnx"], "NAME:DTYPE"),
    "no contract": (lambda f: ["export", "py:torch.nn:Identity", "-o", f / "out.onnx"], "without a contract"),
    "wrong ending": (lambda f: ["export", f / "a.onnx", "-o", f / "out.txt"], "does not end in .onnx"),
    "unwritable place": (lambda f: ["export", f / "a.onnx", "-o", f / "a.onnx" / "out.onnx"], "cannot write"),
    "missing pipeline": (lambda f: ["run", f / "missing.yaml"], "no such pipeline file"),
    "missing data": (lambda f: ["measure", f / "a.onnx", "--data", f / "rows.csv"], "no such file"),
    "no command": (lambda f: ["fues"], "No such command"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_exit_2_and_nothing_written(run: Run, pair: list[Path], tmp_path: Path, case: str) -> None:
    build, message = WRONG[case]
    arguments = build(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, out, err = run(*arguments)
    assert code == 2, err
    lines = [line for line in err.splitlines() if line.startswith("monograph:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in err
    assert out == ""
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_normalize_scales_the_weights_and_says_so(run: Run, pair: list[Path], tmp_path: Path) -> None:
    code, out, err = run("fuse", *pair, "-o", tmp_path / "fused.onnx", "--weights", "1,3", "--normalize")
    assert code == 0
    assert "0.25 x a, 0.75 x b" in out
    assert "weights were scaled to sum to 1: 0.25, 0.75" in err


@pytest.mark.parametrize("command", [[], ["run"], ["export"], ["fuse"], ["measure"], ["targets"]])
def test_every_verb_has_help(run: Run, command: list[str]) -> None:
    code, out, _ = run(*command, "--help")
    assert code == 0
    assert "Usage: monograph" in out


def test_the_module_and_the_command_are_the_same() -> None:
    done = subprocess.run([sys.executable, "-m", "monograph", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("monograph ")


def test_importing_the_package_and_its_help_load_no_torch() -> None:
    code = (
        "import sys, monograph, monograph.pipelines.cli; print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
