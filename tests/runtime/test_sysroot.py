"""How the arm64 sysroot is made, without a network: what stops it, and what it leaves."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import onnxruntime as ort
import pytest

from monograph.errors import ConfigError, MissingPackageError, WorkerError
from monograph.runtime.sysroot import PLACE_VARIABLE, check_tools, find_sysroot, install, main, sysroot_folder
from monograph.runtime.targets import find_target


def why_it_cannot_be_made() -> str:
    try:
        check_tools()
    except MissingPackageError as error:
        return str(error)
    return ""


needs_apt = pytest.mark.skipif(bool(why_it_cannot_be_made()), reason=why_it_cannot_be_made())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the sysroot is to be; nothing is there yet."""
    monkeypatch.setenv(PLACE_VARIABLE, str(tmp_path / "arm"))
    return tmp_path / "arm"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send apt to a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")


def finished(place: Path) -> Path:
    place.mkdir()
    record = {"onnxruntime": "1.0", "numpy": "2.0", "debian": {"libc6": "2.36"}}
    (place / "sysroot.json").write_text(json.dumps(record))
    return place


def test_by_default_it_lies_in_the_cache_under_the_version_of_this_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(PLACE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert sysroot_folder() == tmp_path / "monograph" / "arm64" / f"onnxruntime-{ort.__version__}"


@pytest.mark.parametrize("text", [None, "", "{}", "[]", "3", '{"onnxruntime": "1.0"'])
def test_only_a_finished_one_is_found(place: Path, text: str | None):
    place.mkdir()
    if text is not None:
        (place / "sysroot.json").write_text(text)
    assert find_sysroot() is None


def test_the_target_names_the_command_that_makes_it(place: Path):
    here = find_target("arm64").probe()
    assert not here.is_here
    assert f"no arm64 sysroot in {place}" in here.detail
    assert here.remedy.endswith("python -m monograph.runtime.sysroot")


def test_the_target_names_the_package_of_the_emulator(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    finished(place)
    monkeypatch.setenv("PATH", str(tmp_path))
    here = find_target("arm64").probe()
    assert (here.is_here, here.remedy) == (False, "apt-get install qemu-user-static")


def test_a_finished_one_is_not_made_again(place: Path, no_network: None):
    before = sorted(finished(place).iterdir())
    assert install().onnxruntime == "1.0"
    assert sorted(place.iterdir()) == before


@pytest.mark.usefixtures("no_network")
def test_a_folder_with_other_things_is_left_alone(place: Path):
    place.mkdir()
    (place / "thesis.tex").write_text("years of work")
    with pytest.raises(
        ConfigError, match=r"arm is in the way and no finished sysroot: remove it, or set MONOGRAPH_ARM64_SYSROOT"
    ):
        install()
    with pytest.raises(ConfigError, match="in the way"):
        install(again=True)
    assert [path.name for path in place.iterdir()] == ["thesis.tex"]


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(PLACE_VARIABLE, str(tmp_path / "file" / "arm"))
    with pytest.raises(ConfigError, match=r"cannot write to .*file: .*; set MONOGRAPH_ARM64_SYSROOT to another folder"):
        install()


def test_without_apt_it_is_said_how_to_do_without(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingPackageError, match=r"apt-get, dpkg-deb not found: .* make it on Debian and copy it here"):
        install()
    assert not place.exists()


@needs_apt
@pytest.mark.slow
@pytest.mark.usefixtures("no_network")
def test_without_a_network_nothing_is_left_and_what_was_there_stays(place: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(WorkerError, match=r"reading Debian's list of arm64 packages failed \(.*127\.0\.0\.1"):
        install()
    assert [path.name for path in place.parent.iterdir()] == [".arm.lock"]
    finished(place)
    assert main(["--again"]) == 1
    assert capsys.readouterr().err.startswith("error: reading Debian's list of arm64 packages failed")
    assert find_sysroot() is not None


@needs_apt
def test_what_a_killed_installation_left_is_removed_by_the_next(place: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{silent.getsockname()[1]}")
        partial = place.with_name(".arm.partial")
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen(
            [sys.executable, "-m", "monograph.runtime.sysroot"], env=environment, start_new_session=True
        ) as child:
            try:
                deadline = time.monotonic() + 60
                while not (partial / "work" / "sources.list").exists():
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            finally:
                os.killpg(child.pid, signal.SIGKILL)
    assert partial.exists()
    assert find_sysroot() is None
    (partial / "half").write_text("of a download")
    with pytest.raises(WorkerError, match="failed"):
        install()
    assert not partial.exists()
