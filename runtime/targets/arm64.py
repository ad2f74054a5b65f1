"""ONNX Runtime's kernels for 64-bit ARM, by qemu-user: the real NEON code on emulated instructions.

What it computes is what an ARM processor with these features computes; how long that takes says nothing.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import monograph
from monograph.errors import ConfigError
from monograph.runtime.instruction_sets import InstructionSet
from monograph.runtime.job import Job, RawRun
from monograph.runtime.process import Launcher, environment_of
from monograph.runtime.results import Evidence
from monograph.runtime.sysroot import (
    CPU_MODEL,
    INSTALL_COMMAND,
    Sysroot,
    find_sysroot,
    install,
    onnxruntime_version,
    sysroot_folder,
)
from monograph.runtime.targets.emulator import INSTALL_EMULATOR, emulator_version, find_emulator, run_emulated
from monograph.runtime.targets.target import Availability, Target

__all__ = ["ARM64", "install", "launcher_for"]

_MACHINE = "aarch64"
_CHECK_TIMEOUT_S = 300
_CHECK = (
    "import json, platform, numpy, onnxruntime; "
    "print(json.dumps([platform.machine(), platform.python_version(), numpy.__version__, onnxruntime.__version__]))"
)


def _probe() -> Availability:
    emulator, sysroot = find_emulator(_MACHINE), find_sysroot()
    missing = []
    if emulator is None:
        missing.append(("qemu-user is not installed", INSTALL_EMULATOR))
    if sysroot is None:
        missing.append((f"no arm64 sysroot in {sysroot_folder()}", INSTALL_COMMAND))
    if emulator is None or sysroot is None:
        return Availability(False, " and ".join(what for what, _ in missing), " && ".join(remedy for _, remedy in missing))
    return Availability(True, f"{emulator_version(emulator)}, -cpu {CPU_MODEL}, onnxruntime {sysroot.onnxruntime} for aarch64")


def launcher_for(sysroot: Sysroot) -> Launcher:
    """Return how the sysroot's Python is started, with this very monograph.

    Raises:
        ConfigError: qemu-user is not installed.
    """
    emulator = find_emulator(_MACHINE)
    if emulator is None:
        raise ConfigError(f"qemu-user is not installed: {INSTALL_EMULATOR}")
    # The sysroot's packages come first: where monograph is installed, this machine's own numpy lies beside it.
    here = Path(monograph.__file__).parent.parent
    return Launcher(
        command=(emulator, "-L", str(sysroot.folder), "-cpu", CPU_MODEL, str(sysroot.interpreter)),
        environment={
            "PYTHONHOME": str(sysroot.folder / "usr"),
            "PYTHONNOUSERSITE": "1",
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": str(sysroot.folder / "pycache"),
            "LD_LIBRARY_PATH": "",
            "LD_PRELOAD": "",
        },
        python_path=(str(sysroot.site), str(here)),
    )


def check_sysroot(sysroot: Sysroot, launcher: Launcher) -> str:
    """Start the sysroot's Python and load ONNX Runtime; return the versions that it tells.

    Raises:
        ConfigError: it does not start, a library is missing or one is for another processor; the loader's words are in it.
    """
    try:
        done = subprocess.run(
            [*launcher.command, "-c", _CHECK],
            env=environment_of(launcher), capture_output=True, text=True, timeout=_CHECK_TIMEOUT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _broken(sysroot, str(error)) from error
    if done.returncode != 0:
        raise _broken(sysroot, _loader_words(done.stderr) or f"exit code {done.returncode}")
    machine, python, numpy, onnxruntime = json.loads(done.stdout.splitlines()[-1])
    if onnxruntime != sysroot.onnxruntime:
        raise _broken(sysroot, f"it holds onnxruntime {onnxruntime} and was made with {sysroot.onnxruntime}")
    return f"python {python}, numpy {numpy}, {machine}"


def _broken(sysroot: Sysroot, why: str) -> ConfigError:
    return ConfigError(f"the arm64 sysroot {sysroot.folder} does not work ({why}): make it anew, {INSTALL_COMMAND} --again")


def _loader_words(stderr: str) -> str:
    """The line that names the library, or the last one."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    telling = [line for line in lines if "shared object" in line or "ELF" in line or "Original error was" in line]
    return (telling or lines[-1:] or [""])[-1]


def _run(job: Job) -> RawRun:
    sysroot = find_sysroot()
    if sysroot is None:
        raise ConfigError(f"no arm64 sysroot in {sysroot_folder()}: {INSTALL_COMMAND}")
    launcher = launcher_for(sysroot)
    versions = check_sysroot(sysroot, launcher)
    run = run_emulated(job, launcher)
    warnings = run.warnings
    if sysroot.onnxruntime != onnxruntime_version():
        other = f"the arm64 sysroot holds onnxruntime {sysroot.onnxruntime} and this machine {onnxruntime_version()}"
        warnings += (f"{other}: outputs may differ by more than the kernels",)
    return replace(run, device=f"{_probe().detail}, {versions}", warnings=warnings)


ARM64 = Target(
    "arm64",
    "the kernels for 64-bit ARM, emulated by qemu-user",
    "CPUExecutionProvider",
    Evidence.SIMULATED,
    _probe,
    run=_run,
    call=None,
    install=lambda: str(install().folder),
    instruction_set=lambda: InstructionSet.ARM64_DOTPROD,
)
