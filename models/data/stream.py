"""DATA read a part at a time: what is in memory does not grow with the number of rows.

Shape letters: ``n`` rows.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from monograph.errors import DataError
from monograph.models.contract import Contract
from monograph.models.data.digests import row_digests
from monograph.models.data.labels import Labels
from monograph.models.data.load import (
    ColumnPlan,
    are_class_names,
    common_length,
    label_columns,
    label_numbers,
    plan_columns,
    read_inputs,
    read_label_values,
    read_raw,
)
from monograph.models.data.rows import Array, Codes, Rows
from monograph.models.data.tables import ColumnKind, Table, read_table

_LABELS_AT_A_TIME = 1 << 14
_CLASS = "class"
"""What slices by label, where no column is called so."""


@dataclass(frozen=True)
class RowStream:
    """Rows that are read when they are asked for; their labels are known beforehand."""

    table: Table
    plan: ColumnPlan
    contract: Contract
    tokenizer_json: str | None
    row_count: int
    labels: Array | None
    """As :class:`Rows` has them; where they are numbers they lie on disk, mapped."""
    class_names: tuple[str, ...] | None
    assumed: tuple[str, ...]
    slices: Mapping[str, Codes] = field(default_factory=dict)
    groups: Array | None = None
    """int32 ``[n]``: rows of one number are ranked against each other."""

    def read(self, start: int, stop: int) -> Rows:
        """Read rows ``start`` to ``stop``, fewer where the data ends.

        Raises:
            DataError: values that do not fit the model.
        """
        stop = min(stop, self.row_count)
        try:
            inputs, _ = read_inputs(self.table, self.plan, self.contract, self.tokenizer_json, start, stop)
        except DataError as error:
            if start == 0:
                raise
            raise DataError(f"{error} (in the part that starts with row {start})") from error
        labels = None if self.labels is None else np.asarray(self.labels[start:stop])
        return Rows(inputs, labels, self.class_names, self.table.origin, self.assumed)

    def digests(self) -> Array:
        """Return the digest of every raw row: uint64 ``[n]``.

        Raises:
            DataError: a row cannot be read.
        """
        starts = range(0, self.row_count, _LABELS_AT_A_TIME)
        stops = (min(start + _LABELS_AT_A_TIME, self.row_count) for start in starts)
        parts = (read_raw(self.table, self.plan, self.contract, start, stop) for start, stop in zip(starts, stops, strict=True))
        return np.concatenate([row_digests(list(raw.values())) for raw in parts])

    def parts(self, size: int, start: int = 0) -> Iterator[Rows]:
        """Yield all rows in order, ``size`` at a time."""
        for first in range(start, self.row_count, size):
            yield self.read(first, first + size)


@contextmanager
def open_stream(
    data: str,
    contract: Contract,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    label_column: str | Sequence[str] | None = None,
    tokenizer_json: str | None = None,
    slices: tuple[str, ...] = (),
    group: str | None = None,
    needs_labels: bool = False,
) -> Iterator[RowStream]:
    """Open DATA for the model of ``contract``.

    All labels are read and checked now, and so is the first row of the inputs, so that most faults show before anything runs.

    Args:
        data: as :func:`~monograph.models.data.load.load_rows` takes it.
        contract: what the model takes and which classes it knows.
        split: which split to read, where there are several.
        columns: the column of each input, by the input's name; what is not named is guessed.
        label_column: the column of the labels, or several, as :func:`~monograph.models.data.load.load_rows` takes them.
        tokenizer_json: the text of the tokenizer's JSON file, for models that take text.
        slices: columns whose values part the rows; ``class`` means the labels, where no column is called so.
        group: the column whose rows of one value are ranked against each other.
        needs_labels: refuse data without labels.

    Raises:
        DataError: data that is missing, empty, unreadable, or does not fit the model.
        SourceError: a factory or a tokenizer that cannot be loaded.
    """
    with tempfile.TemporaryDirectory(prefix="monograph-data-", ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        table = read_table(data, split=split, scratch=scratch)
        _release_unused_memory()
        named = _named_columns(table, slices, group)
        plan = plan_columns(
            _without(table, named, columns, label_column, contract), contract, columns, label_column, needs_labels=needs_labels
        )
        row_count = common_length(table, plan)
        labels = _labels(table, plan, contract, row_count, scratch)
        _, assumed = read_inputs(table, plan, contract, tokenizer_json, 0, 1)
        yield RowStream(
            table,
            plan,
            contract,
            tokenizer_json,
            row_count,
            None if labels is None else labels.values,
            table.class_names if labels is None else labels.class_names,
            (*table.assumed, *plan.assumed, *assumed, *(() if labels is None else labels.assumed)),
            {column: _slice(table, column, labels, row_count) for column in slices},
            None if group is None else _codes(table, group, "--group", row_count).numbers,
        )


def _named_columns(table: Table, slices: Sequence[str], group: str | None) -> set[str]:
    roles = {**dict.fromkeys(slices, "--slice"), **({} if group is None else {group: "--group"})}
    return {name for name, role in roles.items() if (role, name) == ("--slice", _CLASS) or table.column(name, role)}


def _release_unused_memory() -> None:
    """Give back what Arrow has freed and kept: after reading a large file that is some hundred megabytes."""
    pyarrow = sys.modules.get("pyarrow")
    if pyarrow is not None:
        pyarrow.default_memory_pool().release_unused()


def _without(
    table: Table,
    named: set[str],
    columns: Mapping[str, str] | None,
    label_column: str | Sequence[str] | None,
    contract: Contract,
) -> Table:
    """Leave columns that part or group the rows out of those that inputs are guessed from.

    What has an input's own name, or is named for one, stays: films are ranked for each user, who is an input of the model too.
    """
    inputs = (spec.name for spec in contract.inputs)
    kept = {*(columns or {}).values(), *label_columns(table, label_column), *inputs}
    return replace(table, columns={name: column for name, column in table.columns.items() if name not in named - kept})


def _labels(table: Table, plan: ColumnPlan, contract: Contract, row_count: int, scratch: Path) -> Labels | None:
    if not plan.labels:
        return None
    if are_class_names(table, plan):
        # Classes numbered by their sorted names depend on all of them.
        return label_numbers(read_label_values(table, plan, 0, row_count), table, plan, contract)
    first = label_numbers(read_label_values(table, plan, 0, min(_LABELS_AT_A_TIME, row_count)), table, plan, contract)
    shape = (row_count, *first.values.shape[1:])
    mapped = np.lib.format.open_memmap(scratch / "labels.npy", mode="w+", dtype=first.values.dtype, shape=shape)
    for start in range(0, row_count, _LABELS_AT_A_TIME):
        stop = min(start + _LABELS_AT_A_TIME, row_count)
        try:
            part = first if start == 0 else label_numbers(read_label_values(table, plan, start, stop), table, plan, contract)
        except DataError as error:
            raise DataError(f"{error} (in the part that starts with row {start})") from error
        if part.values.shape[1:] != shape[1:]:
            where = f"{table.origin}: column {plan.labels[0]!r}"
            raise DataError(f"{where}: labels from row {start} on have another shape: give every row the same")
        mapped[start:stop] = part.values
    return replace(first, values=mapped)


def _slice(table: Table, column: str, labels: Labels | None, row_count: int) -> Codes:
    if column in table.columns:
        return _codes(table, column, "--slice", row_count)
    if column == _CLASS and labels is not None and labels.values.ndim == 1 and labels.values.dtype.kind == "i":
        numbers = np.asarray(labels.values, np.int32)
        names = labels.class_names or ()
        values = (names[number] if number < len(names) else str(number) for number in range(int(numbers.max()) + 1))
        return Codes(numbers, tuple(values))
    raise DataError(f"{table.origin}: --slice {_CLASS} needs labels that are class numbers or names: name another column")


def _codes(table: Table, name: str, role: str, row_count: int) -> Codes:
    """Number the values of a column in the order of their text, reading a part at a time."""
    column = table.column(name, role)
    if column.kind not in (ColumnKind.NUMBER, ColumnKind.TEXT) or column.length != row_count:
        raise DataError(f"{table.origin}: column {name!r} for {role} holds {column.kind.value}s: give numbers or text, one a row")
    number_of: dict[object, int] = {}
    numbers = np.empty(row_count, np.int32)
    for start in range(0, row_count, _LABELS_AT_A_TIME):
        unique, inverse = np.unique(np.asarray(column.read(start, start + _LABELS_AT_A_TIME)), return_inverse=True)
        known = np.array([number_of.setdefault(value, len(number_of)) for value in unique.tolist()], np.int32)
        numbers[start : start + len(inverse)] = known[inverse]
    ordered = sorted(number_of, key=lambda value: (isinstance(value, str), value))
    place = np.empty(len(ordered), np.int32)
    place[[number_of[value] for value in ordered]] = np.arange(len(ordered))
    names = column.class_names
    return Codes(place[numbers], tuple(names[int(str(value))] if names else str(value) for value in ordered))
