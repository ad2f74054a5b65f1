"""What a SOURCE or DATA is, beyond its name: a digest that changes when the thing behind the name does."""

from __future__ import annotations

import hashlib
from pathlib import Path

from monograph.models.factories import FACTORY_PREFIX
from monograph.models.files import sha256_of_files
from monograph.models.onnx_file import read_onnx


def identity_of(text: str) -> str:
    """Return a digest of the file, folder or module that ``text`` names, or ``text`` itself for a hub id."""
    if text.startswith(FACTORY_PREFIX):
        module = text.removeprefix(FACTORY_PREFIX).partition(":")[0]
        file = Path.cwd() / (module.replace(".", "/") + ".py")
        return sha256_of_files([file]) if file.is_file() else text
    if text.endswith(".onnx"):
        return read_onnx(Path(text)).sha256
    path = Path(text.removeprefix("hf:"))
    if path.is_file():
        return sha256_of_files([path])
    if path.is_dir():
        # A folder may hold gigabytes: names, sizes and times stand for its contents.
        stats = [(str(file.relative_to(path)), file.stat()) for file in sorted(path.rglob("*")) if file.is_file()]
        listing = [f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats]
        return hashlib.sha256("\n".join(listing).encode()).hexdigest()
    return text
