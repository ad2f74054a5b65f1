"""DATA to rows that a model can take: read, choose columns, preprocess, number the labels.

Shape letters: ``n`` rows, ``b`` batch, ``k`` features.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from monograph.errors import DataError
from monograph.models.contract import Contract, ImagePreprocessing, TensorSpec, TextPreprocessing
from monograph.models.data.digests import row_digests
from monograph.models.data.labels import Labels, encode_labels
from monograph.models.data.pictures import EncodedPictures
from monograph.models.data.preprocess import Values, preprocess
from monograph.models.data.rows import Array, Rows
from monograph.models.data.tables import Column, ColumnKind, Table, read_table

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
    label: str | None
    assumed: tuple[str, ...]


def load_rows(
    data: str,
    contract: Contract,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    label_column: str | None = None,
    tokenizer_json: str | None = None,
    limit: int | None = None,
    needs_labels: bool = False,
) -> Rows:
    """Read DATA as rows for the model of ``contract``.

    Args:
        data: ``file.npz``, a CSV, TSV, Parquet or JSON lines file, an image folder, a folder that ``datasets`` saved,
            ``py:package.module:factory``, or a dataset on the hub, ``owner/name[:configuration]`` or ``hf:owner/name``.
        contract: what the model takes and which classes it knows.
        split: which split to read, where there are several.
        columns: the column of each input, by the input's name; what is not named is guessed.
        label_column: the column of the labels; guessed where it is not named.
        tokenizer_json: the text of the tokenizer's JSON file, for models that take text.
        limit: read the first rows only, this many.
        needs_labels: refuse data without labels.

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
        return _read_plan(table, plan, contract, tokenizer_json, limit)


def plan_columns(
    table: Table, contract: Contract, columns: Mapping[str, str] | None, label_column: str | None, *, needs_labels: bool
) -> ColumnPlan:
    """Decide which column is what; raises what :func:`choose_columns` does, and where labels are needed and missing."""
    plan = choose_columns(table, contract, columns or {}, label_column)
    if needs_labels and plan.label is None:
        raise DataError(f"{table.origin}: no labels, and this needs them: name the label column{_listed(table)}")
    return plan


def choose_columns(table: Table, contract: Contract, columns: Mapping[str, str], label_column: str | None) -> ColumnPlan:
    """Decide which column is what: as named, else of the same name as the input, else by a guess that is said.

    Raises:
        DataError: a column that is named and missing, or an input for which no column can be guessed.
    """
    names = [spec.name for spec in contract.inputs]
    unknown = [name for name in columns if name not in names]
    if unknown:
        raise DataError(f"{table.origin}: the model has no input {unknown[0]!r} to map a column to; it has {', '.join(names)}")
    chosen: dict[str, tuple[str, ...]] = {
        name: (column,) for name, column in columns.items() if table.column(column, f"input {name!r}")
    }
    chosen |= {
        spec.name: (spec.name,)
        for spec in contract.inputs
        if spec.name not in chosen and spec.name != label_column and _could_be(table, spec.name, spec)
    }
    taken = {column for group in chosen.values() for column in group}
    label, assumed = _choose_label(table, label_column, taken)
    free = {name: column for name, column in table.columns.items() if name not in taken and name != label}
    for spec in contract.inputs:
        if spec.name not in chosen:
            chosen[spec.name], left_out = _guess_columns(table, free, spec, alone=len(names) == 1)
            assumed += _guess_said(table, spec.name, chosen[spec.name], left_out)
    return ColumnPlan({name: chosen[name] for name in names}, label, tuple(assumed))


def _choose_label(table: Table, label_column: str | None, taken: set[str]) -> tuple[str | None, list[str]]:
    if label_column is not None:
        table.column(label_column, "the labels")
        return label_column, []
    free = [name for name in table.columns if name not in taken]
    if table.stated is not None and table.stated[1] in free:
        return table.stated[1], []
    by_name = [name for name in _LABEL_COLUMNS if name in free]
    with_names = [name for name in free if table.columns[name].class_names is not None]
    guess = by_name[0] if by_name else with_names[0] if len(with_names) == 1 else None
    return guess, [] if guess is None else [f"{table.origin}: labels were read from column {guess!r}"]


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


def _read_plan(table: Table, plan: ColumnPlan, contract: Contract, tokenizer_json: str | None, limit: int | None) -> Rows:
    n = common_length(table, plan)
    count = n if limit is None else min(limit, n)
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
    groups = {plan.inputs[spec.name]: spec for spec in reversed(contract.inputs)}
    return {group: _read_columns(table, group, spec, start, stop) for group, spec in groups.items()}


def _prepare(
    raw: Mapping[tuple[str, ...], Values], table: Table, plan: ColumnPlan, contract: Contract, tokenizer_json: str | None
) -> tuple[dict[str, Array], tuple[str, ...]]:
    # Inputs of one text share the object, by which they are known to be one text.
    values = {name: raw[group] for name, group in plan.inputs.items()}
    return preprocess(values, contract, tokenizer_json=tokenizer_json, origin=table.origin)


def common_length(table: Table, plan: ColumnPlan) -> int:
    """Return how many rows the columns of the plan have; raises DataError where they differ or have none."""
    used = [name for group in plan.inputs.values() for name in group] + ([] if plan.label is None else [plan.label])
    lengths = {name: table.columns[name].length for name in used}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise DataError(f"{table.origin}: columns differ in length ({found}): give every row all of its columns")
    n = lengths[used[0]]
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
    if plan.label is None:
        return None
    column = table.columns[plan.label]
    # Of names all are read: classes numbered by their sorted names must not depend on the limit.
    values = column.read(0, column.length if column.kind is ColumnKind.TEXT else count)
    return encode_labels(values, column.class_names or table.class_names, contract, f"{table.origin}: column {plan.label!r}")
