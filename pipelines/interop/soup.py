"""What the mean of two models' weights gives, where they are one architecture: the one pair whose network must run anew."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from monograph.errors import InputError, ParityError
from monograph.export.fusion.soup import fuse_soup, plan_soup
from monograph.models.data.rows import Array, Rows
from monograph.models.data.stream import RowStream
from monograph.models.onnx_file import read_onnx
from monograph.models.seen import seen_by
from monograph.pipelines.interop.fusion import best_of
from monograph.pipelines.interop.members import Model
from monograph.pipelines.interop.result import Soup
from monograph.pipelines.interop.yardstick import Yardstick
from monograph.runtime.runner import run_all_rows, scoring_batch_size
from monograph.runtime.session import open_session

_STATISTICS_ROWS = 1024
_ROWS_AT_A_PLACE = 16


def try_soup(first: Model, second: Model, stream: RowStream, yardstick: Yardstick, folder: Path) -> Soup:
    """Return whether the weights of two models can be averaged, and what their mean with equal weights reaches.

    BatchNorm's statistics, if there are any, are those of up to half of the rows; what is told is of the others.

    Args:
        first: whose graph the soup has.
        second: of the same architecture, or it does not fit.
        stream: the rows as the first model takes them.
        yardstick: by which it is judged.
        folder: where the soup is written.
    """
    files = [first.file, second.file]
    path = folder / f"soup-{hashlib.sha256(f'{first.file.sha256} {second.file.sha256}'.encode()).hexdigest()[:16]}.onnx"
    known = _spread(stream.row_count)
    rows = _read(stream, known)
    try:
        plan = plan_soup(files, names=[first.name, second.name], rows=rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        fuse_soup(plan, path, rows=rows.take(slice(0, 64)), statistics_rows=rows, seen=seen_by(files))
    except (InputError, ParityError) as error:
        return Soup(first.name, second.name, fits=False, reason=" ".join(str(error).split()))
    made = read_onnx(path)
    session, size = open_session(path), max(scoring_batch_size(made.contract) * 8, 64)
    output = np.concatenate([run_all_rows(session, made.contract, part) for part in stream.parts(size)])
    told = np.setdiff1d(np.arange(stream.row_count), known)
    labels, judged = first.labels[told], yardstick.take(told)
    members = {model.name: np.asarray(model.output[told]) for model in (first, second)}
    best = best_of(members, labels, judged)
    return Soup(
        first.name,
        second.name,
        fits=True,
        score=judged.score(output[told], labels),
        change=judged.change(output[told], members[best], labels, best),
        macs=first.macs,
    )


def _spread(row_count: int) -> Array:
    """Return numbers of rows in short runs, evenly spaced over all, that are half of them or 1,024 together: int64 ``[n]``."""
    count = min(_STATISTICS_ROWS, row_count // 2)
    places = np.linspace(0, row_count - 1, max(count // _ROWS_AT_A_PLACE, 1)).astype(np.int64)
    runs = places[:, None] + np.arange(min(_ROWS_AT_A_PLACE, count))
    return np.unique(np.minimum(runs, row_count - 1))


def _read(stream: RowStream, numbers: Array) -> Rows:
    """Read the rows at rising ``numbers``, run by run."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    parts = [stream.read(int(run[0]), int(run[-1]) + 1) for run in runs]
    inputs = {name: np.concatenate([part.inputs[name] for part in parts]) for name in parts[0].inputs}
    labels = None if stream.labels is None else np.asarray(stream.labels[numbers])
    return Rows(inputs, labels, stream.class_names, stream.table.origin)
