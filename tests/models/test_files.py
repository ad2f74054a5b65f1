import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from monograph.errors import ConfigError
from monograph.models.files import STAGING_PREFIX, publish, sha256_of_files, staging_folder, write_atomically

WRITE_HALF_THEN_WAIT = """
import sys, time
from pathlib import Path
from monograph.models.files import write_atomically
with write_atomically(Path(sys.argv[1])) as staged:
    staged.write_text("half of the ne")
    print("halfway", flush=True)
    time.sleep(60)
"""


def write_half_of(path: Path, error: type[BaseException]) -> None:
    with write_atomically(path) as staged:
        staged.write_text("half of the ne")
        raise error


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_file_replaces_the_old_one_and_nothing_stays_beside_it(tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_text("old")
    with write_atomically(path) as staged:
        staged.write_text("new")
        assert path.read_text() == "old", "nothing is replaced before the block ends"
        assert staged.name == path.name, "an external data file is named after it"
        assert staged.stat().st_dev == tmp_path.stat().st_dev, "a rename between file systems is no rename"
    assert path.read_text() == "new"
    assert names_in(tmp_path) == ["model.onnx"]


def test_missing_folders_are_made(tmp_path: Path):
    with write_atomically(tmp_path / "a" / "b" / "c.txt") as staged:
        staged.write_text("new")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "new"


def test_a_path_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with write_atomically(Path("c.txt")) as staged:
        staged.write_text("new")
    assert (tmp_path / "c.txt").read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_inside_the_block_leaves_the_old_file_and_no_staging(tmp_path: Path, error: type[BaseException]):
    path = tmp_path / "model.onnx"
    path.write_text("old")
    with pytest.raises(error):
        write_half_of(path, error)
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["model.onnx"]


def test_an_error_inside_the_block_makes_no_new_file(tmp_path: Path):
    with pytest.raises(RuntimeError):
        write_half_of(tmp_path / "model.onnx", RuntimeError)
    assert names_in(tmp_path) == []


def test_a_block_that_writes_nothing_is_refused_and_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_text("old")
    with pytest.raises(ConfigError, match="cannot write"), write_atomically(path):
        pass
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["model.onnx"]


def test_a_kill_inside_the_block_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_text("old")
    process = subprocess.Popen([sys.executable, "-c", WRITE_HALF_THEN_WAIT, str(path)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "halfway\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    left_over = [name for name in names_in(tmp_path) if name != "model.onnx"]
    assert all(name.startswith(STAGING_PREFIX) for name in left_over), "what a kill leaves is named as ours"

    with write_atomically(path) as staged:
        staged.write_text("new")
    assert path.read_text() == "new", "what a kill leaves is in nobody's way"


def test_a_folder_is_published_whole(tmp_path: Path):
    with staging_folder(tmp_path) as staging:
        work = staging / "work"
        (work / "deep").mkdir(parents=True)
        (work / "model.onnx").write_text("model")
        (work / "deep" / "labels.txt").write_text("labels")
        (work / "link").symlink_to("nowhere")
        publish(work, tmp_path / "step")
    assert names_in(tmp_path) == ["step"]
    assert (tmp_path / "step" / "model.onnx").read_text() == "model"
    assert (tmp_path / "step" / "deep" / "labels.txt").read_text() == "labels"


def test_a_folder_that_is_there_already_is_not_replaced(tmp_path: Path):
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "old.txt").write_text("old")
    with staging_folder(tmp_path) as staging:
        (staging / "work").mkdir()
        (staging / "work" / "new.txt").write_text("new")
        with pytest.raises(ConfigError, match=r"cannot write .*step: .*choose another output path"):
            publish(staging / "work", tmp_path / "step")
    assert names_in(tmp_path / "step") == ["old.txt"]
    assert names_in(tmp_path) == ["step"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to tell what a descriptor is open on")
def test_everything_is_flushed_to_disk_before_and_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    flushed: list[tuple[str, bool]] = []
    fsync = os.fsync

    def recording_fsync(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        flushed.append((target.name, (tmp_path / "step").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    with staging_folder(tmp_path) as staging:
        (staging / "work" / "deep").mkdir(parents=True)
        (staging / "work" / "a.txt").write_text("a")
        (staging / "work" / "deep" / "b.txt").write_text("b")
        publish(staging / "work", tmp_path / "step")
    assert {("a.txt", False), ("b.txt", False)} <= set(flushed)
    assert flushed[-1] == (tmp_path.name, True), "the rename itself is flushed with the folder that holds it"


def test_a_folder_in_the_place_of_the_file_is_left_alone(tmp_path: Path):
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(ConfigError, match="choose another output path"), write_atomically(tmp_path / "model.onnx") as staged:
        staged.write_text("new")
    assert (tmp_path / "model.onnx").is_dir()
    assert names_in(tmp_path) == ["model.onnx"]


def test_a_file_in_the_place_of_the_folder_is_a_config_error(tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    with (
        pytest.raises(ConfigError, match=r"cannot write to the folder .*file: .*choose another output path"),
        write_atomically(tmp_path / "file" / "model.onnx"),
    ):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_a_config_error(tmp_path: Path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ConfigError, match="Permission denied"), write_atomically(tmp_path / "model.onnx"):
            pass
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="/proc is where nobody, root included, makes folders")
def test_a_folder_where_nothing_can_be_made_is_a_config_error():
    with pytest.raises(ConfigError, match="cannot write to the folder /proc/monograph"), staging_folder(Path("/proc/monograph")):
        pass


def test_a_staging_folder_is_empty_new_and_removed(tmp_path: Path):
    with staging_folder(tmp_path) as first, staging_folder(tmp_path) as second:
        assert first != second
        assert first.parent == second.parent == tmp_path
        assert names_in(first) == names_in(second) == []
        (first / "deep").mkdir()
        (first / "deep" / "file").write_text("left over")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_000])
def test_the_digest_is_that_of_all_contents_in_order(tmp_path: Path, size: int):
    (tmp_path / "a").write_bytes(os.urandom(size))
    (tmp_path / "b").write_bytes(b"second")
    paths = [tmp_path / "a", tmp_path / "b"]
    assert sha256_of_files(paths) == hashlib.sha256(paths[0].read_bytes() + paths[1].read_bytes()).hexdigest()
    assert size == 0 or sha256_of_files(paths[::-1]) != sha256_of_files(paths)
