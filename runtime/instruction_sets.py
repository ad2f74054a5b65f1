"""The instruction set of a processor, as far as it decides how ONNX Runtime multiplies 8-bit integers.

Without VNNI, x86 multiplies unsigned by signed bytes with ``pmaddubsw``, which adds two products in 16 bits and saturates:
255·127 + 255·127 = 64,770 becomes 32,767. A model with such weights then computes something else than on a server with VNNI,
and nothing tells. Exact everywhere are weights of 7 bits (255·64·2 < 32,768) and unsigned weights, whose kernels widen first.
Signed activations are no way out: in a graph of QuantizeLinear and DequantizeLinear, ONNX Runtime for x86 rewrites them as
unsigned ones.

ARM's kernels without dot products, and with them those for depthwise convolutions, add products of signed bytes in 16 bits too,
but only -128·-128·2 = 32,768 does not fit: weights from -127 to 127 are exact there.

Sources: ``onnxruntime/core/mlas/lib/platform.cpp`` of ONNX Runtime 1.32, which chooses the kernels;
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html#when-to-use-reduce-range-and-per-channel-quantization;
https://github.com/microsoft/onnxruntime/issues/6004. Imports the standard library only, and asks nothing of monograph: its source
is sent to other machines to be run there.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

_SYSCTL = "/usr/sbin/sysctl"
_SYSCTL_TIMEOUT_S = 10


class InstructionSet(StrEnum):
    """What a processor has that ONNX Runtime's 8-bit kernels are written for."""

    SSE4_1 = "x86-64-sse4.1"
    AVX2 = "x86-64-avx2"
    """With FMA, without which ONNX Runtime uses none of it."""
    AVX512 = "x86-64-avx512"
    """AVX512F, BW, DQ and VL, without VNNI: Skylake-X, for example."""
    VNNI = "x86-64-vnni"
    """AVX512-VNNI or AVX-VNNI: 8-bit products are added in 32 bits."""
    ARM64 = "arm64"
    ARM64_DOTPROD = "arm64-dotprod"
    """From ARMv8.2-A on, most since 2018."""

    @property
    def saturates(self) -> bool:
        """True where ONNX Runtime's products of unsigned by signed bytes may saturate in 16 bits.

        With SSE4.1 alone that holds for builds by Microsoft's compiler, so on Windows; those for Linux and macOS use the kernels
        for SSE2, which are exact.
        """
        return self in (InstructionSet.SSE4_1, InstructionSet.AVX2, InstructionSet.AVX512)

    @property
    def wraps(self) -> bool:
        """True where two products of signed bytes, each -128 by -128, may wrap around in 16 bits."""
        return self in (InstructionSet.ARM64, InstructionSet.ARM64_DOTPROD)


def instruction_set_here() -> InstructionSet | None:
    """Return that of this machine; None where the system does not tell, as on Windows."""
    return instruction_set_of(processor_flags(), platform.machine())


def instruction_set_of(flags: Iterable[str], machine: str) -> InstructionSet | None:
    """Return what a processor with these features has; None where ONNX Runtime has no such kernels for it.

    Args:
        flags: names as Linux (``avx512_vnni``, ``asimddp``) or macOS (``AVX512VNNI``) writes them.
        machine: as ``platform.machine()`` tells, such as ``x86_64`` or ``aarch64``.
    """
    has = {_normalised(flag) for flag in flags}
    if machine.lower() in ("aarch64", "arm64"):
        return InstructionSet.ARM64_DOTPROD if "asimddp" in has else InstructionSet.ARM64
    if machine.lower() not in ("x86_64", "amd64") or "sse41" not in has:
        return None
    if not {"avx2", "fma"} <= has:
        return InstructionSet.SSE4_1
    has_avx512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= has
    if "avxvnni" in has or (has_avx512 and "avx512vnni" in has):
        return InstructionSet.VNNI
    return InstructionSet.AVX512 if has_avx512 else InstructionSet.AVX2


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Return the features that this machine's system tells of its first core; none where it tells none."""
    if platform.system() == "Darwin":
        return _flags_of_macos()
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    return flags_of_cpuinfo(text)


def flags_of_cpuinfo(text: str) -> tuple[str, ...]:
    """Return the features in the text of Linux's /proc/cpuinfo: ``flags`` on x86, ``Features`` on ARM."""
    for line in text.splitlines():
        name, _, features = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return tuple(features.split())
    return ()


def _flags_of_macos() -> tuple[str, ...]:
    if platform.machine() == "arm64":
        return ("asimddp",) if _sysctl("hw.optional.arm.FEAT_DotProd").strip() == "1" else ()
    return tuple(f"{_sysctl('machdep.cpu.features')} {_sysctl('machdep.cpu.leaf7_features')}".split())


def _sysctl(name: str) -> str:
    try:
        done = subprocess.run([_SYSCTL, "-n", name], capture_output=True, text=True, timeout=_SYSCTL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _normalised(flag: str) -> str:
    return flag.lower().replace("_", "").replace(".", "")
