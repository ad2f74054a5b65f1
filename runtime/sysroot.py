"""The arm64 sysroot: what an aarch64 Python with ONNX Runtime needs to run under qemu-user, in one folder of its own.

Debian's arm64 packages of Python and the C libraries are unpacked, not installed, and the aarch64 wheels of ONNX Runtime
and numpy beside them, so the system's own packages and architectures stay as they are. Made once, by
``python -m monograph.runtime.sysroot``; needs apt, dpkg-deb and pip, and no rights of root.

::

    SYSROOT/usr, lib, etc     Debian's packages
    SYSROOT/site              the wheels
    SYSROOT/proc/cpuinfo      of the processor that is emulated: ONNX Runtime reads it, and qemu would show the host's
    SYSROOT/sysroot.json      what is in it, written last
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from monograph.errors import ConfigError, MissingPackageError, MonographError, WorkerError
from monograph.models.files import publish

PLACE_VARIABLE = "MONOGRAPH_ARM64_SYSROOT"
INSTALL_COMMAND = "python -m monograph.runtime.sysroot"
PYTHON = "python3.11"
NUMPY_VERSION = "2.4.6"
_KNOWN_ONNXRUNTIME = "1.32.0"
_SUITE = "bookworm"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DEBIAN_PACKAGES = (
    "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libgcc-s1", "libstdc++6", "zlib1g",
    "libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5",
)  # fmt: skip
_PLATFORM = "manylinux_2_28_aarch64"
_MANIFEST = "sysroot.json"

CPU_MODEL = "cortex-a76"
"""As in a Raspberry Pi 5 and phones since 2018: fp16 arithmetic and the int8 dot product (ARMv8.2-A), no i8mm, no SVE."""
_CPU_FEATURES = "fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
"""Those that qemu's ``-cpu cortex-a76`` tells a program by AT_HWCAP (0x119ffb), in the words of Linux."""
_CPU_PART = "0xd0b"


@dataclass(frozen=True)
class Sysroot:
    """A finished sysroot and what is in it."""

    folder: Path
    onnxruntime: str
    numpy: str
    debian: dict[str, str]
    """Versions of the packages by name."""

    @property
    def interpreter(self) -> Path:
        """The aarch64 Python."""
        return self.folder / "usr" / "bin" / PYTHON

    @property
    def site(self) -> Path:
        """The folder of the wheels."""
        return self.folder / "site"


def sysroot_folder() -> Path:
    """Return where the sysroot is or would be: ``$MONOGRAPH_ARM64_SYSROOT``, or a folder for this version in the user's cache."""
    chosen = os.environ.get(PLACE_VARIABLE)
    if chosen:
        return Path(chosen).absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "monograph" / "arm64" / f"onnxruntime-{onnxruntime_version()}"


def onnxruntime_version() -> str:
    """Return the version that belongs in the sysroot: that of this Python, so that outputs differ by the kernels alone."""
    for package in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return _KNOWN_ONNXRUNTIME


def find_sysroot() -> Sysroot | None:
    """Return the sysroot of this user, or None where none was finished."""
    folder = sysroot_folder()
    try:
        record = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return Sysroot(folder, record["onnxruntime"], record["numpy"], record["debian"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def install(*, again: bool = False) -> Sysroot:
    """Make the sysroot, or return the one that is there; ``again`` makes it anew.

    It is built beside its place and renamed when it is whole; what a killed installation left is removed first.

    Raises:
        MissingPackageError: apt-get, dpkg-deb, pip or Debian's keyring is not here.
        ConfigError: the folder cannot be written to, or holds something that is no sysroot.
        WorkerError: a download or unpacking failed.
    """
    folder = sysroot_folder()
    with _locked(folder):
        here = find_sysroot()
        if here is not None and not again:
            return here
        if here is None and folder.exists() and any(folder.iterdir()):
            raise ConfigError(
                f"{folder} is in the way and no finished sysroot: remove it, or set {PLACE_VARIABLE} to another folder"
            )
        check_tools()
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            sysroot = _build(partial, folder)
            if folder.exists():
                shutil.rmtree(folder)
            publish(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return sysroot


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time make ``folder``; the lock ends with the process, however it ends."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}.lock").open("w")
    except OSError as error:
        raise ConfigError(f"cannot write to {folder.parent}: {error.strerror}; set {PLACE_VARIABLE} to another folder") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def check_tools() -> None:
    """Look for what making a sysroot needs.

    Raises:
        MissingPackageError: apt-get, dpkg-deb or Debian's keyring is not here.
    """
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise MissingPackageError(
            f"{', '.join(missing)} not found: the arm64 sysroot is made of Debian packages, so make it on Debian "
            f"and copy it here, with {PLACE_VARIABLE} set to its folder"
        )
    if not _KEYRING.exists():
        raise MissingPackageError(
            f"{_KEYRING} not found, which Debian's packages are checked by: apt-get install {_KEYRING.stem}"
        )


def _build(partial: Path, folder: Path) -> Sysroot:
    """Fill ``partial``, which is to become ``folder``."""
    work = partial / "work"
    work.mkdir(parents=True)
    packages = _download_packages(work)
    for package in packages:
        _do(["dpkg-deb", "-x", str(package), str(partial)], f"unpacking {package.name}")
    _unpack_wheels(partial / "site")
    _write_processor(partial, os.cpu_count() or 1)
    shutil.rmtree(work)
    debian = {_field(package.name, 0): _field(package.name, 1) for package in packages}
    sysroot = Sysroot(folder, onnxruntime_version(), NUMPY_VERSION, debian)
    record = asdict(sysroot) | {"cpu": CPU_MODEL}
    del record["folder"]
    (partial / _MANIFEST).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return sysroot


def _mirrors() -> list[tuple[str, str]]:
    """Return where this machine's apt finds Debian's suite, its updates and its security fixes.

    Raises:
        MissingPackageError: it knows no such place.
    """
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [tuple(line.split()) for line in done.stdout.splitlines() if len(line.split()) == 2]
    mirrors = sorted({(uri, suite) for uri, suite in found if suite.split("-")[0] == _SUITE})
    if not mirrors:
        raise MissingPackageError(
            f"apt has no sources of Debian {_SUITE} here, of whose packages the arm64 sysroot is made: make it on a machine that "
            f"has, or in a container of it, and copy it here, with {PLACE_VARIABLE} set to its folder"
        )
    return mirrors


def _download_packages(work: Path) -> list[Path]:
    """Download with an apt of our own: its lists, cache and sources lie in ``work``, the system's are not touched."""
    sources, state, cache, target = work / "sources.list", work / "state", work / "cache", work / "packages"
    for made in (state / "lists" / "partial", cache / "archives" / "partial", target):
        made.mkdir(parents=True)
    options = f"[arch=arm64 signed-by={_KEYRING}]"
    sources.write_text("".join(f"deb {options} {mirror} {suite} main\n" for mirror, suite in _mirrors()))
    settings = {
        "APT::Architecture": "arm64", "APT::Architectures": "arm64", "APT::Sandbox::User": "root",
        "Dir::State": state, "Dir::State::status": "/dev/null", "Dir::Cache": cache,
        "Dir::Etc::sourcelist": sources, "Dir::Etc::sourceparts": "/dev/null",
        "Acquire::Languages": "none", "Acquire::Retries": "2",
    }  # fmt: skip
    apt = ["apt-get", "-q", *(text for key, value in settings.items() for text in ("-o", f"{key}={value}"))]
    _do([*apt, "--error-on=any", "update"], "reading Debian's list of arm64 packages")
    _do([*apt, "download", *DEBIAN_PACKAGES], "downloading Debian's arm64 packages", target)
    return sorted(target.glob("*.deb"))


def _unpack_wheels(site: Path) -> None:
    pins = [f"onnxruntime=={onnxruntime_version()}", f"numpy=={NUMPY_VERSION}"]
    python = ["--python-version", PYTHON.removeprefix("python"), "--implementation", "cp", "--platform", _PLATFORM]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-compile"]
    _do(
        [*pip, "--only-binary=:all:", *python, "--target", str(site), *pins],
        f"installing the aarch64 wheels of {' and '.join(pins)}",
    )


def _write_processor(root: Path, cores: int) -> None:
    """Describe ``cores`` cores of ``CPU_MODEL`` in the form of an ARM Linux; ONNX Runtime ≥ 1.28 crashes on x86's form."""
    lines = (
        f"Features\t: {_CPU_FEATURES}", "CPU implementer\t: 0x41", "CPU architecture: 8", "CPU variant\t: 0x4",
        f"CPU part\t: {_CPU_PART}", "CPU revision\t: 1",
    )  # fmt: skip
    cpuinfo = root / "proc" / "cpuinfo"
    cpuinfo.parent.mkdir(exist_ok=True)
    cpuinfo.write_text("".join("\n".join((f"processor\t: {core}", *lines, "", "")) for core in range(cores)))


def _field(file_name: str, index: int) -> str:
    """Return the name (0) or version (1) from ``NAME_VERSION_arm64.deb``, where apt writes ``:`` as ``%3a``."""
    return file_name.split("_")[index].replace("%3a", ":")


def _do(command: Sequence[str], what: str, folder: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise WorkerError(f"{what} failed ({command[0]}: {error.strerror})") from error
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise WorkerError(
            f"{what} failed ({' | '.join(lines[-3:]) or f'exit code {done.returncode}'}): run it again when that is mended"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the sysroot from the command line."""
    parser = argparse.ArgumentParser(prog=INSTALL_COMMAND, description="Make the sysroot of the target arm64.")
    parser.add_argument("--again", action="store_true", help="make it anew even where it is there")
    options: Any = parser.parse_args(arguments)
    try:
        sysroot = install(again=options.again)
    except MonographError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(
        f"{sysroot.folder}: onnxruntime {sysroot.onnxruntime}, numpy {sysroot.numpy}, {len(sysroot.debian)} packages\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
