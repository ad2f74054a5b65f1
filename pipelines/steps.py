"""Steps that are done once: each in a folder named by the hash of all that it depends on.

A step writes into a folder beside its own, which is renamed when it is whole. So a folder that exists is finished, a
run that was killed goes on where it was, and nothing half-written is ever read.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import monograph
from monograph.errors import ConfigError
from monograph.models.files import STAGING_PREFIX, publish, staging_folder
from monograph.pipelines.progress import Progress
from monograph.runtime.environment import describe_environment

_KEY_LENGTH = 12
_FLOORS = ("models", "runtime", "export", "pipelines")


class Workspace:
    """The output folder of one run, and the steps in it."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.folder = folder
        self.steps_folder = folder / "steps"
        self.progress = progress

    def step(self, name: str, parameters: Mapping[str, Any], action: Callable[[Path], None]) -> Path:
        """Return the folder of a finished step, after doing it unless it was done before.

        ``parameters`` are all that the result depends on, as JSON: they, the code's digest and the machine make the
        folder's name. Folders of earlier steps among them stand for all that those steps depended on.
        """
        described = json.dumps(parameters, sort_keys=True, default=str)
        key = hashlib.sha256(f"{name}\n{described}\n{_basis()}".encode()).hexdigest()[:_KEY_LENGTH]
        folder = self.steps_folder / f"{re.sub(r'[^A-Za-z0-9_.@-]+', '-', name)}-{key}"
        if folder.is_dir():
            self.progress.skipped(name)
            return folder
        with self.progress.stage(name), staging_folder(self.steps_folder) as staged:
            work = staged / folder.name
            work.mkdir()
            action(work)
            publish(work, folder)
        return folder


@contextmanager
def open_workspace(folder: Path, progress: Progress) -> Iterator[Workspace]:
    """Yield the workspace in ``folder``, for this process alone, cleared of what a killed run left behind.

    Raises:
        ConfigError: another run uses the folder, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(f"another run is writing to {folder}: wait for it, or choose another --out") from error
    except OSError as error:
        raise ConfigError(f"cannot write to the folder {folder}: {error.strerror}; choose another --out") from error
    try:
        for left_over in folder.glob(f"**/{STAGING_PREFIX}*"):
            shutil.rmtree(left_over, ignore_errors=True)
        yield Workspace(folder, progress)
    finally:
        lock.release()


@cache
def _basis() -> str:
    """The code, the versions and the machine: with another of these, a result may be another."""
    root = Path(monograph.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(path for floor in _FLOORS for path in (root / floor).rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode())
        digest.update(file.read_bytes())
    environment = describe_environment(threads=0, spinning=True)
    return json.dumps([digest.hexdigest(), environment.processor, environment.usable_cores, dict(environment.packages)])
