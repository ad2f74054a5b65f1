"""Where ONNX Runtime Web comes from: npm, at the version and with the digests of ``package-lock.json`` beside this file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from monograph.errors import ConfigError, MissingPackageError, WorkerError
from monograph.models.files import staging_folder

FOLDER_VARIABLE = "MONOGRAPH_WEB_DIR"
_HERE = Path(__file__).parent
_MANIFESTS = ("package.json", "package-lock.json")
_NAME = "onnxruntime-web"
_NPM = ("ci", "--ignore-scripts", "--no-audit", "--no-fund")
_TIMEOUT_S = 600.0
_ERROR_LINES = 3


def pinned_version() -> str:
    """Return the version of onnxruntime-web that figures belong to."""
    manifest = json.loads((_HERE / "package.json").read_text(encoding="utf-8"))
    return str(manifest["dependencies"][_NAME])


def package_folder() -> Path:
    """Return where npm's packages lie: ``MONOGRAPH_WEB_DIR``, or ``monograph/web`` in the user's cache."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "monograph" / "web"


def find_library() -> Path:
    """Return the folder of ONNX Runtime Web's modules and WebAssembly.

    Raises:
        MissingPackageError: it is not installed, or at another version than the pinned one.
    """
    package = package_folder() / "node_modules" / _NAME
    try:
        found = json.loads((package / "package.json").read_text(encoding="utf-8"))["version"]
    except (OSError, ValueError, KeyError):
        found = None
    if found != pinned_version():
        have = "is not installed" if found is None else f"{found} is installed, {pinned_version()} is pinned"
        raise MissingPackageError(f"{_NAME} {have} in {package_folder()}: monograph targets --install web-wasm")
    return package / "dist"


def install_library() -> str:
    """Install the pinned onnxruntime-web by npm, digests checked and no scripts run; return what was installed and where.

    An interrupt leaves what was there before, or nothing.

    Raises:
        ConfigError: npm is not installed.
        WorkerError: npm failed.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigError("npm is not installed, and onnxruntime-web comes from it: apt-get install npm")
    folder = package_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with staging_folder(folder.parent) as staged:
        for name in _MANIFESTS:
            shutil.copy(_HERE / name, staged / name)
        try:
            done = subprocess.run([npm, *_NPM], cwd=staged, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise WorkerError(f"npm took longer than {_TIMEOUT_S:.0f} s to bring {_NAME} and was stopped") from error
        if done.returncode != 0:
            reason = " | ".join(done.stderr.strip().splitlines()[:_ERROR_LINES]) or f"exit code {done.returncode}"
            raise WorkerError(f"npm could not bring {_NAME} {pinned_version()}: {reason}")
        for name in (*_MANIFESTS, "node_modules"):
            _replace(staged / name, folder / name)
    return f"{_NAME} {pinned_version()} in {folder}"


def _replace(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        shutil.rmtree(target)
    source.replace(target)
