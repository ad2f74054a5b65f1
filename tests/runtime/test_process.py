import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from monograph import errors
from monograph.errors import ConfigError, MonographError, SourceError, WorkerError
from monograph.runtime.environment import installed_versions
from monograph.runtime.measure import Contender
from monograph.runtime.process import _same_error, call_in_fresh_process

# A function of monograph that runs any code of ours in the child: it imports the module that it is given.
IMPORT = "monograph.models.factories:import_factory"
HEAVY = {"torch", "scipy", "sklearn", "transformers", "pandas", "joblib", "onnx", "onnx_ir", "psutil", "matplotlib"}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module into the current folder; return the factory spec that imports it."""
    monkeypatch.chdir(tmp_path)

    def write(code: str) -> str:
        (tmp_path / "monograph_test_child.py").write_text(code)
        return "py:monograph_test_child:main"

    return write


def test_the_result_crosses():
    assert call_in_fresh_process("monograph.runtime.environment:installed_versions", {}) == installed_versions()


def test_arguments_cross():
    with pytest.raises(ConfigError, match="unknown target 'ß→\"': choose from cpu"):
        call_in_fresh_process("monograph.runtime.targets:find_target", {"name": 'ß→"'})


def test_it_runs_in_a_process_of_its_own(module):
    spec = module("import os\nfrom pathlib import Path\nPath('pid').write_text(str(os.getpid()))\nraise SystemError")
    with pytest.raises(SourceError, match="SystemError"):
        call_in_fresh_process(IMPORT, {"spec": spec})
    assert int(Path("pid").read_text()) != os.getpid()
    assert "monograph_test_child" not in sys.modules


def test_the_child_finds_the_modules_that_the_parent_finds(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    """Those on the path of the parent and those in its current folder, which stands on the path as an empty text."""
    beside, current = tmp_path_factory.mktemp("beside"), tmp_path_factory.mktemp("current")
    monkeypatch.chdir(current)
    for place, folder in (("beside", beside), ("current", current)):
        (folder / f"monograph_test_{place}.py").write_text("main = None")
    monkeypatch.setattr(sys, "path", ["", *sys.path, str(beside)])
    for place in ("beside", "current"):
        with pytest.raises(SourceError, match="'main' is of type NoneType"):
            call_in_fresh_process(IMPORT, {"spec": f"py:monograph_test_{place}:main"})


def test_errors_keep_their_class_and_message(module):
    here, there = "no module 'not_here'", {"spec": "py:not_here:main"}
    with pytest.raises(SourceError, match=here) as caught:
        call_in_fresh_process(IMPORT, there)
    assert type(caught.value) is SourceError
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", [name for name, value in vars(errors).items() if isinstance(value, type)])
def test_every_error_of_ours_keeps_its_class(name: str):
    error = _same_error(name, "what happened")
    assert type(error).__name__ == name
    assert isinstance(error, MonographError)
    assert str(error) == "what happened"


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSEGV", "SIGABRT"])
def test_a_child_killed_by_a_signal_is_a_worker_error_that_names_it(module, how: str):
    number = getattr(signal, how)
    spec = module(f"import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.kill(os.getpid(), {int(number)})")
    with pytest.raises(WorkerError, match=rf"{IMPORT} died in its process \(signal {int(number)}\b"):
        call_in_fresh_process(IMPORT, {"spec": spec})


def test_a_child_that_exits_is_a_worker_error_with_its_last_words(module):
    spec = module("import os, sys; print('first\\nlast words', file=sys.stderr, flush=True); os._exit(7)")
    with pytest.raises(WorkerError, match=r"died in its process \(exit code 7: first \| last words\)"):
        call_in_fresh_process(IMPORT, {"spec": spec})


def test_a_child_that_exits_well_without_a_result_is_a_worker_error(module):
    with pytest.raises(WorkerError, match=r"died in its process \(exit code 0\)"):
        call_in_fresh_process(IMPORT, {"spec": module("import os; os._exit(0)")})


def test_what_the_child_prints_does_not_disturb(module, capfd: pytest.CaptureFixture[str]):
    spec = module("print('noise on stdout', flush=True)\nmain = None")
    with pytest.raises(SourceError, match="is of type NoneType"):
        call_in_fresh_process(IMPORT, {"spec": spec})
    assert capfd.readouterr() == ("", "")


def test_a_result_that_is_no_json_is_a_worker_error():
    with pytest.raises(WorkerError, match="Target is not JSON serializable"):
        call_in_fresh_process("monograph.runtime.targets:find_target", {"name": "cpu"})


def test_a_child_that_takes_too_long_is_stopped(module):
    spec = module("import os, time\nfrom pathlib import Path\nPath('pid').write_text(str(os.getpid()))\ntime.sleep(60)")
    start = time.monotonic()
    with pytest.raises(WorkerError, match=rf"{IMPORT} took longer than 2 s and was stopped"):
        call_in_fresh_process(IMPORT, {"spec": spec}, timeout_s=2)
    assert time.monotonic() - start < 30, "it did not wait for the end"
    assert not psutil.pid_exists(int(Path("pid").read_text()))


def test_an_interrupt_kills_the_child(module, tmp_path: Path):
    spec = module("import os, time\nfrom pathlib import Path\nPath('pid').write_text(str(os.getpid()))\ntime.sleep(60)")
    code = f"from monograph.runtime.process import call_in_fresh_process as c; c({IMPORT!r}, {{'spec': {spec!r}}})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL) as parent:
        try:
            pid_file = tmp_path / "pid"
            deadline = time.monotonic() + 30
            while not (pid_file.exists() and pid_file.read_text()):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            parent.send_signal(signal.SIGINT)
            assert parent.wait(timeout=30) != 0
        finally:
            parent.kill()
    assert not psutil.pid_exists(int(pid_file.read_text()))


@pytest.mark.parametrize("function", ["os:getcwd", "subprocess:run", "monographs:run", "monograph_test_child:main", ":print"])
def test_only_functions_of_monograph_run(module, function: str):
    module("from pathlib import Path\nPath('it ran').touch()\ndef main(): return 1")
    with pytest.raises(WorkerError, match="a worker runs functions of monograph only"):
        call_in_fresh_process(function, {})
    assert not Path("it ran").exists()


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("monograph.runtime.environment:no_such", {}, "has no attribute 'no_such'"),
        ("monograph.no_such:main", {}, "No module named 'monograph.no_such'"),
        ("monograph.runtime.targets:find_target", {"nome": "cpu"}, "unexpected keyword argument 'nome'"),
    ],
)
def test_a_function_that_cannot_be_called_is_a_worker_error(function: str, arguments: dict[str, str], message: str):
    with pytest.raises(WorkerError, match=message):
        call_in_fresh_process(function, arguments)


def imported_by(code: str) -> set[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(done.stdout)}


def test_the_measuring_process_imports_what_it_needs_and_no_more():
    modules = imported_by("import monograph.runtime.runner")
    assert modules & HEAVY == set()
    assert {"numpy", "onnxruntime"} <= modules


def test_a_whole_measurement_imports_no_more_either(tmp_path: Path, classifier, contender):
    """The real child, told to print its imports; they are those of its whole life."""
    made: Contender = contender(classifier())
    rule = {"min_runs": 40, "min_s": 0.0, "max_s": 5.0, "warmup_s": 0.0}
    request = {
        "function": "monograph.runtime.runner:time_and_run",
        "arguments": {
            "loader": made.loader,
            "loader_arguments": dict(made.loader_arguments),
            "contract_json": made.contract.to_json(),
            "folder": str(tmp_path),
            "settings": {"rule": rule, "threads": 1, "spinning": True, "batch_sizes": [1]},
        },
        "result_path": str(tmp_path / "result.json"),
    }
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "monograph.runtime.worker"],
        input=json.dumps(request),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines() if "import time:" in line}
    assert json.loads((tmp_path / "result.json").read_text())["result"]["placement"][0]["nodes"] == ["MatMul"]
    assert imported & HEAVY == set()
    assert {"numpy", "onnxruntime"} <= imported
