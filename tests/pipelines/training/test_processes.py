"""Several processes take the same steps as one, with no change of code; one of them writes and speaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from monograph.models.data.digits import optical_digits

pytestmark = pytest.mark.slow
_PROCESSES = 2


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a distillation whose rows do not depend on one another: no BatchNorm, and no dropout."""
    (tmp_path / "networks.py").write_text(
        "import os, pathlib, torch\n"
        "from monograph.models.students import mlp\n"
        "def teacher():\n"
        "    torch.manual_seed(0)\n"
        "    return mlp((1, 8, 8), width=32, dropout=0.0)\n"
        "def student():\n"
        "    pathlib.Path(__file__).with_name('rank' + os.environ.get('RANK', '')).touch()\n"
        "    torch.manual_seed(1)\n"
        "    return mlp((1, 8, 8), width=8, dropout=0.0)\n"
    )
    table = optical_digits()
    np.savez(tmp_path / "data.npz", x=table["x"][:400], y=table["y"][:400])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    chosen = ["--teacher", "py:networks:teacher", "--student", "py:networks:student", "--data", str(tmp_path / "data.npz")]
    training = [
        "--epochs",
        "3",
        "--batch-size",
        "32",
        "--augment",
        "shift",
        "--views",
        "2",
        "--hint",
        "2=2",
        "--on",
        "",
        "--json",
    ]
    return ["-m", "monograph", "distill", *chosen, *training]


def test_two_processes_take_the_steps_of_one(tmp_path: Path, arguments: list[str]):
    one = subprocess.run(
        [sys.executable, *arguments, "-o", str(tmp_path / "one")], capture_output=True, text=True, timeout=300, check=True
    )
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(_PROCESSES)]
    two = subprocess.run(
        [sys.executable, *launch, *arguments, "-o", str(tmp_path / "two")],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert {path.name for path in tmp_path.glob("rank*")} == {"rank", "rank0", "rank1"}, two.stderr
    assert two.returncode == 0, two.stderr
    weights = [load_file(tmp_path / name / "student.safetensors") for name in ("one", "two")]
    for name, expected in weights[0].items():
        np.testing.assert_allclose(weights[1][name], expected, atol=1e-4, err_msg=name)
    records = [json.loads(each.stdout) for each in (one, two)]  # nothing else is printed, and that once
    losses = [[epoch["train_loss"] for epoch in record["training"]["epochs"]] for record in records]
    assert len(losses[0]) == 3
    np.testing.assert_allclose(losses[0][0], losses[1][0], rtol=0.2)
