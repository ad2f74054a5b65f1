"""Measuring on another machine by ssh: a real sshd of our own on the loopback, and this machine as the other one."""

import dataclasses
import os
import platform
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import onnx
import onnxruntime as ort
import psutil
import pytest

from monograph.errors import ConfigError, SourceError, WorkerError
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import read_onnx
from monograph.runtime.instruction_sets import instruction_set_here
from monograph.runtime.job import Contender, Job, Settings
from monograph.runtime.load import LoadSpec
from monograph.runtime.measure import measure, onnx_contender
from monograph.runtime.results import Evidence
from monograph.runtime.staged import PLAN_FILE, Stage, StagedPlan, read_staged
from monograph.runtime.targets import find_target
from monograph.runtime.targets.ssh import COMMAND_VARIABLE, parse_address

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
MISSING = [
    name
    for name, found in {"sshd": SSHD, "ssh": shutil.which("ssh"), "ssh-keygen": shutil.which("ssh-keygen")}.items()
    if not found
]
needs_sshd = pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)}: apt-get install openssh-server openssh-client")


@pytest.mark.parametrize(
    ("name", "host", "port", "python"),
    [
        ("ssh://board/cpu", "board", None, "python3"),
        ("ssh://pi@board:2222/cpu", "pi@board", 2222, "python3"),
        ("ssh://board/cpu?python=/opt/venv/bin/python", "board", None, "/opt/venv/bin/python"),
    ],
)
def test_an_address(name: str, host: str, port: int | None, python: str):
    address = parse_address(name)
    assert (address.host, address.port, address.python) == (host, port, python)
    assert find_target(name).name == name
    assert find_target(name).evidence is Evidence.DEVICE


@pytest.mark.parametrize(
    "name",
    ["ssh://", "ssh://board", "ssh://board/", "ssh://board/cuda", "ssh:///cpu", "ssh://board:x/cpu", "ssh://board:99999/cpu",
     "ssh://board/cpu?pyton=python3", "ssh://a:secret@board/cpu", "ssh://-oProxyCommand=reboot/cpu", "ssh://board/cpu#x"],
)  # fmt: skip
def test_another_form_is_refused(name: str):
    with pytest.raises(ConfigError, match=r"^target ssh://"):
        find_target(name)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    """Run an sshd that takes one key; yield its port and the ssh command that has that key."""
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    port = free_port()
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder / 'host'}\nPidFile none\nStrictModes no\nUsePAM no\n"
        f"AuthorizedKeysFile {folder / 'user.pub'}\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
    )
    (folder / "ssh_config").write_text(
        f"Host *\nIdentityFile {folder / 'user'}\nIdentitiesOnly yes\nUserKnownHostsFile {folder / 'known'}\n"
        "StrictHostKeyChecking accept-new\nLogLevel ERROR\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    assert SSHD is not None
    log = folder / "log"
    with subprocess.Popen([SSHD, "-D", "-f", str(folder / "sshd_config"), "-E", str(log)]) as daemon:
        try:
            for _ in range(200):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert daemon.poll() is None, log.read_text()
                time.sleep(0.05)
            yield port, f"ssh -F {folder / 'ssh_config'}"
        finally:
            daemon.terminate()


@pytest.fixture
def target_name(server: tuple[int, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The name of this machine as another one; what is left there shows in ``tmp_path / "there"``."""
    port, command = server
    monkeypatch.setenv(COMMAND_VARIABLE, command)
    there = tmp_path / "there"
    there.mkdir()
    # A wrapper, for it is the login shell there that would set TMPDIR.
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$PWD" >> {there}/folders\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return f"ssh://127.0.0.1:{port}/cpu?python={quote(str(python))}"


def folders_left(tmp_path: Path) -> list[str]:
    folders = (tmp_path / "there" / "folders").read_text().splitlines()
    assert len(folders) >= 2, "one to ask, one to measure"
    home = pwd.getpwuid(os.geteuid()).pw_dir
    return [folder for folder in folders if folder != home and Path(folder).exists()]


def contender_on(name: str, path: Path) -> Contender:
    file = read_onnx(path)
    return onnx_contender(path.stem, path, file.contract, file.sha256, file.size_bytes, find_target(name))


@needs_sshd
@pytest.mark.slow
def test_a_measurement_there(
    target_name: str, classifier: Callable[..., Path], quick: Settings, weights: np.ndarray, tmp_path: Path
):
    rows = Rows({"x": np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)}, np.arange(50) % 3)
    made = contender_on(target_name, classifier())
    result = measure(made, find_target(target_name), rows, quick)
    assert (result.target, result.evidence) == (target_name, Evidence.DEVICE)
    assert result.accuracy.top1.estimate == ((rows.inputs["x"] @ weights).argmax(axis=1) == rows.labels).mean()
    assert len(result.latency.samples_ns) == 40
    assert [one.batch_size for one in result.throughput] == [1, 4]
    assert result.nodes_per_provider == {"CPUExecutionProvider": 1}
    assert socket.gethostname() in result.device
    assert result.environment.packages["onnxruntime"] == ort.__version__
    assert result.environment.threads == 1
    assert result.environment.instruction_set is instruction_set_here()
    assert folders_left(tmp_path) == []


@needs_sshd
@pytest.mark.slow
def test_load_and_profile_are_measured_there(target_name: str, classifier: Callable[..., Path], quick: Settings, tmp_path: Path):
    settings = dataclasses.replace(quick, load=LoadSpec(2), profile=True)
    result = measure(contender_on(target_name, classifier()), find_target(target_name), None, settings)
    assert result.load.run_count >= 40
    assert [share.name for share in result.profile.by_provider] == ["CPUExecutionProvider"]
    assert len((tmp_path / "there" / "folders").read_text().splitlines()) >= 4, "a process for each"
    assert folders_left(tmp_path) == []


@needs_sshd
@pytest.mark.slow
def test_a_cascade_in_stages_travels(target_name: str, classifier: Callable[..., Path], quick: Settings, tmp_path: Path):
    folder = tmp_path / "staged"
    folder.mkdir()
    shutil.copy(classifier(), folder / "stage-1.onnx")
    contract = read_onnx(folder / "stage-1.onnx").contract
    (folder / PLAN_FILE).write_text(StagedPlan(contract, (Stage("stage-1.onnx", ("x",), "logits", None),)).to_json())
    file = read_staged(folder)
    made = onnx_contender("staged", folder, file.contract, file.sha256, file.size_bytes, find_target(target_name))
    result = measure(made, find_target(target_name), None, quick)
    assert result.evidence is Evidence.DEVICE
    assert result.placement[0].nodes[0].startswith("stage-1/")
    assert folders_left(tmp_path) == []


@needs_sshd
@pytest.mark.slow
def test_external_data_travels(
    target_name: str, classifier: Callable[..., Path], quick: Settings, weights: np.ndarray, tmp_path: Path
):
    (tmp_path / "apart").mkdir()
    path = tmp_path / "apart" / "model.onnx"
    onnx.save(onnx.load(classifier()), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (path.parent / "weights.bin").exists()
    x = np.eye(4, dtype=np.float32)
    threads = dataclasses.replace(quick, threads=None)
    run = find_target(target_name).run(Job(contender_on(target_name, path), Rows({"x": x}), threads))
    np.testing.assert_allclose(run.outputs, x @ weights, rtol=1e-5, atol=1e-6)
    assert run.environment.threads == len(os.sched_getaffinity(0))


@needs_sshd
@pytest.mark.slow
def test_an_error_there_keeps_its_class_and_nothing_is_left(
    target_name: str, classifier: Callable[..., Path], quick: Settings, tmp_path: Path
):
    made = contender_on(target_name, classifier())
    unknown = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18, "ours": 1]> g (float[n, 4] x) => (float[n, 4] logits) { logits = ours.Magic(x) }'
    )
    onnx.save(unknown, made.path)
    with pytest.raises(SourceError, match=r"cannot load model/classifier\.onnx: .*Magic"):
        measure(made, find_target(target_name), None, quick)
    assert folders_left(tmp_path) == []


@needs_sshd
@pytest.mark.slow
def test_a_process_killed_there_is_a_worker_error(
    target_name: str, classifier: Callable[..., Path], quick: Settings, tmp_path: Path
):
    python = tmp_path / "python"
    made = contender_on(target_name, classifier())
    python.write_text(python.read_text().replace("exec ", 'case "$*" in *worker*) kill -9 $$;; esac\nexec '))
    with pytest.raises(WorkerError, match=rf"died \(exit code {128 + signal.SIGKILL}"):
        measure(made, find_target(target_name), None, quick)
    assert folders_left(tmp_path) == []


@needs_sshd
@pytest.mark.slow
def test_an_interrupt_here_stops_the_process_there(target_name: str, classifier: Callable[..., Path], tmp_path: Path):
    python, pid_file = tmp_path / "python", tmp_path / "pid"
    python.write_text(
        python.read_text().replace("exec ", f'case "$*" in *worker*) echo $$ > {pid_file}; exec sleep 60;; esac\nexec ')
    )
    code = f"from monograph import measure_models as m; m([{str(classifier())!r}], on=[{target_name!r}])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL) as here:
        try:
            wait_for(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"))
            pid = int(pid_file.read_text())
            assert psutil.pid_exists(pid)
            here.send_signal(signal.SIGINT)
            assert here.wait(timeout=30) != 0
        finally:
            here.kill()
    wait_for(lambda: not psutil.pid_exists(pid))
    wait_for(lambda: folders_left(tmp_path) == [])


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 50
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@needs_sshd
def test_the_instruction_set_there(target_name: str):
    target = find_target(target_name)
    assert target.instruction_set() is instruction_set_here()
    assert str(instruction_set_here() or platform.machine()) in target.describe()


@needs_sshd
def test_a_python_without_onnx_runtime_is_told(target_name: str, tmp_path: Path):
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    here = find_target(target_name).probe()
    assert not here.is_here
    assert "No module named 'numpy'" in here.detail
    assert "-m pip install onnxruntime numpy" in here.remedy
    assert find_target(target_name).instruction_set() is None


@needs_sshd
def test_a_host_that_does_not_answer_is_told():
    here = find_target(f"ssh://127.0.0.1:{free_port()}/cpu").probe()
    assert not here.is_here
    assert "Connection refused" in here.detail
    assert here.remedy.startswith("ssh ")
