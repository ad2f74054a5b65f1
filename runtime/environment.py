"""What the machine is: the part of a result without which its figures mean nothing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from monograph.runtime.results import Environment
from monograph.runtime.session import usable_cores

_PACKAGES = ("monograph", "onnxruntime", "onnxruntime-gpu", "onnx", "onnx-ir", "numpy", "torch", "transformers", "optimum-onnx")


def describe_environment(threads: int, spinning: bool) -> Environment:
    """Describe this machine, the versions in use, and how the session was set up."""
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
    )


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
