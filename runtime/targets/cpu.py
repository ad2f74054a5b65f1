"""The processor of this machine, by ONNX Runtime's default CPU provider."""

from __future__ import annotations

from monograph.runtime.environment import describe_environment
from monograph.runtime.results import Evidence
from monograph.runtime.session import usable_cores
from monograph.runtime.targets.target import Target


def _describe() -> str:
    environment = describe_environment(threads=usable_cores(), spinning=True)
    cores = f"{environment.usable_cores} of {environment.logical_cores} cores usable"
    return f"{environment.processor} ({environment.machine}), {cores}, onnxruntime {environment.packages.get('onnxruntime', '?')}"


CPU = Target("cpu", "CPUExecutionProvider", Evidence.EXECUTED, _describe, lambda: True)
