from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from monograph.errors import ConfigError
from monograph.pipelines.progress import Progress
from monograph.pipelines.steps import open_workspace


def test_a_finished_step_is_not_done_again(tmp_path: Path) -> None:
    calls = []

    def work(folder: Path) -> None:
        calls.append(folder)
        (folder / "result").write_text("done", encoding="utf-8")

    for _ in range(2):
        with open_workspace(tmp_path, Progress(quiet=True)) as workspace:
            folder = workspace.step("work", {"a": 1}, work)
            assert (folder / "result").read_text(encoding="utf-8") == "done"
    assert len(calls) == 1


def test_other_parameters_are_another_step(tmp_path: Path) -> None:
    with open_workspace(tmp_path, Progress(quiet=True)) as workspace:
        folders = {workspace.step("work", {"a": value}, lambda folder: None) for value in (1, 2, "2")}
    assert len(folders) == 3


def test_names_with_spaces_and_signs_become_plain_folders(tmp_path: Path) -> None:
    with open_workspace(tmp_path, Progress(quiet=True)) as workspace:
        folder = workspace.step("3 sessions + numpy@cpu", {}, lambda folder: None)
    assert folder.name.startswith("3-sessions-numpy@cpu-")


def test_a_failed_step_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half", encoding="utf-8")
        raise ConfigError("no")

    with open_workspace(tmp_path, Progress(quiet=True)) as workspace, pytest.raises(ConfigError, match="no"):
        workspace.step("work", {}, fail)
    assert list((tmp_path / "steps").iterdir()) == []


_KILLED = """
import os, signal, sys
from pathlib import Path
from monograph.pipelines.progress import Progress
from monograph.pipelines.steps import open_workspace

def work(folder):
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

with open_workspace(Path(sys.argv[1]), Progress(quiet=True)) as workspace:
    workspace.step("work", {}, work)
"""


def test_what_a_killed_run_left_is_cleared_and_the_step_done_anew(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not list((tmp_path / "steps").glob("work-*"))
    with open_workspace(tmp_path, Progress(quiet=True)) as workspace:
        folder = workspace.step("work", {}, lambda folder: (folder / "whole").touch())
    assert [file.name for file in folder.iterdir()] == ["whole"]
    assert [entry.name for entry in (tmp_path / "steps").iterdir()] == [folder.name]


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / ".lock")
    with lock, pytest.raises(ConfigError, match="another run"), open_workspace(tmp_path, Progress(quiet=True)):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot write"), open_workspace(tmp_path / "out", Progress(quiet=True)):
        pass


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(ConfigError, match="cannot write"), open_workspace(tmp_path / "out", Progress(quiet=True)):
        pass
