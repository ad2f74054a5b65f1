"""Where a graph can run. A new target is one file here and one entry in ``TARGETS``."""

from monograph.errors import ConfigError
from monograph.runtime.targets.arm64 import ARM64
from monograph.runtime.targets.coreml import COREML
from monograph.runtime.targets.cpu import CPU
from monograph.runtime.targets.cuda import CUDA, TENSORRT
from monograph.runtime.targets.emulated_x86 import CPU_AVX2, CPU_SSE4
from monograph.runtime.targets.nnapi import NNAPI
from monograph.runtime.targets.qnn_htp import QNN_HTP
from monograph.runtime.targets.ssh import SCHEME, ssh_target
from monograph.runtime.targets.target import Availability, Target
from monograph.runtime.targets.web import WEB_WASM, WEB_WEBGPU
from monograph.runtime.targets.webgpu import WEBGPU
from monograph.runtime.targets.xnnpack import XNNPACK

_ALL = (
    CPU, CUDA, TENSORRT, QNN_HTP, WEBGPU, WEB_WASM, WEB_WEBGPU, CPU_AVX2, CPU_SSE4, ARM64, COREML, NNAPI, XNNPACK,
)  # fmt: skip
TARGETS: dict[str, Target] = {target.name: target for target in _ALL}


def find_target(name: str) -> Target:
    """Return the target called ``name``: one of ``TARGETS``, or another machine, ``ssh://HOST/cpu``.

    Raises:
        ConfigError: there is no such target.
    """
    if name.startswith(SCHEME):
        return ssh_target(name)
    if name not in TARGETS:
        raise ConfigError(f"unknown target {name!r}: choose from {', '.join(TARGETS)}, or ssh://HOST/cpu")
    return TARGETS[name]


__all__ = ["TARGETS", "Availability", "Target", "find_target"]
