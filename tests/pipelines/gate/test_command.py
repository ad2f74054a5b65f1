"""``monograph gate`` as a person and a CI meet it: exit codes, files, nothing but JSON on standard output."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from monograph.models.data.load import load_rows
from monograph.models.onnx_file import read_onnx
from monograph.models.seen import seen, seen_metadata
from monograph.pipelines.cli import _exit_code

Run = Callable[..., tuple[int, str, str]]
ACCURACY = "accuracy: {max_loss_points: 1}\n"


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = _exit_code([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    (tmp_path / "policy.yaml").write_text(ACCURACY, encoding="utf-8")
    return tmp_path / "policy.yaml"


def test_pass_writes_what_was_asked_for(run: Run, digits, in_process, tmp_path: Path):
    code, out, err = run(
        "gate", digits.near, "--against", digits.reference, "--data", digits.test, "--junit", tmp_path / "ci" / "gate.xml",
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert code == 0
    assert "pass: all 6 checks passed" in out
    assert "no --policy was given" in err
    assert "max_negative_points: 3.0" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["verdict.html", "verdict.json"]
    assert ElementTree.parse(tmp_path / "ci" / "gate.xml").getroot().get("failures") == "0"


def test_fail_is_one(run: Run, digits, in_process, policy: Path):
    code, out, _ = run("gate", digits.bad, "--against", digits.reference, "--data", digits.test, "--policy", policy)
    assert code == 1
    assert "fail: 1 of 1 checks failed" in out


def test_inconclusive_is_three_and_says_how_many_more(run: Run, digits, in_process, policy: Path):
    code, out, _ = run("gate", digits.near, "--against", digits.reference, "--data", digits.few, "--policy", policy)
    assert code == 3
    assert "more rows would decide" in out
    assert "inconclusive: 1 of 1 undecided, which blocks too" in out


def test_json_is_all_that_stands_on_standard_output(run: Run, digits, in_process, policy: Path):
    code, out, _ = run("gate", digits.near, "--against", digits.reference, "--data", digits.few, "--policy", policy, "--json")
    assert code == 3
    record = json.loads(out)
    assert record["outcome"] == "inconclusive"
    assert record["checks"][0]["needed"] > 60


def test_a_leaked_gate_set_is_two(run: Run, digits, in_process, policy: Path, tmp_path: Path):
    import onnx
    from onnx import helper

    model = onnx.load(digits.near)
    known = seen("fit", load_rows(str(digits.few), read_onnx(digits.near).contract))
    helper.set_model_props(model, seen_metadata(known, tmp_path / "leaked.onnx"))
    onnx.save(model, tmp_path / "leaked.onnx")
    code, out, err = run(
        "gate",
        tmp_path / "leaked.onnx",
        "--against",
        digits.reference,
        "--data",
        digits.test,
        "--policy",
        policy,
        "-o",
        tmp_path / "out",
    )
    assert (code, out) == (2, "")
    assert "60 of 1198 rows" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["near.onnx"], "--against"),
        (["missing.onnx", "--against", "reference.onnx"], "no such file"),
        (["near.onnx", "--against", "reference.onnx"], "give them by --data"),
        (["near.onnx", "--against", "reference.onnx", "--data", "few.npz", "--on", "abacus"], "unknown target 'abacus'"),
        (["near.onnx", "--against", "reference.onnx", "--data", "few.npz", "--policy", "none.yaml"], "no such policy file"),
        (["near.onnx", "--against", "reference.onnx", "--data", "few.npz", "--group", "patient"], "no column 'patient'"),
    ],
)
def test_wrong_input_is_one_line_and_two(run: Run, digits, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str):
    monkeypatch.chdir(digits.folder)
    code, out, err = run("gate", *arguments)
    assert (code, out) == (2, "")
    (line,) = [line for line in err.splitlines() if line.startswith("monograph:")]
    assert message in line


def test_a_policy_to_start_from(run: Run):
    code, out, _ = run("gate", "--print-policy")
    assert code == 0
    assert yaml.safe_load(out)["accuracy"] == {"max_loss_points": 1.0}


@pytest.mark.slow
def test_real_processes_and_times(run: Run, digits, tmp_path: Path):
    limits = (
        "{p50_ms: 1000, p99_ms: 1000, first_run_ms: 5000, load_ms: 60000, peak_memory_mb: 4000, min_macs_share: 1, p50_ratio: 50}"
    )
    (tmp_path / "policy.yaml").write_text(
        f"{ACCURACY}targets: {{cpu: {limits}}}\nmeasuring: {{starts: 5, blocks: 6}}\n", encoding="utf-8"
    )
    code, out, _ = run(
        "gate", digits.near, "--against", digits.reference, "--data", digits.test, "--policy", tmp_path / "policy.yaml", "--json"
    )
    record = json.loads(out)
    assert code == 0, record["checks"]
    assert len(record["checks"]) == 8
    assert len(record["measurements"][0]["latency"]["samples_ns"]) >= 400
