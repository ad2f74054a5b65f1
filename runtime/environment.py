"""What the machine is: the part of a result without which its figures mean nothing."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from monograph.runtime import processor
from monograph.runtime.results import Environment
from monograph.runtime.session import usable_cores

_PACKAGES = ("monograph", "onnxruntime", "onnxruntime-gpu", "onnx", "onnx-ir", "numpy", "torch", "transformers", "optimum-onnx")
_SLOW_GOVERNORS = ("powersave", "ondemand", "conservative")


@dataclass(frozen=True)
class Before:
    """What :func:`look_before` saw, to be compared with what is there when measuring is over."""

    load: float | None
    throttled_count: int | None


def look_before() -> Before:
    """Read what other work and the quota have done so far."""
    return Before(processor.load_average(), processor.throttled_count())


def describe_environment(threads: int, spinning: bool, before: Before | None = None) -> Environment:
    """Describe this machine, the versions in use, how the session was set up, and what happened since ``before``."""
    throttled = processor.throttled_count()
    return Environment(
        processor=_processor_name(),
        machine=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        logical_cores=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        memory_bytes=int(psutil.virtual_memory().total),
        python=platform.python_version(),
        packages=installed_versions(),
        threads=threads,
        spinning=spinning,
        affinity=processor.affinity(),
        quota_cores=processor.quota_cores(),
        governor=processor.frequency_governor(),
        turbo=processor.turbo(),
        load_before=before.load if before else None,
        load_after=processor.load_average() if before else None,
        throttled_periods=(
            throttled - before.throttled_count
            if before and before.throttled_count is not None and throttled is not None
            else None
        ),
    )


def environment_doubts(environment: Environment) -> list[str]:
    """Return what the state of the processor makes doubtful, once measuring is over."""
    doubts, quota, threads = [], environment.quota_cores, environment.threads
    if quota is not None and threads > quota:
        doubts.append(
            f"{threads} threads on a cgroup quota of {quota:g} cores: all are stopped when it is used up, up to 0.1 s at a time, "
            f"which p90 and p99 then show: use --threads {max(1, int(quota))}"
        )
    if environment.throttled_periods:
        doubts.append(f"the cgroup's quota was used up in {environment.throttled_periods} periods while measuring")
    if environment.affinity is not None and threads > len(environment.affinity):
        doubts.append(f"{threads} threads may run on {len(environment.affinity)} cores only, by this process's affinity")
    if environment.governor in _SLOW_GOVERNORS:
        doubts.append(
            f"the frequency governor is {environment.governor}: cores start slow and speed up under load; "
            "for figures that repeat, cpupower frequency-set -g performance"
        )
    return doubts


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that figures depend on; those not installed are left out."""
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def environment_warnings() -> list[str]:
    """Return what about this machine makes its figures doubtful."""
    versions = installed_versions()
    warnings = []
    if "onnxruntime" in versions and "onnxruntime-gpu" in versions:
        warnings.append(
            "onnxruntime and onnxruntime-gpu are both installed and own the same folder, so one has overwritten the other: "
            "uninstall both, then install one"
        )
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1):
        warnings.append("other work kept the machine busy: its load average was above its number of cores when measuring began")
    return warnings


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
