"""Another machine, by ssh: ``ssh://[USER@]HOST[:PORT]/cpu[?python=PATH]``.

The model, the rows and this monograph travel there in one archive on standard input, the measuring process runs in a folder
of its own, and its result comes back in one archive on standard output; the folder is removed, whatever happens. The other
machine needs a shell, tar, and a Python from 3.11 on with numpy and ONNX Runtime; monograph need not be there. Keys, jumps
and aliases are ssh's own: what ``ssh HOST`` does in a terminal without asking for a password, works. ``$MONOGRAPH_SSH_COMMAND``
is called in place of ``ssh`` where it is set.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import numpy.typing as npt

import monograph
from monograph.errors import ConfigError, WorkerError
from monograph.runtime import instruction_sets
from monograph.runtime.instruction_sets import InstructionSet
from monograph.runtime.job import TIME_AND_RUN, Job, RawRun, raw_run_of, request_of
from monograph.runtime.process import answer_of
from monograph.runtime.results import Environment, Evidence
from monograph.runtime.runner import OUTPUTS_FILE, ROWS_FILE
from monograph.runtime.targets.target import Availability, Target

Array = npt.NDArray[Any]
SCHEME = "ssh://"
COMMAND_VARIABLE = "MONOGRAPH_SSH_COMMAND"
"""What to call in place of ``ssh``, with its options: ``ssh -F boards.config`` for example."""
_FORM = "ssh://[USER@]HOST[:PORT]/cpu[?python=PATH]"
_CONNECT_S, _PROBE_S, _RUN_S = 10, 60, 24 * 3600.0
_TRAVELS = ("models", "runtime")
"""The folders of monograph that a measuring process needs."""
_REQUEST, _RESULT, _MODELS = "request.json", "result.json", "model"
_ASK = (
    f"{inspect.getsource(instruction_sets)}\n"
    + """\
import json, os, platform, numpy, onnxruntime
names = []
if os.path.exists("/proc/cpuinfo"):
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo", errors="replace") if line.startswith("model name")]
if os.path.exists("/proc/device-tree/model"):
    names = [open("/proc/device-tree/model").read().strip("\\0 ")]
print(json.dumps({
    "node": platform.node(),
    "processor": names[0] if names else platform.processor() or platform.machine(),
    "machine": platform.machine(),
    "system": platform.system() + " " + platform.release(),
    "logical_cores": os.cpu_count() or 1,
    "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    "python": platform.python_version(),
    "packages": {"onnxruntime": onnxruntime.__version__, "numpy": numpy.__version__},
    "instruction_set": instruction_set_here(),
}))
"""
)
"""What Python is asked there, where there is no monograph: so the source of a module goes along."""
_SCRIPT = """\
set -u
folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM PIPE
cd "$folder" && head -c {size_bytes} | tar -xzf - || exit 1
exec 3<&0
PYTHONPATH="$folder" {python} -m monograph.runtime.worker < {request} >&2 &
child=$!
(cat <&3; kill "$child") > /dev/null 2>&1 &
watch=$!
wait "$child"
code=$?
kill "$watch"
[ "$code" = 0 ] || exit "$code"
if [ -f {outputs} ]; then tar -czf - {result} {outputs}; else tar -czf - {result}; fi
"""
"""Standard input stays open until the result is here: where it ends before, we are gone, and the process is stopped."""


@dataclass(frozen=True)
class Address:
    """A parsed name of a target."""

    host: str
    """As ssh takes it, with the user where one was given."""
    port: int | None
    python: str

    def ssh(self, command: str) -> list[str]:
        """Return the command line that runs ``command`` in a shell there, and never asks for a password."""
        port = ["-p", str(self.port)] if self.port is not None else []
        options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_S}", "-o", "ServerAliveInterval=15"]
        return [*_ssh(), *options, *port, "--", self.host, command]


def _ssh() -> list[str]:
    return shlex.split(os.environ.get(COMMAND_VARIABLE, "")) or ["ssh"]


def ssh_target(name: str) -> Target:
    """Return the target that a name in the form ``ssh://[USER@]HOST[:PORT]/cpu[?python=PATH]`` means.

    Raises:
        ConfigError: the name is not of that form.
    """
    address = parse_address(name)
    return Target(
        name,
        f"the processor of {address.host}, by ssh",
        "CPUExecutionProvider",
        Evidence.DEVICE,
        partial(_probe, address),
        run=partial(_run, address),
        call=partial(_call, address),
        streams_rows=False,
        instruction_set=partial(_instruction_set, address),
    )


def parse_address(name: str) -> Address:
    """Parse the name of a target.

    Raises:
        ConfigError: it is not of the form that is asked for.
    """
    parts = urlsplit(name)
    options = dict(parse_qsl(parts.query))
    python = options.pop("python", "python3")
    try:
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"target {name}: {error}; write {_FORM}") from error
    if parts.scheme != "ssh" or not parts.hostname or parts.path != "/cpu" or options or parts.password or parts.fragment:
        raise ConfigError(f"target {name} is not of the form {_FORM}")
    host = f"{parts.username}@{parts.hostname}" if parts.username else parts.hostname
    if host.startswith("-"):
        raise ConfigError(f"target {name}: {host!r} is no host, ssh would take it for an option")
    return Address(host, port, python)


def _probe(address: Address) -> Availability:
    answer = _ask(address)
    return answer if isinstance(answer, Availability) else Availability(True, _device(answer))


def _instruction_set(address: Address) -> InstructionSet | None:
    answer = _ask(address)
    return None if isinstance(answer, Availability) else answer["instruction_set"]


def _device(facts: Mapping[str, Any]) -> str:
    kind = facts["instruction_set"] or facts["machine"]
    return (
        f"{facts['node']}, {facts['processor']} ({kind}), {facts['usable_cores']} of {facts['logical_cores']} cores usable, "
        f"python {facts['python']}, onnxruntime {facts['packages']['onnxruntime']}, by ssh"
    )


def _ask(address: Address) -> Availability | dict[str, Any]:
    """Return what the other machine tells of itself, or why it tells nothing."""
    command = f"{shlex.quote(address.python)} -c {shlex.quote(_ASK)}"
    try:
        done = subprocess.run(address.ssh(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_S, check=False)
    except FileNotFoundError:
        return Availability(False, "ssh is not installed", "apt-get install openssh-client")
    except subprocess.TimeoutExpired:
        return Availability(False, f"{address.host} did not answer within {_PROBE_S} s", f"look at: ssh {address.host}")
    if done.returncode != 0:
        why = _last_line(done.stderr) or f"exit code {done.returncode}"
        if done.returncode == 255:  # ssh's own
            return Availability(False, f"no connection to {address.host} ({why})", shlex.join(address.ssh("true")))
        remedy = f"there, {address.python} -m pip install onnxruntime numpy, or name another Python: {_FORM}"
        return Availability(False, f"{address.python} on {address.host} cannot load ONNX Runtime ({why})", remedy)
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    name = facts["instruction_set"]
    return facts | {"instruction_set": None if name is None else InstructionSet(name)}


def _run(address: Address, job: Job) -> RawRun:
    facts = _facts(address)
    cores = facts["usable_cores"]
    threads = job.settings.threads or cores
    raw, outputs = _call_there(address, TIME_AND_RUN, replace(job, settings=replace(job.settings, threads=threads)))
    warnings = (f"{threads} threads on {cores} usable cores: they wait for one another",) if threads > cores else ()
    node = facts.pop("node")
    facts["packages"] |= {"monograph": monograph.__version__}
    environment = Environment(**facts, threads=threads, spinning=job.settings.spinning)
    device = _device(facts | {"node": node})
    return replace(raw_run_of(raw, outputs), device=device, environment=environment, warnings=warnings)


def _call(address: Address, function: str, job: Job) -> Any:
    threads = job.settings.threads or _facts(address)["usable_cores"]
    return _call_there(address, function, replace(job, settings=replace(job.settings, threads=threads)))[0]


def _facts(address: Address) -> dict[str, Any]:
    facts = _ask(address)
    if isinstance(facts, Availability):
        raise ConfigError(f"target ssh://{address.host}/cpu is not here: {facts.describe()}")
    return facts


def _call_there(address: Address, function: str, job: Job) -> tuple[Any, Array | None]:
    """Call a function of the measuring process there; return what it returns, and the outputs where it wrote any."""
    model = job.contender.path
    if model is None:
        raise ConfigError(f"{job.contender.name} is no ONNX file: only one can be sent to {address.host}")
    with tempfile.TemporaryDirectory(prefix="monograph-ssh-") as name:
        sent, back = Path(name) / "sent.tar.gz", Path(name) / "back"
        _pack(function, job, model, sent)
        archive = _exchange(address, sent)
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(back, filter="data")
        outputs_file = back / OUTPUTS_FILE
        outputs = np.load(outputs_file, allow_pickle=False) if outputs_file.exists() else None
        return answer_of((back / _RESULT).read_text(encoding="utf-8")), outputs


def _exchange(address: Address, sent: Path) -> bytes:
    """Send an archive, run what is in it, and return the archive that comes back."""
    script = _SCRIPT.format(
        size_bytes=sent.stat().st_size,
        python=shlex.quote(address.python),
        request=_REQUEST,
        result=_RESULT,
        outputs=OUTPUTS_FILE,
    )
    command = address.ssh(f"sh -c {shlex.quote(script)}")
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr) as ssh:
            try:
                _send(sent, ssh)
                code = ssh.wait(timeout=_RUN_S)
            except subprocess.TimeoutExpired as error:
                raise WorkerError(f"the measurement on {address.host} took longer than {_RUN_S:.0f} s and was stopped") from error
            finally:
                ssh.kill()
        stdout.seek(0)
        stderr.seek(0)
        if code != 0:
            why = _last_line(stderr.read()) or "no word of why"
            raise WorkerError(f"the measuring process on {address.host} died (exit code {code}: {why})")
        return stdout.read()


def _send(sent: Path, ssh: subprocess.Popen[bytes]) -> None:
    """Write the archive and leave standard input open."""
    assert ssh.stdin is not None
    # A process that ended before it had read everything tells why by its exit code.
    with sent.open("rb") as archive, contextlib.suppress(BrokenPipeError):
        shutil.copyfileobj(archive, ssh.stdin)
        ssh.stdin.flush()


def _pack(function: str, job: Job, model: Path, sent: Path) -> None:
    """Write the archive: monograph, the model with its external data, the rows and the request, all by relative names."""
    from monograph.models.onnx_file import model_files  # needs onnx, which who only lists targets need not wait for
    from monograph.runtime.staged import staged_files

    here = Path(monograph.__file__).parent
    arguments = dict(job.contender.loader_arguments) | {"path": f"{_MODELS}/{model.name}"}
    contender = replace(job.contender, loader_arguments=arguments)
    request = request_of(function, replace(job, contender=contender), Path())
    request["result_path"] = _RESULT
    with tarfile.open(sent, "w:gz", compresslevel=1, dereference=True) as tar:
        _add_files(tar, here, sorted(here.glob("*.py")), "monograph")
        for folder in _TRAVELS:
            _add_files(tar, here / folder, sorted((here / folder).rglob("*.py")), f"monograph/{folder}")
        if model.is_dir():
            _add_files(tar, model.resolve(), [file.resolve() for file in staged_files(model)], f"{_MODELS}/{model.name}")
        else:
            tar.add(model, f"{_MODELS}/{model.name}")
            _add_files(tar, model.absolute().parent.resolve(), model_files(model)[1:], _MODELS)
        with tempfile.TemporaryDirectory(prefix="monograph-rows-") as name:
            rows_file, request_file = Path(name) / ROWS_FILE, Path(name) / _REQUEST
            if job.rows is not None:
                job.rows.save(rows_file)
                tar.add(rows_file, ROWS_FILE)
            request_file.write_text(json.dumps(request), encoding="utf-8")
            tar.add(request_file, _REQUEST)


def _add_files(tar: tarfile.TarFile, folder: Path, files: Sequence[Path], name: str) -> None:
    for file in files:
        tar.add(file, f"{name}/{file.relative_to(folder).as_posix()}")


def _last_line(stderr: bytes) -> str:
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""
