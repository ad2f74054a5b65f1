"""Run each model once over the rows: its output and a few inner tensors go to files on disk, and pairs read those.

Shape letters: ``n`` rows, ``c`` classes, ``d`` numbers a row of an inner tensor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir

from monograph.errors import ConfigError, DataError
from monograph.models.contract import Contract
from monograph.models.data.rows import Array
from monograph.models.data.stream import RowStream
from monograph.models.onnx_file import OnnxFile, load_graph
from monograph.runtime.runner import run_all_rows, scoring_batch_size
from monograph.runtime.session import Session, open_session

_TAP_COUNT = 4
_FURTHEST_WIDTH = 4096
"""Wider tensors are averaged over all axes but the channels'."""
_TRIAL_ROWS = 3
_WEIGHTED = ("Gemm", "MatMul", "Conv", "FusedMatMul")


@dataclass(frozen=True)
class Answers:
    """What a model gave for every row, mapped from disk."""

    output: Array
    """As the model gives it, float32 ``[n, c]``."""
    parts: Mapping[str, Array]
    """Inner tensors by name, float32 ``[n, d]`` each, in the order of the graph; the last feeds the head."""

    @property
    def features(self) -> Array | None:
        """What feeds the head; None where no inner tensor could be read."""
        return list(self.parts.values())[-1] if self.parts else None


def ask(
    file: OnnxFile,
    rows: RowStream,
    rows_sha256: str,
    folder: Path,
    layers: Sequence[str] = (),
    on_rows: Callable[[int, int], None] = lambda done, total: None,
) -> Answers:
    """Return the output and the inner tensors of ``file`` for all rows, by one pass; what was asked before is read.

    Args:
        file: the model.
        rows: as its contract takes them; read a part at a time.
        rows_sha256: of the rows.
        folder: where the arrays lie, by the digests of model and rows.
        layers: names of inner tensors; a few, evenly spaced and with the last before the head, by default.
        on_rows: told how many rows are done, and of how many.

    Raises:
        ConfigError: there is no such tensor, or it has not one row of floats a row.
        DataError: the output is not finite, or of a classifier not ``[n, c]``.
    """
    told = f"{file.sha256} {rows_sha256} {','.join(layers)}"
    place = folder / hashlib.sha256(told.encode()).hexdigest()[:24]
    index = place / "index.json"  # written last: it says that the arrays are whole
    if not index.exists():
        place.mkdir(parents=True, exist_ok=True)
        with _tapped(file, rows, layers) as (session, names):
            _write(session, names, file.contract, rows, place, on_rows)
        staged = place / "index.json.part"
        staged.write_text(json.dumps(names), encoding="utf-8")
        staged.replace(index)
    names = json.loads(index.read_text(encoding="utf-8"))
    read = [np.load(place / f"{number}.npy", mmap_mode="r", allow_pickle=False) for number in range(len(names) + 1)]
    output = read[0]
    if (file.contract.kind.has_classes and output.ndim != 2) or not np.isfinite(output).all():
        raise DataError(f"{file.path.name} gives an output of shape {list(output.shape)}, expected are finite numbers [n, c]")
    return Answers(output, dict(zip(names, read[1:], strict=True)))


def _write(
    session: Session, names: Sequence[str], contract: Contract, rows: RowStream, place: Path, on_rows: Callable[[int, int], None]
) -> None:
    """Write the arrays part by part, so that no more than a part of the rows is in memory."""
    step, arrays = max(scoring_batch_size(contract) * 8, 64), list[np.memmap[Any, Any]]()
    for start, part in zip(range(0, rows.row_count, step), rows.parts(step), strict=True):
        kept: list[list[Array]] = [[] for _ in names]

        def run(inputs: Mapping[str, Array], kept: list[list[Array]] = kept) -> dict[str, Array]:
            given = session(inputs)
            for one, name in zip(kept, names, strict=True):
                one.append(_pooled(given[name]))
            return given

        output = run_all_rows(run, contract, part)
        given = [output, *(np.concatenate(one)[: len(part)] for one in kept)]
        for number, array in enumerate(given):
            if start == 0:
                shape = (rows.row_count, *array.shape[1:])
                arrays.append(np.lib.format.open_memmap(place / f"{number}.npy", "w+", np.float32, shape))
            arrays[number][start : start + step] = array
        on_rows(start + len(part), rows.row_count)
    for array in arrays:
        array.flush()


@contextmanager
def _tapped(file: OnnxFile, rows: RowStream, layers: Sequence[str]) -> Iterator[tuple[Session, list[str]]]:
    """Yield a session of the model that gives inner tensors, too, and their names."""
    with TemporaryDirectory(prefix="monograph-") as folder:
        candidates = list(layers) or _candidates(file)
        session = _with_outputs(file, candidates, Path(folder) / "trial.onnx")
        names = _usable(session, candidates, file.contract, rows)
        if missing := [name for name in layers if name not in names]:
            raise ConfigError(f"{file.path.name}: {missing[0]!r} has not one row of floats a row: name another tensor")
        if not layers:
            names = _spaced(names)
        yield _with_outputs(file, names, Path(folder) / "tapped.onnx"), names


def _with_outputs(file: OnnxFile, names: Sequence[str], path: Path) -> Session:
    model = load_graph(file.path)
    made = {value.name: value for node in model.graph for value in node.outputs if value.name}
    given = {value.name for value in model.graph.outputs}
    for name in names:
        if name not in made:
            shown = ", ".join(list(filter(None, made))[-8:])
            raise ConfigError(f"{file.path.name} computes no tensor {name!r}: the last of its tensors are {shown}")
        if name in given:
            continue
        made[name].shape = None  # what an exporter noted of an inner tensor may hold for its own batch only
        model.graph.outputs.append(made[name])
    ir.save(model, path, external_data=f"{path.name}.data")
    return open_session(path)


def _candidates(file: OnnxFile) -> list[str]:
    """Return the tensors between the weighted nodes: what each of them takes, the head's last.

    Without any, as in a product of embeddings, what all nodes but the last make.
    """
    graph = load_graph(file.path).graph
    given = {value.name for value in graph.outputs}
    names = []
    for node in graph:
        if node.op_type in _WEIGHTED and node.inputs and node.inputs[0] is not None and node.inputs[0].producer() is not None:
            value = node.inputs[0]
            if value.const_value is None and value.name:
                names.append(value.name)
    names = names or [value.name for node in graph for value in node.outputs if value.name and value.name not in given]
    return list(dict.fromkeys(names))


def _usable(session: Session, names: Sequence[str], contract: Contract, rows: RowStream) -> list[str]:
    """Return those that have one row of floats, of two numbers or more, a row."""
    count = scoring_batch_size(contract) if not contract.batch_is_dynamic else _TRIAL_ROWS
    few = rows.read(0, count)
    given = session(few.take(np.arange(count) % len(few)).inputs)
    return [
        name
        for name in names
        if given[name].dtype.kind == "f"
        and given[name].shape[:1] == (count,)
        and given[name][0].size > 1
        and given[name].ndim > 1
    ]


def _spaced(names: Sequence[str]) -> list[str]:
    """Return a few of them, evenly spaced, the last included."""
    if len(names) <= _TAP_COUNT:
        return list(names)
    return [names[round(index)] for index in np.linspace(0, len(names) - 1, _TAP_COUNT)]


def _pooled(tensor: Array) -> Array:
    """Return float32 ``[b, d]``: flattened, or where that is too wide the mean over places or tokens."""
    width = int(np.prod(tensor.shape[1:]))
    if tensor.ndim > 2 and width > _FURTHEST_WIDTH:
        # Pictures have channels on the second axis, tokens their width on the last.
        axes = tuple(range(2, tensor.ndim)) if tensor.ndim > 3 else (1,)
        tensor = tensor.mean(axis=axes)
    return np.ascontiguousarray(tensor.reshape(len(tensor), -1), np.float32)
