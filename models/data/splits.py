"""Parts of rows that are drawn once and written down, so that a second run learns and judges on the same ones."""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from monograph.errors import DataError
from monograph.models.bounded import read_json
from monograph.models.data.digests import row_digests
from monograph.models.data.rows import Array, Rows
from monograph.models.data.split import stratified_split
from monograph.models.files import write_atomically

_VERSION = 1


def split_once(rows: Rows, sizes: Mapping[str, float | int], seed: int, path: Path) -> dict[str, Rows]:
    """Return disjoint, stratified parts: those that ``path`` names, or new ones, which are written there.

    The file holds the seed, the sizes, and of all rows and of each part the SHA-256 of the rows' digests; of each part its row
    numbers. How a model prepares rows does not matter, nor do their labels: a label that is mended moves no row.

    Args:
        rows: what to divide.
        sizes: of each part, as :func:`~monograph.models.data.split.stratified_split` takes them.
        seed: of the draw.
        path: a JSON file.

    Raises:
        DataError: the parts that ``path`` names are of other rows, sizes or another seed, or it is damaged; or the rows cannot be
            divided so.
        ConfigError: the file cannot be written.
    """
    digests = row_digests(list(rows.inputs.values())) if rows.digests is None else rows.digests
    known = {
        "version": _VERSION,
        "seed": seed,
        "sizes": {name: int(size) if isinstance(size, int | np.integer) else float(size) for name, size in sizes.items()},
        "row_count": len(rows),
        "sha256": _sha256(digests),
    }
    if path.exists():
        return _again(rows, digests, known, path)
    # Not the rows themselves are drawn from: their numbers have to be known.
    numbered = Rows({"row": np.arange(len(rows))}, rows.labels, origin=rows.origin)
    drawn = stratified_split(numbered, sizes, seed)
    told = {name: _told(part, digests) for name, part in drawn.items()}
    with write_atomically(path) as staged:
        staged.write_text(json.dumps(known | {"parts": told}) + "\n", encoding="utf-8")
    return {name: _part(rows, part.inputs["row"], part.assumed) for name, part in drawn.items()}


def _told(part: Rows, digests: Array) -> dict[str, Any]:
    numbers = part.inputs["row"]
    return {
        "row_count": len(part),
        "sha256": _sha256(digests[numbers]),
        "assumed": list(part.assumed),
        "rows": numbers.tolist(),
    }


def _part(rows: Rows, numbers: Array, assumed: Sequence[str]) -> Rows:
    return replace(rows.take(numbers), assumed=(*rows.assumed, *assumed))


def _sha256(digests: Array) -> str:
    return hashlib.sha256(digests.astype("<u8").tobytes()).hexdigest()


def _again(rows: Rows, digests: Array, known: Mapping[str, Any], path: Path) -> dict[str, Rows]:
    try:
        record = read_json(path)
        # As JSON, in which a share of 1.0 is another size than a count of 1.
        differing = [name for name, value in known.items() if json.dumps(record[name]) != json.dumps(value)]
        parts = {name: _read_part(part) for name, part in record["parts"].items()}
        whole = set(parts) == set(record["sizes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise _damaged(path, "is damaged and does not say how the rows were divided") from error
    if differing:
        told = ", ".join(f"{name} was {record[name]} and is {known[name]}" for name in differing)
        raise DataError(f"{path} divides other rows, or otherwise ({told}): give the same DATA and seed, or another folder")
    chosen = np.concatenate([numbers for numbers, _, _ in parts.values()]) if whole else np.array([-1])
    if not len(chosen) or chosen.min() < 0 or chosen.max() >= len(rows) or len(np.unique(chosen)) < len(chosen):
        raise _damaged(path, "names rows that there are not, or one twice, or lacks a part")
    for name, (numbers, sha256, _) in parts.items():
        if not len(numbers) or _sha256(digests[numbers]) != sha256:
            raise _damaged(path, f"names other {name} rows than were drawn")
    return {name: _part(rows, numbers, assumed) for name, (numbers, _, assumed) in parts.items()}


def _read_part(part: Mapping[str, Any]) -> tuple[Array, str, list[str]]:
    """Return the numbers, the SHA-256 and the assumptions that the file has of one part."""
    numbers = np.array([operator.index(number) for number in part["rows"]], np.int64)
    return numbers, part["sha256"], list(map(str, part["assumed"]))


def _damaged(path: Path, how: str) -> DataError:
    return DataError(f"{path} {how}: remove it, and the rows are divided anew")
