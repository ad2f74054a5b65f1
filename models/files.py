"""Writing so that a kill at any moment leaves the old file or the new one, never half of one."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from monograph.errors import ConfigError

_CHUNK_BYTES = 1 << 20
STAGING_PREFIX = ".monograph-"


@contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """Yield a new empty folder in ``parent`` (made if missing), on the same file system, and remove what is left of it.

    Raises:
        ConfigError: ``parent`` cannot be made or written to.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=parent))
    except OSError as error:
        raise ConfigError(f"cannot write to the folder {parent}: {error.strerror}; choose another output path") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path``; when the block ends well, flush what was written there and rename it to ``path``."""
    with staging_folder(path.absolute().parent) as folder:
        staged = folder / path.name
        yield staged
        publish(staged, path)


def publish(staged: Path, path: Path) -> None:
    """Flush ``staged`` (a file, or a folder with all its files) to disk and rename it to ``path``."""
    for file in [staged] if staged.is_file() else [entry for entry in staged.rglob("*") if entry.is_file()]:
        _flush(file)
    try:
        staged.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; choose another output path") from error
    _flush(path.absolute().parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_plain_name(name: object) -> bool:
    """Say whether ``name`` is that of a file in the folder at hand, and leads nowhere else on any system."""
    if not isinstance(name, str) or name in ("", ".", ".."):
        return False
    return PurePath(name).name == name and "\\" not in name and "\0" not in name


def sha256_of_files(paths: list[Path]) -> str:
    """Return one digest over the contents of ``paths``, in that order, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
