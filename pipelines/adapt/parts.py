"""The rows of an adaptation: read as the model takes them, divided once, checked, and named by what they hold."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np

from monograph.models.contract import Contract
from monograph.models.data.checks import Problem, settle
from monograph.models.data.digests import row_digests
from monograph.models.data.rows import DIGESTS_KEY, Rows
from monograph.models.data.splits import split_once
from monograph.pipelines.adapt.task import Task, TaskKind, as_targets, reading_contract, task_of
from monograph.pipelines.data import DataSpec, as_data_spec

SPLITS_FILE = "splits.json"
UNREADABLE = "unreadable"
_SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


def read_parts(
    contract: Contract,
    tokenizer_json: str | None,
    given: dict[str, str | DataSpec | None],
    folder: Path,
    *,
    task: str,
    allow: Collection[str],
    seed: int,
) -> tuple[dict[str, Rows], Task, tuple[Problem, ...]]:
    """Return ``train``, ``validation``, ``test`` and, where given, ``shifted`` rows, the task that they are of, and problems.

    Args:
        contract: of the model, whose inputs the rows are read for.
        tokenizer_json: of the model.
        given: DATA by part; what lacks of validation and test is drawn from ``train``, stratified.
        folder: where the parts that were drawn are written down.
        task: its name, or ``auto``.
        allow: problems that are told and mended, not refused.
        seed: of the parts.

    Raises:
        DataError: rows cannot be read, are no rows of one task, or have a problem that is not allowed.
    """
    skip = UNREADABLE in allow
    spec = as_data_spec(given["train"])
    assert spec is not None
    first = spec.load(reading_contract(contract, task), tokenizer_json, needs_labels=True, skip_unreadable=skip)
    chosen = task_of(first, task)
    read = {"train": as_targets(first, chosen)}
    by_name = chosen.class_names if chosen.kind is TaskKind.CLASSIFICATION and first.class_names else None
    for name in ("validation", "test", "shifted"):
        other = as_data_spec(given.get(name))
        if other is not None:
            rows = other.load(reading_contract(contract, task, by_name), tokenizer_json, needs_labels=True, skip_unreadable=skip)
            read[name] = as_targets(rows, chosen)
    missing = [name for name in ("validation", "test") if name not in read]
    if missing:
        read |= _drawn(read["train"], missing, folder, seed)
    shifted = read.pop("shifted", None)
    classes = chosen.width if chosen.kind is TaskKind.CLASSIFICATION else None
    told_apart = {name: _told_apart(rows, contract) for name, rows in read.items()}
    settled, problems = settle(told_apart, classes, chosen.class_names, allow)
    parts = {name: _as_read(rows) for name, rows in settled.items()}
    return parts | ({} if shifted is None else {"shifted": shifted}), chosen, problems


def _told_apart(rows: Rows, contract: Contract) -> Rows:
    """Give rows of several inputs of numbers digests that know which number is whose; their own become an input.

    In those of a file the order of columns does not matter, so that user 3 with item 5 is user 5 with item 3.
    """
    if rows.digests is None or len(contract.inputs) < 2 or any(spec.preprocessing is not None for spec in contract.inputs):
        return rows
    columns = [rows.inputs[spec.name].reshape(len(rows), -1).astype(np.float64) for spec in contract.inputs]
    digests = row_digests([np.concatenate(columns, axis=1)])
    return replace(rows, inputs={**rows.inputs, DIGESTS_KEY: rows.digests}, digests=digests)


def _as_read(rows: Rows) -> Rows:
    inputs = dict(rows.inputs)
    digests = inputs.pop(DIGESTS_KEY, rows.digests)
    return replace(rows, inputs=inputs, digests=digests)


def _drawn(rows: Rows, missing: list[str], folder: Path, seed: int) -> dict[str, Rows]:
    """Divide the training rows, so that the missing parts get theirs; as the run before did, where there was one."""
    sizes = {name: _SHARES[name] for name in missing}
    shares = {"train": 1 - sum(sizes.values())} | sizes
    drawn: dict[str, Rows] = split_once(rows, shares, seed, folder / SPLITS_FILE)
    return drawn
