"""A GPU by WebGPU (Dawn, over Vulkan, Metal or Direct3D), by the plugin provider; without one, SwiftShader on the processor.

SwiftShader is Google's software Vulkan and comes with Chromium: it runs the same shaders, so accuracy holds; its time is no
latency of any GPU.
"""

from __future__ import annotations

import ctypes.util
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from monograph.errors import MonographError
from monograph.runtime.job import Job, RawRun, call_in_process, run_in_process
from monograph.runtime.process import Launcher, call_in_fresh_process
from monograph.runtime.results import Evidence
from monograph.runtime.session_spec import SessionSpec
from monograph.runtime.targets.plugin import missing_package, version_of
from monograph.runtime.targets.target import Availability, Target

_MODULE = "onnxruntime_ep_webgpu"
_OLDEST_ONNXRUNTIME = (1, 24)
_PROVIDER = "WebGpuExecutionProvider"
_SPEC = SessionSpec(_PROVIDER, plugin=_MODULE)
_SWIFTSHADER = (
    "/usr/lib/chromium/vk_swiftshader_icd.json",
    "/usr/lib/chromium-browser/vk_swiftshader_icd.json",
    "/opt/google/chrome/vk_swiftshader_icd.json",
)
_PROBE_TIMEOUT_S = 60


@dataclass(frozen=True)
class Adapter:
    """What runs the shaders."""

    name: str
    is_software: bool
    environment: dict[str, str] = field(default_factory=dict)
    """That the measuring process needs to find it."""


def _probe() -> Availability:
    missing = missing_package(_MODULE, _OLDEST_ONNXRUNTIME)
    if missing is not None:
        return missing
    if sys.platform == "linux" and ctypes.util.find_library("vulkan") is None:
        return Availability(False, "no Vulkan loader, libvulkan.so.1", "apt-get install libvulkan1")
    adapter = find_adapter()
    if adapter is None:
        return Availability(False, "no GPU that WebGPU can use, and no SwiftShader in its place", "apt-get install chromium")
    evidence = Evidence.SIMULATED if adapter.is_software else Evidence.EXECUTED
    return Availability(True, f"{adapter.name}, onnxruntime-ep-webgpu {version_of('onnxruntime-ep-webgpu')}", evidence=evidence)


@cache
def find_adapter() -> Adapter | None:
    """Return the GPU that the provider finds, in a process of its own, or SwiftShader where there is none."""
    hardware_only = {"ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "0"}
    name = _device_name(Launcher(environment=hardware_only))
    if name is not None:
        return Adapter(name, False, hardware_only)
    for driver in _SWIFTSHADER:
        if Path(driver).exists():
            environment = {"ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1", "VK_ICD_FILENAMES": driver, "VK_DRIVER_FILES": driver}
            if _device_name(Launcher(environment=environment)) is not None:
                return Adapter("no GPU: SwiftShader, a software adapter on the processor", True, environment)
    return None


def _device_name(launcher: Launcher) -> str | None:
    try:
        name: str | None = call_in_fresh_process(
            "monograph.runtime.session:first_device_name", {"provider": _PROVIDER, "plugin": _MODULE}, _PROBE_TIMEOUT_S, launcher
        )
    except MonographError:
        return None
    return name


def _run(job: Job) -> RawRun:
    with _adapter_alone() as adapter:
        if adapter.is_software:
            job = replace(job, settings=job.settings.without_latency())
        raw = run_in_process(job, Launcher(environment=adapter.environment))
    return replace(raw, evidence=Evidence.SIMULATED if adapter.is_software else Evidence.EXECUTED, device=adapter.name)


def _call(function: str, job: Job) -> Any:
    with _adapter_alone() as adapter:
        return call_in_process(function, job, Launcher(environment=adapter.environment))


@contextmanager
def _adapter_alone() -> Iterator[Adapter]:
    """Yield the adapter that there is, to one process at a time: two at once crash."""
    adapter = find_adapter()
    assert adapter is not None
    user = os.getuid() if hasattr(os, "getuid") else "user"  # on Windows the folder is the user's own
    with FileLock(Path(tempfile.gettempdir()) / f"monograph-webgpu-{user}.lock"):
        yield adapter


WEBGPU = Target("webgpu", "a GPU, by WebGPU", _PROVIDER, Evidence.EXECUTED, _probe, session=_SPEC, run=_run, call=_call)
