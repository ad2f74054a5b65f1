"""What the targets under qemu-user have in common: this machine's files and kernel, and the instructions of another processor."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace

from monograph.runtime.job import Job, RawRun, run_in_process
from monograph.runtime.process import Launcher

INSTALL_EMULATOR = "apt-get install qemu-user-static"
_TIMEOUT_S = 7 * 24 * 3600.0
"""An emulated picture takes seconds, and rows may be many."""


def find_emulator(machine: str) -> str | None:
    """Return qemu-user's program for ``machine``, such as ``aarch64``, or None where it is not installed."""
    names = (f"qemu-{machine}-static", f"qemu-{machine}")
    return next((found for found in map(shutil.which, names) if found is not None), None)


def emulator_version(emulator: str) -> str:
    """Return the name and the version that it tells, ``qemu-aarch64 version 7.2.22`` for example."""
    done = subprocess.run([emulator, "--version"], capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or ["qemu-user of unknown version"])[0].partition(" (")[0]


def version_number(version: str) -> tuple[int, int] | None:
    """Return the major and minor number in what :func:`emulator_version` tells."""
    match = re.search(r"(\d+)\.(\d+)", version)
    return None if match is None else (int(match[1]), int(match[2]))


def run_emulated(job: Job, launcher: Launcher) -> RawRun:
    """Run on one thread, which no other waits for by spinning: emulated threads would only cost each other time.

    Raises:
        MonographError: the contender cannot be loaded or run.
    """
    settings = replace(job.settings, threads=1, spinning=False)
    return run_in_process(replace(job, settings=settings), launcher, timeout_s=_TIMEOUT_S)
