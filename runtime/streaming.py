"""Rows handed to the measuring process a chunk at a time: the parent reads the next chunks while the child runs the last.

The two meet in a folder. The parent writes ``chunk-0.npz``, ``chunk-1.npz`` and so on, at most two more than the child has
taken; the child runs a chunk, writes its outputs into one memory-mapped array and removes the chunk. Nothing is read before
the child has done its timing, which it tells by a file: a parent at work would disturb it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from monograph.errors import WorkerError
from monograph.models.data.rows import Rows

if TYPE_CHECKING:
    from monograph.models.data.stream import RowStream

Array = npt.NDArray[Any]
_CHUNKS_AHEAD = 2
_CHUNK_BYTES = 1 << 23
_MOST_CHUNK_ROWS = 4096
_TIMED, _FAILED = "timed", "failed"
_PARENT_POLL_S, _CHILD_POLL_S = 0.005, 0.001


def chunk_rows(first: Rows, multiple: int) -> int:
    """Return how many rows make a chunk of about 8 MiB: a multiple of the batch size, so that only the last is not full."""
    row_bytes = max(sum(array.nbytes for array in first.inputs.values()) // len(first), 1)
    rows = min(max(_CHUNK_BYTES // row_bytes, 1), _MOST_CHUNK_ROWS)
    return max(rows // multiple, 1) * multiple


class Feeder:
    """Parent side: a thread that writes the chunks of ``stream`` into ``folder``; leaving the block stops it.

    Where reading fails the block ends with that error, whatever the child said.
    """

    def __init__(self, stream: RowStream, folder: Path, size: int) -> None:
        self._stream, self._folder, self._size = stream, folder, size
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._feed, name="monograph-feeder", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error from value

    def _feed(self) -> None:
        try:
            if not self._wait_for((self._folder / _TIMED).exists):
                return
            for number, rows in enumerate(self._stream.parts(self._size)):
                oldest = _chunk(self._folder, number - _CHUNKS_AHEAD)
                if not self._wait_for(lambda oldest=oldest: not oldest.exists()):  # type: ignore[misc] # mypy infers no lambda's default
                    return
                staged = self._folder / "staged.npz"
                rows.save(staged)
                staged.rename(_chunk(self._folder, number))
        except Exception as error:  # noqa: BLE001 whatever it is, the thread that waits for the child raises it
            self._error = error
            (self._folder / _FAILED).touch()

    def _wait_for(self, condition: Callable[[], bool]) -> bool:
        while not condition():
            if self._stop.wait(_PARENT_POLL_S):
                return False
        return not self._stop.is_set()


def run_chunks(run: Callable[[Rows], Array], folder: Path, outputs_file: Path, row_count: int) -> None:
    """Child side: run all chunks as they come, writing the outputs ``[n, …]`` into ``outputs_file``.

    Raises:
        WorkerError: the parent could not read its rows, or a chunk's outputs have another shape than the first chunk's.
    """
    (folder / _TIMED).touch()
    done, number = 0, 0
    outputs: np.memmap[Any, Any] | None = None
    while done < row_count:
        path = _chunk(folder, number)
        while not path.exists():
            if (folder / _FAILED).exists():
                raise WorkerError("the rows could not be read")
            time.sleep(_CHILD_POLL_S)
        part = run(Rows.load(path))
        if outputs is None:
            shape = (row_count, *part.shape[1:])
            outputs = np.lib.format.open_memmap(outputs_file, mode="w+", dtype=part.dtype, shape=shape)
        if part.shape[1:] != outputs.shape[1:]:
            raise WorkerError(f"outputs from row {done} on have the shape {list(part.shape)}, those before {list(outputs.shape)}")
        outputs[done : done + len(part)] = part
        done, number = done + len(part), number + 1
        path.unlink()
    assert outputs is not None
    outputs.flush()


def _chunk(folder: Path, number: int) -> Path:
    return folder / f"chunk-{number}.npz"
