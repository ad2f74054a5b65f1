"""A gate row that a model was fitted, calibrated or chosen on proves nothing: such rows are refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monograph.errors import DataError
from monograph.models.data.stream import RowStream
from monograph.models.onnx_file import OnnxFile
from monograph.models.seen import SEEN_KEY, read_seen

_SHOWN_ROWS = 5


def refuse_seen_rows(files: Sequence[OnnxFile], streams: Sequence[RowStream]) -> tuple[str, ...]:
    """Refuse rows that any of ``files`` says it has seen; return a note for each that says nothing.

    Args:
        files: candidate and reference.
        streams: the gate rows, as each of them reads them.

    Raises:
        DataError: a row was seen.
        SourceError: a file's record of what it has seen is damaged.
    """
    # Models that take other columns of DATA tell a row by those.
    digests = [stream.digests() for stream in _unlike(streams)]
    for file in files:
        seen = read_seen(file)
        hits = np.flatnonzero(np.logical_or.reduce([seen.among(own) for own in digests])) if len(seen) else np.empty(0, int)
        if len(hits):
            first = ", ".join(map(str, hits[:_SHOWN_ROWS].tolist())) + (", …" if len(hits) > _SHOWN_ROWS else "")
            raise DataError(
                f"{streams[0].table.origin}: {len(hits)} of {streams[0].row_count} rows (row {first}) are among those that "
                f"{file.path.name} has seen ({seen.describe()}): they prove nothing of other rows; give rows that no step used"
            )
    return tuple(
        f"{file.path.name} does not record which rows it was fitted on: that none of these is among them is not checked"
        for file in files
        if SEEN_KEY not in file.metadata
    )


def _unlike(streams: Sequence[RowStream]) -> list[RowStream]:
    """Return one stream for each set of columns that inputs are read from."""
    return list({frozenset(stream.plan.inputs.values()): stream for stream in reversed(streams)}.values())
