"""Models too large to be held: each runs in a process of its own, with its weights mapped from disk, never copied.

One process lives at a time. ONNX Runtime neither packs nor folds weights there, so that its own memory is that of
activations; the mapped pages of a file are the page cache's, and are let go again while it runs.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.runtime.process import call_in_fresh_process
from monograph.runtime.session import Session, open_session

Array = npt.NDArray[Any]

LARGEST_HELD_BYTES = 1_000_000_000
"""Models that are larger, all that are to be compared taken together, are run apart."""
_RESIDENT_BYTES = 1 << 25
"""So much of mapped files is kept in memory."""
_LOOK_EVERY_S = 0.001
_NICENESS = 10
_THREADS = 1
"""More would only bring pages in faster: a large model on a few rows is read rather than computed."""
_MADV_DONTNEED = 4
"""Linux's number for it."""


class ApartSession:
    """A model that is loaded into a fresh process whenever it is called, and leaves with it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch.

        Raises:
            SourceError: ONNX Runtime cannot load the model.
            WorkerError: an input is missing, or ONNX Runtime failed while running, or its process died.
        """
        return self.over([inputs])[0]

    def over(self, batches: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Run all batches in one process; raises what a call raises."""
        with tempfile.TemporaryDirectory(prefix="monograph-") as folder:
            for position, inputs in enumerate(batches):
                # Strings as objects would have to be pickled.
                arrays = {name: array.astype(np.str_) if array.dtype == object else array for name, array in inputs.items()}
                np.savez(Path(folder) / f"inputs_{position}.npz", allow_pickle=False, **arrays)
            arguments = {"path": str(self.path.absolute()), "folder": folder, "count": len(batches)}
            call_in_fresh_process("monograph.runtime.apart:run_batches", arguments)
            return [_load(Path(folder) / f"outputs_{position}.npz") for position in range(len(batches))]


def too_large(size_bytes: int) -> bool:
    """True where models of ``size_bytes`` together are run apart."""
    return size_bytes > LARGEST_HELD_BYTES


def open_sessions(paths: Sequence[Path], size_bytes: int) -> list[Session | ApartSession]:
    """Return a session a model; where they have ``size_bytes`` too many to be held together, each will run apart.

    Raises:
        SourceError: ONNX Runtime cannot load a model that is small enough to be loaded now.
    """
    if too_large(size_bytes):
        return [ApartSession(path) for path in paths]
    return [open_session(path) for path in paths]


def run_batches(path: str, folder: str, count: int) -> None:
    """Child side: run the batches ``inputs_0.npz`` to ``inputs_{count - 1}.npz`` of ``folder``; write the outputs beside."""
    with _mapped_pages_let_go(Path(path).parent):
        session = open_session(Path(path), threads=_THREADS, mapped=True)
        for position in range(count):
            outputs = session(_load(Path(folder) / f"inputs_{position}.npz"))
            np.savez(Path(folder) / f"outputs_{position}.npz", allow_pickle=False, **outputs)


def _load(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


@contextmanager
def _mapped_pages_let_go(folder: Path) -> Iterator[None]:
    """Keep the resident part of what is mapped from ``folder`` small; a page that is read again comes from the page cache.

    Linux only; elsewhere such pages stay until something else needs the memory.
    """
    if sys.platform != "linux":
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_let_go, args=(folder.resolve(), done), daemon=True)
    thread.start()
    # Of this thread and of those that ONNX Runtime starts from it: letting pages go must not wait for what brings them in.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
    try:
        yield
    finally:
        done.set()
        thread.join()


def _let_go(folder: Path, done: threading.Event) -> None:
    libc = ctypes.CDLL(None)
    while not done.wait(_LOOK_EVERY_S):
        if _resident_file_bytes() > _RESIDENT_BYTES:
            for start, end in _mappings(folder):
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


def _resident_file_bytes() -> int:
    pages = Path("/proc/self/statm").read_bytes().split()[2]
    return int(pages) * 4096


def _mappings(folder: Path) -> list[tuple[int, int]]:
    """Return where files of ``folder`` are mapped; nothing writes to weights, so their pages are as they are on disk."""
    ranges = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        addresses, *_, name = line.split(maxsplit=5)
        if Path(name).parent == folder:
            start, _, end = addresses.partition("-")
            ranges.append((int(start, 16), int(end, 16)))
    return ranges
