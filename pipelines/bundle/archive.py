"""A bundle as a ``.zip`` file: unpacked into a folder of its own under limits, so that no archive can harm by what it says.

A zip bomb expands to more than anything real does: a bundle is mostly weights, which hardly shrink. What all entries say
together is held against the size of the archive itself, so entries that overlap count each time.
"""

from __future__ import annotations

import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from monograph.errors import SourceError
from monograph.pipelines.bundle.manifest import MANIFEST, MOST_FILES, require_inside

LARGEST_BYTES = 16 << 30
"""Of all files together, unpacked."""
LARGEST_RATIO = 100
"""Of their bytes to those of the archive."""
_CHUNK_BYTES = 1 << 20
_ENCRYPTED = 1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield a folder with the bundle that the archive ``path`` holds, at its top or in one folder, and remove it afterwards.

    Raises:
        SourceError: it is damaged or unsafe, or holds no bundle.
    """
    with tempfile.TemporaryDirectory(prefix="monograph-bundle-") as name:
        folder = Path(name)
        try:
            with zipfile.ZipFile(path) as archive:
                entries = [entry for entry in archive.infolist() if not entry.is_dir()]
                _check(entries, path)
                for entry in entries:
                    _extract(archive, entry, folder / entry.filename, path)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
            raise SourceError(f"{path} cannot be unpacked ({' '.join(str(error).split())[:120]}): copy it again") from error
        yield _top(folder)


def _check(entries: list[zipfile.ZipInfo], path: Path) -> None:
    """Refuse an archive by what it says of itself, before anything is unpacked."""
    if len(entries) > MOST_FILES:
        raise SourceError(f"{path} holds {len(entries)} files, expected {MOST_FILES} at most")
    size_bytes, packed_bytes = sum(entry.file_size for entry in entries), path.stat().st_size
    if size_bytes > LARGEST_BYTES:
        raise SourceError(f"{path} would unpack to {size_bytes} bytes, more than the {LARGEST_BYTES} that are unpacked here")
    if size_bytes > LARGEST_RATIO * packed_bytes:
        raise SourceError(
            f"{path} has {packed_bytes} bytes and would unpack to {size_bytes}, more than {LARGEST_RATIO} times as many: no "
            "bundle shrinks so; unpack it yourself if you trust it"
        )
    seen: set[str] = set()
    for entry in entries:
        require_inside(entry.filename, str(path))
        mode = entry.external_attr >> 16
        if stat.S_ISLNK(mode):
            raise SourceError(f"{path}: {entry.filename} is a symbolic link, and a bundle holds none")
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise SourceError(f"{path}: {entry.filename} is neither a file nor a folder, and a bundle holds nothing else")
        if entry.flag_bits & _ENCRYPTED or entry.compress_type not in _METHODS:
            raise SourceError(f"{path}: {entry.filename} is encrypted, or packed by another method than deflate: pack it again")
        if entry.filename.casefold() in seen:
            raise SourceError(f"{path} holds {entry.filename} twice")
        seen.add(entry.filename.casefold())


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, path: Path) -> None:
    """Unpack one file, never more of it than was said."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as packed, target.open("xb") as file:
        if _copy(packed, file, entry.file_size) != entry.file_size:
            raise SourceError(f"{path}: {entry.filename} does not unpack to the {entry.file_size} bytes that it says")


def _copy(source: object, target: BinaryIO, most: int) -> int:
    """Copy up to ``most`` bytes and one more, and return how many."""
    assert hasattr(source, "read")
    count = 0
    while count <= most and (chunk := source.read(min(_CHUNK_BYTES, most + 1 - count))):
        target.write(chunk)
        count += len(chunk)
    return count


def _top(folder: Path) -> Path:
    """Return where the bundle begins: archives are made of a folder's contents, or of the folder."""
    entries = list(folder.iterdir())
    inside = len(entries) == 1 and entries[0].is_dir() and (entries[0] / MANIFEST).is_file()
    return entries[0] if inside else folder
