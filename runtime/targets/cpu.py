"""The processor of this machine, by ONNX Runtime's default CPU provider."""

from __future__ import annotations

from monograph.runtime.environment import describe_environment
from monograph.runtime.instruction_sets import instruction_set_here
from monograph.runtime.results import Evidence
from monograph.runtime.session import usable_cores
from monograph.runtime.targets.target import Availability, Target


def _probe() -> Availability:
    environment = describe_environment(threads=usable_cores(), spinning=True)
    cores = f"{environment.usable_cores} of {environment.logical_cores} cores usable"
    version = environment.packages.get("onnxruntime", "?")
    kind = instruction_set_here() or environment.machine
    return Availability(True, f"{environment.processor} ({kind}), {cores}, onnxruntime {version}")


CPU = Target(
    "cpu",
    "the processor of this machine",
    "CPUExecutionProvider",
    Evidence.EXECUTED,
    _probe,
    instruction_set=instruction_set_here,
)
