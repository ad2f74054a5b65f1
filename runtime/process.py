"""Calls in a fresh process of their own, so that no other session, thread pool or allocator disturbs a measurement."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monograph import errors
from monograph.errors import MonographError, WorkerError

_STDERR_LINES = 3
TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Launcher:
    """How a fresh interpreter is started: in place of this one, one for another processor, for example."""

    command: tuple[str, ...] = ()
    """The interpreter with what stands before it; this one by default."""
    environment: Mapping[str, str] = field(default_factory=dict)
    python_path: tuple[str, ...] | None = None
    """Where it finds modules; where this process does by default."""


LOCAL = Launcher()


def call_in_fresh_process(
    function: str, arguments: Mapping[str, Any], timeout_s: float = TIMEOUT_S, launcher: Launcher = LOCAL
) -> Any:
    """Call ``monograph.module:function`` with JSON arguments in a new interpreter; return its JSON result.

    This process sleeps meanwhile. An interrupt kills the child.

    Raises:
        MonographError: the same error that the function raised there.
        WorkerError: the child died, or took longer than ``timeout_s`` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="monograph-") as folder:
        result_path = Path(folder) / "result.json"
        request = {"function": function, "arguments": dict(arguments), "result_path": str(result_path)}
        try:
            done = subprocess.run(
                [*(launcher.command or (sys.executable,)), "-m", "monograph.runtime.worker"],
                input=json.dumps(request),
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
                env=environment_of(launcher),
            )
        except subprocess.TimeoutExpired as error:
            raise WorkerError(f"{function} took longer than {timeout_s:.0f} s and was stopped") from error
        if done.returncode != 0 or not result_path.exists():
            raise WorkerError(f"{function} died in its process ({_cause(done.returncode, done.stderr)})")
        answer = result_path.read_text(encoding="utf-8")
    return answer_of(answer)


def answer_of(text: str) -> Any:
    """Return the result in the JSON that a worker wrote.

    Raises:
        MonographError: the same error that the function raised there.
    """
    answer = json.loads(text)
    if "error" in answer:
        raise _same_error(answer["error"]["type"], answer["error"]["message"])
    return answer["result"]


def environment_of(launcher: Launcher) -> dict[str, str]:
    """Return the child's environment: it finds the same modules, those of the current folder included."""
    folders = launcher.python_path or tuple(path or str(Path.cwd()) for path in sys.path)
    return os.environ | {"PYTHONPATH": os.pathsep.join(folders)} | dict(launcher.environment)


def _cause(returncode: int, stderr: str) -> str:
    last_lines = " | ".join(line.strip() for line in stderr.strip().splitlines()[-_STDERR_LINES:])
    how = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    return f"{how}: {last_lines}" if last_lines else how


def _same_error(name: str, message: str) -> MonographError:
    error_type: type[MonographError] = getattr(errors, name, WorkerError)
    return error_type(message)
