"""DATA to rows that a model can take: read, choose columns, preprocess, number the labels.

Shape letters: ``n`` rows, ``b`` batch, ``k`` features.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from monograph.errors import DataError
from monograph.models.contract import Contract, ImagePreprocessing, TensorSpec, TextPreprocessing
from monograph.models.data.digests import row_digests
from monograph.models.data.labels import Labels, encode_labels
from monograph.models.data.pictures import EncodedPictures, fault
from monograph.models.data.preprocess import Values, preprocess
from monograph.models.data.rows import Array, Rows
from monograph.models.data.tables import Column, ColumnKind, Table, read_table
from monograph.models.data.unreadable import UnreadableRowError, how_many_unreadable

_LABEL_COLUMNS = ("label", "labels", "y", "target")
_TEXT_COLUMNS = ("text", "sentence")
_IMAGE_COLUMNS = ("image",)
_INPUT_COLUMN = "x"
# What pandas calls the column of row numbers that it writes unasked.
_INDEX_COLUMN_PREFIX = "Unnamed: "


@dataclass(frozen=True)
class ColumnPlan:
    """Which columns make which input; several columns are features that stand side by side."""

    inputs: Mapping[str, tuple[str, ...]]
    labels: tuple[str, ...]
    """None, one, or several, whose numbers stand side by side."""
    assumed: tuple[str, ...]

    @property
    def used(self) -> tuple[str, ...]:
        """All columns, inputs first."""
        return (*(name for group in self.inputs.values() for name in group), *self.labels)


def load_rows(
    data: str,
    contract: Contract,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    label_column: str | Sequence[str] | None = None,
    tokenizer_json: str | None = None,
    limit: int | None = None,
    needs_labels: bool = False,
    skip_unreadable: bool = False,
) -> Rows:
    """Read DATA as rows for the model of ``contract``.

    Args:
        data: ``file.npz``, a CSV, TSV, Parquet or JSON lines file, an image folder, a folder that ``datasets`` saved,
            ``py:package.module:factory``, or a dataset on the hub, ``owner/name[:configuration]`` or ``hf:owner/name``.
        contract: what the model takes and which classes it knows.
        split: which split to read, where there are several.
        columns: the column of each input, by the input's name; what is not named is guessed.
        label_column: the column of the labels, or several as a list or as ``a,b,c``, whose numbers then stand side by side
            under the columns' names; guessed where it is not named.
        tokenizer_json: the text of the tokenizer's JSON file, for models that take text.
        limit: read the first rows only, this many.
        needs_labels: refuse data without labels.
        skip_unreadable: leave out rows whose picture cannot be decoded or that lack a value, and tell it in ``assumed``.

    Returns:
        Aligned inputs, and labels by the model's numbering; every guess is a sentence in ``assumed``.

    Raises:
        DataError: data that is missing, empty, unreadable, or does not fit the model.
        SourceError: a factory or a tokenizer that cannot be loaded.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}, expected at least 1 row")
    # What the library writes while reading must not be found again by a later run on changed files.
    with tempfile.TemporaryDirectory(prefix="monograph-data-", ignore_cleanup_errors=True) as scratch:
        table = read_table(data, split=split, scratch=Path(scratch))
        plan = plan_columns(table, contract, columns, label_column, needs_labels=needs_labels)
        return _read_plan(table, plan, contract, tokenizer_json, limit, skip_unreadable=skip_unreadable)


def plan_columns(
    table: Table,
    contract: Contract,
    columns: Mapping[str, str] | None,
    label_column: str | Sequence[str] | None,
    *,
    needs_labels: bool,
) -> ColumnPlan:
    """Decide which column is what; raises what :func:`choose_columns` does, and where labels are needed and missing."""
    plan = choose_columns(table, contract, columns or {}, label_column)
    if needs_labels and not plan.labels:
        raise DataError(f"{table.origin}: no labels, and this needs them: name the label column{_listed(table)}")
    return plan


def choose_columns(
    table: Table, contract: Contract, columns: Mapping[str, str], label_column: str | Sequence[str] | None
) -> ColumnPlan:
    """Decide which column is what: as named, else of the same name as the input, else by a guess that is said.

    Raises:
        DataError: a column that is named and missing, or an input for which no column can be guessed.
    """
    names = [spec.name for spec in contract.inputs]
    unknown = [name for name in columns if name not in names]
    if unknown:
        raise DataError(f"{table.origin}: the model has no input {unknown[0]!r} to map a column to; it has {', '.join(names)}")
    named_labels = label_columns(table, label_column)
    chosen: dict[str, tuple[str, ...]] = {
        name: (column,) for name, column in columns.items() if table.column(column, f"input {name!r}")
    }
    chosen |= {
        spec.name: (spec.name,)
        for spec in contract.inputs
        if spec.name not in chosen and spec.name not in named_labels and _could_be(table, spec.name, spec)
    }
    taken = {column for group in chosen.values() for column in group}
    labels, assumed = _named_labels(table, named_labels, contract) if named_labels else _guess_label(table, taken)
    free = {name: column for name, column in table.columns.items() if name not in taken and name not in labels}
    for spec in contract.inputs:
        if spec.name not in chosen:
            chosen[spec.name], left_out = _guess_columns(table, free, spec, alone=len(names) == 1)
            assumed += _guess_said(table, spec.name, chosen[spec.name], left_out)
    return ColumnPlan({name: chosen[name] for name in names}, labels, tuple(assumed))


def label_columns(table: Table, label_column: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the columns that were named for the labels; ``a,b,c`` names three, where no column is called exactly so.

    Raises:
        DataError: one is missing or named twice, or one of several holds no single numbers.
    """
    if label_column is None:
        return ()
    if not isinstance(label_column, str):
        names = tuple(label_column)
    elif label_column in table.columns or "," not in label_column:
        names = (label_column,)
    else:
        names = tuple(part.strip() for part in label_column.split(","))
    kinds = {name: table.column(name, "the labels").kind for name in names}
    if len(kinds) < len(names):
        raise DataError(f"{table.origin}: the labels are to be read from {', '.join(names)}: name each column once")
    for name, kind in kinds.items():
        if len(names) > 1 and kind is not ColumnKind.NUMBER:
            raise DataError(
                f"{table.origin}: column {name!r} holds {kind.value}, and labels from several columns are numbers, such as 0 "
                "and 1: convert it, or leave it out"
            )
    return names


def _named_labels(table: Table, names: tuple[str, ...], contract: Contract) -> tuple[tuple[str, ...], list[str]]:
    """Return the columns in the order in which the model has its labels, where it names them, and what was assumed."""
    known = contract.class_names
    if len(names) == 1 or known is None or contract.kind.has_classes:
        return names, []
    if sorted(names) == sorted(known):
        return known, []
    found, expected = ", ".join(names), ", ".join(known)
    if len(names) != len(known):
        raise DataError(f"{table.origin}: {len(names)} label columns ({found}), expected {len(known)} ({expected})")
    return names, [f"{table.origin}: columns {found} were taken for the model's labels {expected}, in this order"]


def _guess_label(table: Table, taken: set[str]) -> tuple[tuple[str, ...], list[str]]:
    free = [name for name in table.columns if name not in taken]
    if table.stated is not None and table.stated[1] in free:
        return (table.stated[1],), []
    by_name = [name for name in _LABEL_COLUMNS if name in free]
    with_names = [name for name in free if table.columns[name].class_names is not None]
    guess = by_name[0] if by_name else with_names[0] if len(with_names) == 1 else None
    return ((), []) if guess is None else ((guess,), [f"{table.origin}: labels were read from column {guess!r}"])


def _guess_columns(
    table: Table, free: Mapping[str, Column], spec: TensorSpec, *, alone: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the columns of an input, and those that were left out of it."""
    usual: tuple[str, ...]
    kinds: tuple[ColumnKind, ...]
    if isinstance(spec.preprocessing, TextPreprocessing):
        usual, kinds = (*_TEXT_COLUMNS, _INPUT_COLUMN), (ColumnKind.TEXT,)
    elif isinstance(spec.preprocessing, ImagePreprocessing):
        usual, kinds = (*_IMAGE_COLUMNS, _INPUT_COLUMN), (ColumnKind.IMAGE, ColumnKind.ARRAY)
    else:
        usual, kinds = ((_INPUT_COLUMN,) if alone else ()), (ColumnKind.NUMBER, ColumnKind.ARRAY)
    for name in usual:
        if name in free and _could_be(table, name, spec):
            return (name,), ()
    numeric = tuple(
        name for name, column in free.items() if column.kind is ColumnKind.NUMBER and not name.startswith(_INDEX_COLUMN_PREFIX)
    )
    if alone and numeric and table.stated is None and _is_tabular(spec):
        return _tabular_columns(table, numeric, spec), tuple(name for name in free if name not in numeric)
    fitting = [name for name, column in free.items() if column.kind in kinds]
    if len(fitting) == 1 and (alone or spec.preprocessing is not None):
        return (fitting[0],), ()
    found = f"{len(fitting)} columns could be it" if fitting else "no column could be it"
    raise DataError(f"{table.origin}: no column was named for input {spec.describe()}, and {found}: name one{_listed(table)}")


def _could_be(table: Table, name: str, spec: TensorSpec) -> bool:
    """A column of single numbers is one feature of a table, even where it happens to be called as the input is."""
    if name not in table.columns:
        return False
    is_one_feature = table.stated is None and _is_tabular(spec) and spec.shape[1] != 1
    return not (is_one_feature and table.columns[name].kind is ColumnKind.NUMBER)


def _is_tabular(spec: TensorSpec) -> bool:
    return spec.preprocessing is None and len(spec.shape) == 2 and np.dtype(spec.dtype).kind == "f"


def _tabular_columns(table: Table, numeric: tuple[str, ...], spec: TensorSpec) -> tuple[str, ...]:
    expected = spec.shape[1]
    if isinstance(expected, int) and len(numeric) != expected:
        raise DataError(
            f"{table.origin}: {len(numeric)} numeric columns ({', '.join(numeric)}) but input {spec.describe()} takes "
            f"{expected}: name the label column, and keep only the features beside it"
        )
    return numeric


def _guess_said(table: Table, name: str, chosen: tuple[str, ...], left_out: tuple[str, ...]) -> list[str]:
    if table.stated is not None and chosen == table.stated[:1]:
        return []
    word = "column" if len(chosen) == 1 else "columns"
    beside = f" (left out: {', '.join(left_out)})" if left_out else ""
    return [f"{table.origin}: input {name!r} was read from {word} {', '.join(map(repr, chosen))}{beside}"]


def _listed(table: Table) -> str:
    splits = " (or a split)" if any(name.startswith("x_") for name in table.columns) else ""
    return f"{splits}; the columns are {', '.join(table.columns) or 'none'}"


def _read_plan(
    table: Table, plan: ColumnPlan, contract: Contract, tokenizer_json: str | None, limit: int | None, *, skip_unreadable: bool
) -> Rows:
    n = common_length(table, plan)
    count = n if limit is None else min(limit, n)
    try:
        return _read_rows(table, plan, contract, tokenizer_json, count)
    except UnreadableRowError as error:
        # Only now is it worth the time to look at every row.
        reasons = _unreadable_rows(table, plan, contract, count)
        if not reasons:
            raise
        told = f"{table.origin}: {how_many_unreadable(reasons, n if max(reasons) >= count else count)}"
        if not skip_unreadable:
            remedy = "mend or drop them, or pass --allow unreadable to `monograph adapt`"
            raise DataError(f"{told}: {remedy}") from error
    kept = np.setdiff1d(np.arange(n), list(reasons))
    kept_count = int((kept < count).sum())
    if kept_count == 0:
        raise DataError(f"{told}, and no other is left: mend them")
    try:
        rows = _read_rows(table.take(kept, plan.used), plan, contract, tokenizer_json, kept_count)
    except DataError as error:
        raise DataError(f"{error} (rows are counted without the {len(reasons)} that cannot be read)") from error
    return replace(rows, assumed=(*rows.assumed, f"{told} and were left out"))


def _unreadable_rows(table: Table, plan: ColumnPlan, contract: Contract, count: int) -> dict[int, str]:
    """Return why rows cannot be read, by their number and in order: of the first ``count``, and of all that name a class."""
    reasons: dict[int, str] = {}
    for name in plan.used:
        column = table.columns[name]
        if column.missing is not None:
            seen = column.length if name in plan.labels and are_class_names(table, plan) else count
            for row in np.flatnonzero(column.missing()[:seen]).tolist():
                reasons.setdefault(row, f"column {name!r} {column.missing_said}")
    kept = np.setdiff1d(np.arange(count), list(reasons))
    for group, spec in _groups(plan, contract).items():
        pictures = isinstance(spec.preprocessing, ImagePreprocessing) and len(kept) > 0
        if pictures and table.columns[group[0]].kind in (ColumnKind.IMAGE, ColumnKind.TEXT):
            values = _read_columns(table.take(kept, group), group, spec, 0, len(kept))
            faults = (fault(values, row) for row in range(len(kept)))  # type: ignore[arg-type]  # pictures are no array
            reasons |= {row: reason for row, reason in zip(kept.tolist(), faults, strict=True) if reason is not None}
    return dict(sorted(reasons.items()))


def _read_rows(table: Table, plan: ColumnPlan, contract: Contract, tokenizer_json: str | None, count: int) -> Rows:
    labels = _read_labels(table, plan, contract, count)
    raw = read_raw(table, plan, contract, 0, count)
    inputs, assumed = _prepare(raw, table, plan, contract, tokenizer_json)
    return Rows(
        inputs=inputs,
        labels=None if labels is None else labels.values[:count],
        class_names=table.class_names if labels is None else labels.class_names,
        origin=table.origin,
        assumed=(*table.assumed, *plan.assumed, *assumed, *(() if labels is None else labels.assumed)),
        digests=row_digests(list(raw.values())),
    )


def read_inputs(
    table: Table, plan: ColumnPlan, contract: Contract, tokenizer_json: str | None, start: int, stop: int
) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Read rows ``start`` to ``stop`` as the model takes them; returns its inputs and what had to be assumed.

    Raises:
        DataError: values that do not fit the model.
    """
    return _prepare(read_raw(table, plan, contract, start, stop), table, plan, contract, tokenizer_json)


def read_raw(table: Table, plan: ColumnPlan, contract: Contract, start: int, stop: int) -> dict[tuple[str, ...], Values]:
    """Read rows ``start`` to ``stop`` as they stand, by the columns of each input; inputs of the same columns share them."""
    return {group: _read_columns(table, group, spec, start, stop) for group, spec in _groups(plan, contract).items()}


def _groups(plan: ColumnPlan, contract: Contract) -> dict[tuple[str, ...], TensorSpec]:
    """Return an input for each group of columns, the first of those that share it."""
    return {plan.inputs[spec.name]: spec for spec in reversed(contract.inputs)}


def _prepare(
    raw: Mapping[tuple[str, ...], Values], table: Table, plan: ColumnPlan, contract: Contract, tokenizer_json: str | None
) -> tuple[dict[str, Array], tuple[str, ...]]:
    # Inputs of one text share the object, by which they are known to be one text.
    values = {name: raw[group] for name, group in plan.inputs.items()}
    return preprocess(values, contract, tokenizer_json=tokenizer_json, origin=table.origin)


def common_length(table: Table, plan: ColumnPlan) -> int:
    """Return how many rows the columns of the plan have; raises DataError where they differ or have none."""
    lengths = {name: table.columns[name].length for name in plan.used}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise DataError(f"{table.origin}: columns differ in length ({found}): give every row all of its columns")
    n = lengths[plan.used[0]]
    if n == 0:
        raise DataError(f"{table.origin}: no rows, expected at least one")
    return n


def _read_columns(table: Table, group: tuple[str, ...], spec: TensorSpec, start: int, stop: int) -> Values:
    if len(group) > 1:
        return np.stack([np.asarray(table.columns[name].read(start, stop)) for name in group], axis=1)
    column = table.columns[group[0]]
    values = column.read(start, stop)
    if isinstance(spec.preprocessing, ImagePreprocessing) and column.kind is ColumnKind.TEXT:
        return EncodedPictures(len(values), values.__getitem__, f"{table.origin}: column {group[0]!r}", table.folder)
    return values


def _read_labels(table: Table, plan: ColumnPlan, contract: Contract, count: int) -> Labels | None:
    if not plan.labels:
        return None
    # Of names all are read: classes numbered by their sorted names must not depend on the limit.
    stop = table.columns[plan.labels[0]].length if are_class_names(table, plan) else count
    return label_numbers(read_label_values(table, plan, 0, stop), table, plan, contract)


def are_class_names(table: Table, plan: ColumnPlan) -> bool:
    """Tell whether the labels are text, so that only all of them say which classes there are."""
    return len(plan.labels) == 1 and table.columns[plan.labels[0]].kind is ColumnKind.TEXT


def read_label_values(table: Table, plan: ColumnPlan, start: int, stop: int) -> Values:
    """Return the labels of rows ``start`` to ``stop`` as they are written down; of ``k`` columns an array ``[n, k]``."""
    values = [table.columns[name].read(start, stop) for name in plan.labels]
    return values[0] if len(values) == 1 else np.stack([np.asarray(column) for column in values], axis=1)


def label_numbers(values: Values, table: Table, plan: ColumnPlan, contract: Contract) -> Labels:
    """Give labels the model's numbers; those of several columns are targets, whose names are the columns'.

    Raises:
        DataError: they do not fit the model.
    """
    if len(plan.labels) > 1:
        where = f"{table.origin}: columns {', '.join(map(repr, plan.labels))}"
        return replace(encode_labels(values, None, contract, where), class_names=plan.labels)
    column = table.columns[plan.labels[0]]
    return encode_labels(values, column.class_names or table.class_names, contract, f"{table.origin}: column {plan.labels[0]!r}")
