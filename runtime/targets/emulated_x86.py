"""Older x86-64 processors, by qemu-user: this machine's own Python and ONNX Runtime on emulated instructions.

ONNX Runtime asks the processor which kernels it can take, and qemu answers for the emulated one. So the real kernels for AVX2 run
on a machine with VNNI, where products of unsigned by signed bytes are exact, and saturate as they do on a processor without.
``cpu-sse4`` runs what ONNX Runtime's builds for Linux have for processors without AVX2: their kernels for SSE2, which are exact.
(Its builds for Windows take kernels for SSE4.1 there, which saturate; no Linux machine can run those.)
"""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass, replace
from functools import partial

from monograph.errors import ConfigError
from monograph.runtime.instruction_sets import InstructionSet
from monograph.runtime.job import Job, RawRun
from monograph.runtime.process import Launcher
from monograph.runtime.results import Evidence
from monograph.runtime.sysroot import onnxruntime_version
from monograph.runtime.targets.emulator import (
    INSTALL_EMULATOR,
    emulator_version,
    find_emulator,
    run_emulated,
    version_number,
)
from monograph.runtime.targets.target import Availability, Target

_MACHINE = "x86_64"


@dataclass(frozen=True)
class Processor:
    """A processor that qemu knows, without what its emulation lacks and no kernel asks for."""

    model: str
    """As qemu and OpenBLAS both call it."""
    without: tuple[str, ...]
    instruction_set: InstructionSet
    oldest_qemu: tuple[int, int]

    @property
    def switch(self) -> str:
        """The value of ``-cpu``; qemu does not start where it cannot emulate all that is left."""
        return ",".join((self.model, *(f"-{feature}" for feature in self.without), "enforce"))


HASWELL = Processor(
    "Haswell", ("pcid", "x2apic", "tsc-deadline", "hle", "invpcid", "rtm"), InstructionSet.AVX2, oldest_qemu=(7, 2)
)
"""Of 2013: AVX2 and FMA, which qemu emulates from 7.2 on."""
NEHALEM = Processor("Nehalem", (), InstructionSet.SSE4_1, oldest_qemu=(2, 0))
"""Of 2008: SSE4.2, no AVX."""


def launcher_for(processor: Processor) -> Launcher:
    """Return how this Python is started on ``processor``.

    Raises:
        ConfigError: qemu-user is not installed.
    """
    emulator = find_emulator(_MACHINE)
    if emulator is None:
        raise ConfigError(f"qemu-user is not installed: {INSTALL_EMULATOR}")
    return Launcher(
        command=(emulator, "-cpu", processor.switch, sys.executable),
        # Kernels that were chosen by hand for this machine's processor would be illegal instructions to the emulated one.
        environment={"OPENBLAS_CORETYPE": processor.model, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )


def _probe(processor: Processor) -> Availability:
    if platform.system() != "Linux" or platform.machine() != _MACHINE:
        here = f"{platform.system()} on {platform.machine()}"
        return Availability(False, f"it is emulated for this machine's own Python, which is for {here}", "run on Linux on x86-64")
    emulator = find_emulator(_MACHINE)
    if emulator is None:
        return Availability(False, "qemu-user is not installed", INSTALL_EMULATOR)
    version = emulator_version(emulator)
    if (version_number(version) or processor.oldest_qemu) < processor.oldest_qemu:
        needed = ".".join(map(str, processor.oldest_qemu))
        why = f"{version} does not emulate {processor.instruction_set}, which needs {needed} or later"
        return Availability(False, why, "install a newer qemu-user")
    return Availability(
        True, f"{version}, -cpu {processor.model} ({processor.instruction_set}), onnxruntime {onnxruntime_version()}"
    )


def _run(processor: Processor, job: Job) -> RawRun:
    return replace(run_emulated(job, launcher_for(processor)), device=_probe(processor).detail)


def _target(name: str, title: str, processor: Processor) -> Target:
    return Target(
        name,
        title,
        "CPUExecutionProvider",
        Evidence.SIMULATED,
        partial(_probe, processor),
        run=partial(_run, processor),
        call=None,
        instruction_set=lambda: processor.instruction_set,
    )


CPU_AVX2 = _target("cpu-avx2", "the kernels for x86-64 with AVX2 and no VNNI, emulated by qemu-user", HASWELL)
CPU_SSE4 = _target("cpu-sse4", "the kernels for x86-64 without AVX2, emulated by qemu-user", NEHALEM)
