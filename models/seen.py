"""Which rows a model has seen: a model file says so itself, so that a test on one of them is known for what it is.

The metadata ``monograph.seen_rows`` holds what rows were used for and how many, and the 64-bit digest of each
(:mod:`monograph.models.data.digests`): up to 20,000 of them in the file itself, sorted, in base64 (11 bytes a row), more in a
file beside it that is named and hashed there. Two different rows have one digest with a probability of 5e-20.

Shape letters: ``n`` rows.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

import numpy as np

from monograph.errors import SourceError
from monograph.models.bounded import parse_json
from monograph.models.data.digests import row_digests
from monograph.models.data.rows import Array, Rows
from monograph.models.files import is_plain_name, write_atomically
from monograph.models.onnx_file import OnnxFile, add_metadata, read_onnx

SEEN_KEY = "monograph.seen_rows"
MOST_INLINE = 20_000
_VERSION = 1
_DTYPE = "<u8"


@dataclass(frozen=True)
class SeenRows:
    """Rows that a model, or one that it was made of, was fitted, calibrated or chosen on."""

    digests: Array = field(default_factory=lambda: np.empty(0, _DTYPE))
    """uint64 ``[n]``, sorted, each once."""
    uses: Mapping[str, int] = field(default_factory=dict)
    """What rows were used for, such as ``calibration``, with how many."""

    def __or__(self, other: SeenRows) -> SeenRows:
        names = [*self.uses, *(name for name in other.uses if name not in self.uses)]
        # One set of rows that came by two ways, as two members' training rows may, is not counted twice.
        uses = {name: max(self.uses.get(name, 0), other.uses.get(name, 0)) for name in names}
        return SeenRows(np.union1d(self.digests, other.digests).astype(_DTYPE), uses)

    def __len__(self) -> int:
        return len(self.digests)

    def among(self, digests: Array) -> Array:
        """Return which rows of ``digests`` ``[n]`` were seen: bool ``[n]``."""
        return np.isin(digests, self.digests)

    def describe(self) -> str:
        """Return what they were used for."""
        return ", ".join(f"{count:,} rows of {use}" for use, count in self.uses.items()) or "none recorded"


NOTHING_SEEN = SeenRows()


def seen(use: str, *parts: Rows | None) -> SeenRows:
    """Return the rows of ``parts`` as seen for ``use``; those that were made up, not read from a file, count as they are."""
    given = [rows for rows in parts if rows is not None]
    digests = [row_digests(list(rows.inputs.values())) if rows.digests is None else rows.digests for rows in given]
    if not digests:
        return SeenRows()
    return SeenRows(np.unique(np.concatenate(digests)).astype(_DTYPE), {use: sum(map(len, given))})


def seen_by(files: Sequence[OnnxFile]) -> SeenRows:
    """Return all rows that any of ``files`` says it has seen; a file that says nothing counts as having seen none.

    Raises:
        SourceError: a record is damaged, or the file that it names is missing or another.
    """
    return reduce(SeenRows.__or__, map(read_seen, files), SeenRows())


def seen_metadata(rows: SeenRows, path: Path) -> dict[str, str]:
    """Return the metadata that says what the model ``path`` has seen; a long list of rows is written beside it.

    Raises:
        ConfigError: the folder of ``path`` cannot be written to.
    """
    if not len(rows):
        return {}
    packed = rows.digests.astype(_DTYPE).tobytes()
    record = {"version": _VERSION, "uses": dict(rows.uses), "row_count": len(rows)}
    if len(rows) <= MOST_INLINE:
        return {SEEN_KEY: json.dumps(record | {"digests": base64.b64encode(packed).decode()})}
    sha256 = hashlib.sha256(packed).hexdigest()
    # Named by what it holds: a new model never takes from an old one, of the same name, the rows that it names.
    beside = path.with_name(f"{path.stem}.{sha256[:12]}.seen")
    with write_atomically(beside) as staged:
        staged.write_bytes(packed)
    return {SEEN_KEY: json.dumps(record | {"file": beside.name, "sha256": sha256})}


def mark_seen(path: Path, rows: SeenRows) -> None:
    """Let the finished model ``path`` say that it has seen ``rows`` too; its proof holds, which counts no metadata.

    Raises:
        ConfigError: the folder of ``path`` cannot be written to.
        SourceError: ``path`` is no ONNX file, or what it says already is damaged.
    """
    metadata = seen_metadata(read_seen(read_onnx(path)) | rows, path)
    if metadata:
        add_metadata(path, metadata)


def read_seen(file: OnnxFile) -> SeenRows:
    """Return the rows that ``file`` says it has seen; none where it says nothing. A folder of stages says what each of them does.

    Raises:
        SourceError: the record is damaged, or the file that it names is missing or another.
    """
    if file.path.is_dir():
        return seen_by([read_onnx(stage) for stage in sorted(file.path.glob("*.onnx"))])
    if SEEN_KEY not in file.metadata:
        return SeenRows()
    try:
        record = parse_json(file.metadata[SEEN_KEY])
        packed = _packed(record, file.path)
        digests = np.frombuffer(packed, _DTYPE)
        if record["version"] != _VERSION or len(digests) != record["row_count"]:
            raise ValueError(f"version {record['version']}, {len(digests)} digests for {record['row_count']} rows")
        return SeenRows(digests, {str(use): int(count) for use, count in record["uses"].items()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:80]
        raise SourceError(f"{file.path}: metadata {SEEN_KEY!r} is damaged ({reason}): make the model again") from error


def _packed(record: Mapping[str, str], path: Path) -> bytes:
    if "file" not in record:
        return base64.b64decode(record["digests"], validate=True)
    beside = path.parent / record["file"]
    if not is_plain_name(record["file"]) or not beside.is_file():
        raise SourceError(
            f"{path} has seen {record['row_count']} rows, which the file {record['file']!r} lists, and that is missing: copy it "
            "beside the model"
        )
    packed = beside.read_bytes()
    if hashlib.sha256(packed).hexdigest() != record["sha256"]:
        raise SourceError(f"{beside} does not list the rows that {path.name} has seen: it was changed; copy it again")
    return packed
