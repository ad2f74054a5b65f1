"""Where a graph can run. A new target is one file here and one entry in ``TARGETS``."""

from monograph.errors import ConfigError
from monograph.runtime.targets.cpu import CPU
from monograph.runtime.targets.cuda import CUDA, TENSORRT
from monograph.runtime.targets.qnn_htp import QNN_HTP
from monograph.runtime.targets.target import Availability, Target
from monograph.runtime.targets.webgpu import WEBGPU

TARGETS: dict[str, Target] = {target.name: target for target in (CPU, CUDA, TENSORRT, QNN_HTP, WEBGPU)}


def find_target(name: str) -> Target:
    """Return the target called ``name``.

    Raises:
        ConfigError: there is no such target.
    """
    if name not in TARGETS:
        raise ConfigError(f"unknown target {name!r}: choose from {', '.join(TARGETS)}")
    return TARGETS[name]


__all__ = ["TARGETS", "Availability", "Target", "find_target"]
