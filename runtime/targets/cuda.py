"""NVIDIA GPUs, by ONNX Runtime's CUDA and TensorRT providers, which come with the package onnxruntime-gpu.

Inputs and outputs stay on the device while calls are timed; a call ends when the stream is done, for ONNX Runtime waits
for it at the end of each run.
"""

from __future__ import annotations

import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

from monograph.runtime.results import Evidence
from monograph.runtime.session import available_providers
from monograph.runtime.session_spec import SessionSpec
from monograph.runtime.targets.target import Availability, Target

_GPU_PACKAGE = "pip uninstall -y onnxruntime && pip install 'monograph[gpu]'"
_PROBE_TIMEOUT_S = 20


def _probe(provider: str, missing: str) -> Availability:
    gpu = _gpu_name()
    if gpu is None:
        return Availability(False, "no NVIDIA GPU: nvidia-smi is missing or finds none", "run on a machine that has one")
    if provider not in available_providers():
        return Availability(False, f"{gpu}, but onnxruntime {_version('onnxruntime')} here has no {provider}", missing)
    return Availability(True, f"{gpu}, onnxruntime-gpu {_version('onnxruntime-gpu')}")


def _gpu_name() -> str | None:
    """Return the first GPU's name and driver, as nvidia-smi tells them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0].replace(", ", ", driver ") if done.returncode == 0 and lines else None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"


CUDA = Target(
    "cuda",
    "an NVIDIA GPU",
    "CUDAExecutionProvider",
    Evidence.EXECUTED,
    lambda: _probe("CUDAExecutionProvider", _GPU_PACKAGE),
    session=SessionSpec("CUDAExecutionProvider", io_binding=True),
)
TENSORRT = Target(
    "tensorrt",
    "an NVIDIA GPU, by TensorRT",
    "TensorrtExecutionProvider",
    Evidence.EXECUTED,
    lambda: _probe("TensorrtExecutionProvider", f"{_GPU_PACKAGE} && pip install tensorrt-cu13"),
    session=SessionSpec("TensorrtExecutionProvider", io_binding=True),
)
