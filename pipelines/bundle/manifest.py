"""The manifest of a bundle: the SHA-256 and size of every file, checked before any of them is opened for what it holds.

It tells every change since the bundle was written. It does not tell who wrote it: whoever can change a file can write a new
manifest too, so what is to be trusted is the SHA-256 of the manifest itself, which ``bundle`` and ``verify`` print.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from monograph import __version__
from monograph.errors import BundleError, SourceError
from monograph.models.bounded import parse_json
from monograph.models.digest import file_sha256
from monograph.models.files import is_plain_name
from monograph.pipelines.records import to_json

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
MOST_FILES = 10_000
_LARGEST_BYTES = 1 << 24


@dataclass(frozen=True)
class Entry:
    """One file."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds, the manifest itself left out."""

    files: Mapping[str, Entry]
    """By path inside the bundle, written with ``/``."""
    licence: str | None
    """SPDX expression of the model; None where nobody stated one."""
    monograph: str
    """The version that wrote it."""
    version: int = MANIFEST_VERSION


def canonical_json(value: Any) -> str:
    """Return JSON that is the same text for the same value: keys sorted, one line an item."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def write_manifest(folder: Path, licence: str | None) -> Manifest:
    """Write the manifest of all other files that stand in ``folder``."""
    files = {place: Entry(file_sha256(path), path.stat().st_size) for place, path in sorted(_walk(folder)) if place != MANIFEST}
    manifest = Manifest(files, licence, __version__)
    (folder / MANIFEST).write_text(canonical_json(json.loads(to_json(manifest))), encoding="utf-8")
    return manifest


def check_bundle(folder: Path) -> Manifest:
    """Return the manifest of ``folder`` once every file is what it says; nothing but the manifest is read for what it holds.

    Raises:
        SourceError: there is no manifest, or it is damaged, or the folder holds a link or a special file, or a path leaves it.
        BundleError: a file was changed, is missing, or is not of the bundle.
    """
    manifest = read_manifest(folder)
    found = dict(_walk(folder))
    found.pop(MANIFEST, None)
    missing, further = sorted(set(manifest.files) - set(found)), sorted(set(found) - set(manifest.files))
    if missing:
        raise BundleError(f"{folder}: {missing[0]} is missing{_and_others(missing)}: copy the whole bundle again")
    if further:
        raise BundleError(f"{folder}: {further[0]} is not of this bundle{_and_others(further)}: remove it, or copy it again")
    for place, entry in manifest.files.items():
        size_bytes = found[place].stat().st_size
        if size_bytes != entry.size_bytes:
            raise BundleError(f"{folder}: {place} was changed: {size_bytes} bytes, then {entry.size_bytes}: copy it again")
        if (sha256 := file_sha256(found[place])) != entry.sha256:
            raise BundleError(f"{folder}: {place} was changed: SHA-256 {sha256[:12]}…, then {entry.sha256[:12]}…: copy it again")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest alone.

    Raises:
        SourceError: it is missing or damaged, of a newer version, or names a path that leaves the folder.
    """
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise SourceError(f"{folder} is no bundle: it holds no file {MANIFEST}; write one by monograph bundle MODEL -o DIR")
    if path.stat().st_size > _LARGEST_BYTES:
        raise SourceError(f"{path} has {path.stat().st_size} bytes, expected {_LARGEST_BYTES} at most")
    try:
        record = parse_json(path.read_bytes(), unique_keys=True)
        manifest = TypeAdapter(Manifest).validate_python(record)
    except (ValidationError, ValueError, RecursionError) as error:
        raise SourceError(f"{path} is damaged ({_brief(error)}): copy the bundle again") from error
    if manifest.version != MANIFEST_VERSION:
        raise SourceError(f"{path} is of version {manifest.version}, this monograph reads {MANIFEST_VERSION}: update monograph")
    if len(manifest.files) > MOST_FILES:
        raise SourceError(f"{path} names {len(manifest.files)} files, expected {MOST_FILES} at most")
    for place in manifest.files:
        require_inside(place, str(path))
    return manifest


def require_inside(place: str, where: str) -> None:
    """Refuse a path that leads out of the folder at hand on any system.

    Raises:
        SourceError: it is absolute, climbs, or is not written plainly.
    """
    parts = place.split("/")
    if place.startswith(("/", "\\")) or ":" in parts[0]:
        raise SourceError(f"{where} names {place!r}, an absolute path: this is no bundle that monograph wrote")
    if not all(is_plain_name(part) for part in parts):
        raise SourceError(f"{where} names {place!r}, a path that leaves the folder: this is no bundle that monograph wrote")


def _walk(folder: Path, above: str = "") -> Iterator[tuple[str, Path]]:
    """Yield every file with its path inside the bundle; no link is followed.

    Raises:
        SourceError: there is a link, or something that is neither a file nor a folder.
    """
    with os.scandir(folder) as scanned:
        entries = list(scanned)
    for entry in entries:
        place, mode = above + entry.name, entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            raise SourceError(f"{folder}: {place} is a symbolic link, and a bundle holds none: copy what it points to")
        if stat.S_ISDIR(mode):
            yield from _walk(Path(entry.path), f"{place}/")
        elif stat.S_ISREG(mode):
            yield place, Path(entry.path)
        else:
            raise SourceError(f"{folder}: {place} is neither a file nor a folder, and a bundle holds nothing else: remove it")


def _and_others(places: list[str]) -> str:
    return f", and {len(places) - 1} more" if len(places) > 1 else ""


def _brief(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return " ".join(str(error).split())[:120]
