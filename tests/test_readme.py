"""What the README tells a reader to type works as it stands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_the_python_example(tmp_path: Path) -> None:
    (code,) = _blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal at batch 1, 2, 5") == 2
    assert re.search(r"^fused \d+\.\d ms$", done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_the_commands(tmp_path: Path) -> None:
    commands = [line for block in _blocks("sh") for line in block.splitlines() if line.startswith("monograph ")]
    verbs = [shlex.split(command)[1] for command in commands]
    assert verbs == [
        "export",
        "export",
        "fuse",
        "verify",
        "measure",
        "targets",
        "distill",
        "measure",
        "measure",
        "fuse",
        "interop",
        "gate",
    ]
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", *shlex.split(command)], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (command, done.stderr)
    assert (tmp_path / "fused.onnx").exists()
    assert (tmp_path / "cascade.onnx").exists()


def test_the_test_command_is_what_ci_runs() -> None:
    assert "make test" in "".join(_blocks("sh"))
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1] == "make test"


def test_files_that_the_readme_points_to_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
