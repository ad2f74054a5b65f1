"""From the folders of steps to the folder of the run: beside first, then renamed, so that nothing half-written is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from monograph.errors import MonographError
from monograph.models.files import publish, staging_folder, write_atomically
from monograph.models.onnx_file import external_data_files, read_onnx
from monograph.models.seen import SEEN_KEY


def place_file(source: Path, path: Path) -> None:
    """Copy one file."""
    with write_atomically(path) as staged:
        shutil.copyfile(source, staged)


def place_model(source: Path, path: Path) -> None:
    """Copy an ONNX file with what it names beside it: external weights, and a long list of the rows that it has seen.

    Raises:
        SourceError: it cannot be read.
    """
    beside = dict(external_data_files(source))
    record = json.loads(read_onnx(source).metadata.get(SEEN_KEY, "{}"))
    if "file" in record:
        beside[record["file"]] = source.parent / record["file"]
    for location, file in beside.items():
        place_file(file, path.parent / location)
    place_file(source, path)


def place_folder(source: Path, path: Path) -> None:
    """Copy a folder; one that stands there is replaced."""
    with staging_folder(path.absolute().parent) as staging:
        shutil.copytree(source, staging / "new")
        if path.exists():
            path.replace(staging / "old")
        publish(staging / "new", path)


def take_away_file(path: Path) -> None:
    """Remove what an earlier run left, so that it is not taken for this one's."""
    path.unlink(missing_ok=True)


def take_away_bundle(path: Path) -> None:
    """Remove the bundle that an earlier run left; a folder that is no intact bundle is a person's, and stays."""
    from monograph.pipelines.bundle.manifest import check_bundle

    if not path.is_dir():
        return
    try:
        check_bundle(path)
    except MonographError:
        return
    shutil.rmtree(path)
