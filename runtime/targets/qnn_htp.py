"""Qualcomm's Hexagon NPU (HTP) by the QNN provider: the NPU itself on a Snapdragon machine, its simulator on x86-64.

The simulator comes with the package onnxruntime-qnn. It computes the NPU's own numbers, some hundred times slower than the NPU:
right for accuracy and placement, worthless for latency. ``--provider-option soc_model=57`` chooses another chip.
"""

from __future__ import annotations

import platform

from monograph.runtime.results import Evidence
from monograph.runtime.session_spec import SessionSpec
from monograph.runtime.targets.plugin import missing_package, version_of
from monograph.runtime.targets.target import Availability, Target

_MODULE = "onnxruntime_qnn"
_OLDEST_GLIBC = (2, 35)
_OLDEST_ONNXRUNTIME = (1, 24)
_SIMULATED = ("x86_64", "amd64")
_MACHINES = (*_SIMULATED, "aarch64", "arm64")
_IS_SIMULATED = platform.machine().lower() in _SIMULATED


def _probe() -> Availability:
    machine = platform.machine()
    if machine.lower() not in _MACHINES or platform.system() == "Darwin":
        return Availability(
            False,
            f"no QNN library for {platform.system()} on {machine}",
            "run on Linux or Windows, on x86-64 for the simulator or on a Snapdragon for the NPU",
        )
    library, found = platform.libc_ver()
    if library == "glibc" and tuple(int(part) for part in found.split(".")[:2]) < _OLDEST_GLIBC:
        needed = ".".join(map(str, _OLDEST_GLIBC))
        return Availability(False, f"onnxruntime-qnn needs glibc {needed}, here is {found}", "run on a newer system")
    missing = missing_package(_MODULE, _OLDEST_ONNXRUNTIME)
    if missing is not None:
        return missing
    device = "simulator of the Hexagon NPU" if _IS_SIMULATED else "Hexagon NPU"
    return Availability(True, f"{device}, onnxruntime-qnn {version_of('onnxruntime-qnn')}")


QNN_HTP = Target(
    "qnn-htp",
    "Qualcomm's Hexagon NPU",
    "QNNExecutionProvider",
    Evidence.SIMULATED if _IS_SIMULATED else Evidence.EXECUTED,
    _probe,
    session=SessionSpec(
        "QNNExecutionProvider",
        # By default the first QuantizeLinear and the last DequantizeLinear are left to the processor.
        {"backend_type": "htp", "offload_graph_io_quantization": "0"},
        plugin=_MODULE,
    ),
    lowering="qdq-htp",
    is_strict=True,
)
