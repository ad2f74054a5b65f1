"""What this process may use of the processor, and in which state the processor is: affinity, cgroup quota, frequency policy.

All of it is read from Linux's /proc and /sys, whose places functions take as arguments; elsewhere, and where a file is not
there, the answer is None. Imports the standard library only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

CGROUP_ROOT, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
CPU_SYSFS = Path("/sys/devices/system/cpu")
LOADAVG = Path("/proc/loadavg")
THREADS_VARIABLE = "OMP_NUM_THREADS"
_LOCAL_PROCESSES_VARIABLE = "LOCAL_WORLD_SIZE"
"""torchrun's and accelerate's, of the processes on this machine that train one model."""
_THREADS_OPTION: ContextVar[int | None] = ContextVar("threads", default=None)


def affinity() -> tuple[int, ...] | None:
    """Return the logical cores that this process may run on."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None


def quota_cores(root: Path = CGROUP_ROOT, own: Path = OWN_CGROUPS) -> float | None:
    """Return how many cores' worth of time the cgroup gives, 1.5 for example; None where it sets no limit.

    A limit of any group that encloses this process's holds, in version 2 (``cpu.max``) and version 1 (``cpu.cfs_quota_us``).
    """
    limits = [limit for folder in _own_folders(root, own) if (limit := _limit_of(folder)) is not None]
    return min(limits, default=None)


def throttled_count(root: Path = CGROUP_ROOT, own: Path = OWN_CGROUPS) -> int | None:
    """Return how many periods so far had used up their quota, so that threads were stopped until the next one."""
    counts = [count for folder in _own_folders(root, own) if (count := _throttled_of(folder)) is not None]
    return max(counts, default=None)


def frequency_governor(sysfs: Path = CPU_SYSFS) -> str | None:
    """Return the kernel's policy for the frequency of the first core, such as ``performance`` or ``powersave``."""
    return _read(sysfs / "cpu0" / "cpufreq" / "scaling_governor")


def turbo(sysfs: Path = CPU_SYSFS) -> bool | None:
    """Return whether cores may run faster than their nominal frequency, which heat then ends."""
    no_turbo = _read(sysfs / "intel_pstate" / "no_turbo")
    if no_turbo is not None:
        return no_turbo == "0"
    boost = _read(sysfs / "cpufreq" / "boost")
    return None if boost is None else boost == "1"


def load_average() -> float | None:
    """Return the mean number of threads that wanted to run over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def running_threads(path: Path = LOADAVG) -> int | None:
    """Return how many threads on this machine run or want to run now, this one included."""
    fields = (_read(path) or "").split()
    running = fields[3].partition("/")[0] if len(fields) > 3 else ""
    return int(running) if running.isdecimal() else None


def local_process_count(variables: Mapping[str, str] = os.environ) -> int:
    """Return how many processes on this machine train one model together; 1 for a process by itself."""
    return _positive(variables.get(_LOCAL_PROCESSES_VARIABLE)) or 1


def requested_threads(variables: Mapping[str, str] = os.environ) -> int | None:
    """Return the threads that the user has set, by ``--threads`` or else ``OMP_NUM_THREADS``; None where neither is set.

    torchrun sets the variable to 1 by itself where it starts several processes: there 1 is nobody's wish.
    """
    option = _THREADS_OPTION.get()
    if option is not None:
        return option
    threads = _positive((variables.get(THREADS_VARIABLE) or "").partition(",")[0])
    return None if threads == 1 and local_process_count(variables) > 1 else threads


@contextmanager
def requesting_threads(threads: int | None) -> Iterator[None]:
    """Let ``threads`` be what the user has set while the block lasts, in processes started there too; None changes nothing."""
    if threads is None:
        yield
        return
    before, token = os.environ.get(THREADS_VARIABLE), _THREADS_OPTION.set(threads)
    os.environ[THREADS_VARIABLE] = str(threads)
    try:
        yield
    finally:
        _THREADS_OPTION.reset(token)
        os.environ.pop(THREADS_VARIABLE)
        if before is not None:
            os.environ[THREADS_VARIABLE] = before


def _positive(text: str | None) -> int | None:
    number = (text or "").strip()
    return int(number) if number.isdecimal() and int(number) > 0 else None


def _own_folders(root: Path, own: Path) -> Iterator[Path]:
    """The folders of this process's group and of all that enclose it, for either version."""
    for line in (_read(own) or "").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            mounts = [root, root / "unified"]
        elif "cpu" in controllers.split(","):
            mounts = [root / "cpu", root / "cpu,cpuacct"]
        else:
            continue
        for mount in mounts:
            folder = mount / path.lstrip("/")
            # In a container the path may be the host's, which is not there: then the mount itself is the own group.
            yield from (parent for parent in (folder, *folder.parents) if parent == mount or mount in parent.parents)


def _limit_of(folder: Path) -> float | None:
    quota, _, period = (_read(folder / "cpu.max") or "").partition(" ")
    if not period:
        quota, period = _read(folder / "cpu.cfs_quota_us") or "", _read(folder / "cpu.cfs_period_us") or ""
    try:
        limit = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None  # "max", or no such file
    return limit if limit > 0 else None  # version 1 says -1 for no limit


def _throttled_of(folder: Path) -> int | None:
    for line in (_read(folder / "cpu.stat") or "").splitlines():
        name, _, count = line.partition(" ")
        if name == "nr_throttled" and count.isdigit():
            return int(count)
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
