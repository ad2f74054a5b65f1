"""The writer of golden batches: what a proof ran on and what the reference gave, made small enough to travel in the file.

Rows that several batches hold are stored once. Batches are taken from the smallest on while the budget lasts; one that does
not fit any more is run again on the rows of a smaller one, repeated. What cannot be kept at all is named in the record.
See :mod:`monograph.runtime.golden`, which reads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph import __version__
from monograph.models.contract import Contract
from monograph.models.digest import file_sha256, graph_sha256
from monograph.runtime.golden import GOLDEN_VERSION, GoldenBatch, LeftOut, drawn_bytes, inputs_sha256
from monograph.runtime.packing import LARGEST_BYTES, Packed, join, pack

Array = npt.NDArray[Any]
BUDGET_BYTES = 1_500_000
"""Of all arrays, compressed: 2 MB of text."""
_STORED_RANDOM_BYTES = 128 << 10
"""Random rows of more bytes are kept as the recipe that draws them again."""
_TOO_LARGE = "its rows and outputs are too large to be kept in the file"


def golden_json(
    batches: Sequence[GoldenBatch],
    contract: Contract,
    staged: Path,
    *,
    reference: str,
    tolerance: float,
    prove_again: Callable[[GoldenBatch], GoldenBatch],
    left_out: Sequence[LeftOut] = (),
    budget_bytes: int = BUDGET_BYTES,
) -> str:
    """Return the record of ``batches``, which were proven on the written file ``staged``, for the metadata of that file.

    Args:
        batches: with what the reference gave for them; outputs are rounded to the type that ``contract`` gives them.
        contract: of the file.
        staged: the file, its external data beside it and nothing else.
        reference: what the outputs are of, in words.
        tolerance: of the proof.
        prove_again: proves a batch of other rows and returns it with what the reference gives for it.
        left_out: batches of the proof that cannot be run on this file.
        budget_bytes: of all arrays, compressed.

    Raises:
        ParityError: a batch of repeated rows turned out not to be equal.
    """
    stored_random = sum(_input_bytes(batch) for batch in batches if batch.recipe is not None) <= _STORED_RANDOM_BYTES
    store = _Store(contract, budget_bytes)
    records: dict[int, dict[str, Any]] = {}
    kept: dict[str | None, GoldenBatch] = {}
    missing: list[LeftOut] = []
    for position in sorted(range(len(batches)), key=lambda position: batches[position].batch_size):
        batch = batches[position]
        by_recipe = batch.recipe is not None and not stored_random
        record = store.add(batch, by_recipe=by_recipe)
        if record is None and not by_recipe and batch.case in kept:
            batch = prove_again(_repeated(kept[batch.case], batch.batch_size))
            record = store.add(batch, by_recipe=False)
        if record is None:
            missing.append(LeftOut(batch.batch_size, batch.rows, batch.case, _TOO_LARGE))
        else:
            records[position], kept[batch.case] = record, batch
    data_files = sorted(file for file in staged.parent.iterdir() if file.is_file() and file.name != staged.name)
    return json.dumps(
        {
            "version": GOLDEN_VERSION,
            "made_by": {"monograph": __version__, "numpy": np.__version__},
            "reference": reference,
            "tolerance": tolerance,
            "graph_sha256": graph_sha256(staged),
            "data_files": {file.name: file_sha256(file) for file in data_files},
            "arrays": [array.entry() for array in store.arrays],
            "batches": [records[position] for position in sorted(records)],
            "left_out": [asdict(item) for item in (*missing, *left_out)],
            "data": join(store.arrays),
        }
    )


def _repeated(batch: GoldenBatch, batch_size: int) -> GoldenBatch:
    """Return a larger batch made of the rows of a smaller one."""
    positions = np.arange(batch_size) % batch.batch_size
    inputs: Mapping[str, Array] = {
        name: array[positions] if _has_rows(array, batch.batch_size) else array for name, array in batch.inputs.items()
    }
    rows = f"repeated {batch.rows.removeprefix('repeated ')}"
    return replace(batch, batch_size=batch_size, rows=rows, inputs=inputs, expected={}, recipe=None)


@dataclass
class _Table:
    """Rows of one form of one input: where the row of these bytes stands, and the arrays that hold them, one after the other."""

    positions: dict[bytes, int] = field(default_factory=dict)
    chunks: list[int] = field(default_factory=list)


class _Store:
    """Arrays in the order in which they will stand in the file, each row of an input once."""

    def __init__(self, contract: Contract, budget_bytes: int) -> None:
        self.contract = contract
        self.packed_left, self.unpacked_left = budget_bytes, LARGEST_BYTES // 2
        self.arrays: list[Packed] = []
        self.tables: dict[tuple[object, ...], _Table] = {}

    def add(self, batch: GoldenBatch, *, by_recipe: bool) -> dict[str, Any] | None:
        """Return the record of ``batch``; None, with nothing stored, where it does not fit."""
        size = sum(array.nbytes for array in (*batch.inputs.values(), *batch.expected.values()))
        if size > self.unpacked_left or (by_recipe and batch.recipe and drawn_bytes(batch.recipe, self.contract) > LARGEST_BYTES):
            return None
        inputs = {} if by_recipe else batch.inputs
        fresh = {name: self._new_rows(name, array, batch.batch_size) for name, array in inputs.items()}
        wanted = [rows for rows in fresh.values() if len(rows)]
        wanted += [self._rounded(name, array) for name, array in batch.expected.items()]
        positions = self._store(wanted)
        if positions is None:
            return None
        self.unpacked_left -= size
        record: dict[str, Any] = {"batch_size": batch.batch_size, "rows": batch.rows, "case": batch.case}
        if by_recipe:
            assert batch.recipe is not None
            record |= {"recipe": asdict(batch.recipe), "inputs_sha256": inputs_sha256(batch.inputs)}
        else:
            for name, rows in fresh.items():
                self._note(name, rows, positions)
            record["inputs"] = {name: self._located(name, array, batch.batch_size) for name, array in inputs.items()}
        return record | {"expected": dict(zip(batch.expected, positions, strict=True))}

    def _store(self, wanted: Sequence[Array]) -> list[int] | None:
        """Store arrays and return where; None, with nothing stored, where they do not fit."""
        packed = [pack(array) for array in wanted]
        size = sum(len(array.data) for array in packed)
        if size > self.packed_left:
            return None
        self.packed_left -= size
        first = len(self.arrays)
        self.arrays += packed
        return list(range(first, len(self.arrays)))

    def _new_rows(self, name: str, array: Array, batch_size: int) -> Array:
        """Return those rows that no table holds yet."""
        rows = _as_rows(array, batch_size)
        known = self._table(name, rows).positions
        fresh = {key: position for position, key in enumerate(map(_row_bytes, rows)) if key not in known}
        return rows[sorted(fresh.values())]

    def _note(self, name: str, rows: Array, positions: list[int]) -> None:
        """Note that ``rows`` stand in the array at the first of ``positions``, which is taken off."""
        if len(rows):
            table = self._table(name, rows)
            table.chunks.append(positions.pop(0))
            for row in rows:
                table.positions[_row_bytes(row)] = len(table.positions)

    def _located(self, name: str, array: Array, batch_size: int) -> dict[str, Any]:
        rows = _as_rows(array, batch_size)
        table = self._table(name, rows)
        found = [table.positions[_row_bytes(row)] for row in rows]
        return {"chunks": list(table.chunks), "rows": found if rows is array else found[0]}

    def _table(self, name: str, rows: Array) -> _Table:
        return self.tables.setdefault((name, rows.dtype.str, rows.shape[1:]), _Table())

    def _rounded(self, name: str, array: Array) -> Array:
        dtype = np.dtype(next(spec.dtype for spec in self.contract.outputs if spec.name == name))
        return array.astype(dtype) if array.dtype.kind == "f" and dtype.kind == "f" else array


def _has_rows(array: Array, batch_size: int) -> bool:
    return array.ndim > 0 and len(array) == batch_size


def _as_rows(array: Array, batch_size: int) -> Array:
    """Return ``array``, or one row that is all of it where its first axis does not run over the batch."""
    return array if _has_rows(array, batch_size) else array[None]


def _row_bytes(row: Any) -> bytes:
    array = np.asarray(row)  # a row of texts may be a str of Python's
    return repr(array.tolist()).encode() if array.dtype.kind in "OUST" else array.tobytes()


def _input_bytes(batch: GoldenBatch) -> int:
    return sum(array.nbytes for array in batch.inputs.values())
