"""What can be wrong with labelled rows that were divided into parts, told and counted before anything is learned from them.

Shape letters: ``n`` rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from monograph.errors import ConfigError, DataError
from monograph.models.data.digests import row_digests
from monograph.models.data.rows import Array, Rows

MISSING_CLASS, DUPLICATES, UNREADABLE = "missing-class", "duplicates", "unreadable"
KINDS = (MISSING_CLASS, DUPLICATES, UNREADABLE)
_MOST_NAMED = 5
_MEND_DUPLICATES = "drop them from one of the two, for what is learned by heart would pass for knowledge"
_LEAST_TO_FIRST = ("train", "validation", "test")
"""Which part gives a row up to which: evaluation keeps its rows."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    kind: str
    """``missing-class``, ``duplicates`` or, for rows that are left out while they are read, ``unreadable``."""
    count: int
    """Of classes, or of rows."""
    text: str
    """What, how many, an example, and how to mend it."""


def settle(
    parts: Mapping[str, Rows], class_count: int | None, class_names: Sequence[str] | None, allowed: Collection[str] = ()
) -> tuple[dict[str, Rows], tuple[Problem, ...]]:
    """Return parts that can be learned and judged from, and the problems that were allowed.

    A row that stands in two parts is taken out of the training rows, or else of the validation rows, where that is allowed.

    Raises:
        ConfigError: something is allowed that is no problem.
        DataError: there is a problem that is not allowed; all of them are told at once.
    """
    if unknown := sorted(set(allowed) - set(KINDS)):
        raise ConfigError(f"unknown problem {unknown[0]!r} to allow: choose from {', '.join(KINDS)}")
    kept, repeated = dict(parts), duplicates_across(parts)
    if repeated is not None and DUPLICATES in allowed:
        kept, dropped = without_duplicates(parts)
        told = f"{repeated.text.removesuffix(f': {_MEND_DUPLICATES}')}: {dropped} rows were taken out of the earlier parts"
        repeated = Problem(DUPLICATES, dropped, told)
    # Looked for in what is left: with its last row a class goes, too.
    absent = missing_classes(kept["train"], class_count, class_names)
    problems = tuple(one for one in (absent, repeated) if one is not None)
    needed = {*allowed, *(one.kind for one in problems)}
    if needed > set(allowed):
        names = ",".join(kind for kind in KINDS if kind in needed)
        raise DataError(f"{'; '.join(one.text for one in problems)}; or go on all the same by --allow {names}")
    return kept, problems


def missing_classes(train: Rows, class_count: int | None, class_names: Sequence[str] | None) -> Problem | None:
    """Return which classes no training row has; None where each has one, or there are no classes."""
    if class_count is None:
        return None
    absent = sorted(set(range(class_count)) - set(np.unique(train.required_labels()).tolist()))
    if not absent:
        return None
    names = [class_names[number] if class_names else str(number) for number in absent]
    shown = ", ".join(map(repr, names[:_MOST_NAMED])) + (" …" if len(names) > _MOST_NAMED else "")
    return Problem(
        MISSING_CLASS,
        len(absent),
        f"{train.origin}: no training row is of {len(absent)} of {class_count} classes ({shown}): add rows of them, or take "
        "them away",
    )


def duplicates_across(parts: Mapping[str, Rows]) -> Problem | None:
    """Return the rows that stand in several parts, found by what they hold; None where there are none."""
    digests = _digests(parts)
    total, texts = 0, []
    for one, other in combinations(parts, 2):
        shared = np.flatnonzero(np.isin(digests[one], digests[other]))
        if not len(shared):
            continue
        total += len(shared)
        twins = _first_places(digests[other], digests[one][shared])
        contrary = _differing(parts[one], shared, parts[other], twins)
        labelled = f", {contrary} of them with another label" if contrary else ""
        example = f"{one} row {shared[0]} is {other} row {twins[0]}"
        texts.append(f"{len(shared)} {one} rows stand among the {other} rows too{labelled} ({example})")
    if not texts:
        return None
    origin = next(iter(parts.values())).origin
    return Problem(DUPLICATES, total, f"{origin}: {'; '.join(texts)}: {_MEND_DUPLICATES}")


def without_duplicates(parts: Mapping[str, Rows], digests: Mapping[str, Array] | None = None) -> tuple[dict[str, Rows], int]:
    """Return the parts without the rows that stand in a later one, training before validation before test, and their number.

    Args:
        parts: by name.
        digests: uint64 ``[n]`` of each part, by which rows are known again; their files' own by default.

    Raises:
        DataError: a part is left without rows.
    """
    order = [name for name in _LEAST_TO_FIRST if name in parts] + [name for name in parts if name not in _LEAST_TO_FIRST]
    digests = digests or _digests(parts)
    kept, dropped = {}, 0
    for place, name in enumerate(order):
        later = [digests[other] for other in order[place + 1 :]]
        stays = ~np.isin(digests[name], np.concatenate(later)) if later else np.ones(len(digests[name]), bool)
        if not stays.any():
            raise DataError(f"{parts[name].origin}: all {len(stays)} {name} rows stand in another part too: give other rows")
        kept[name] = parts[name].take(np.flatnonzero(stays))
        dropped += int((~stays).sum())
    return {name: kept[name] for name in parts}, dropped


def _digests(parts: Mapping[str, Rows]) -> dict[str, Array]:
    """Return the digests of each part's rows, of one sort: as their files have them only where that is known of all."""
    known = {name: rows.digests for name, rows in parts.items() if rows.digests is not None}
    return known if len(known) == len(parts) else prepared_digests(parts)


def prepared_digests(parts: Mapping[str, Rows]) -> dict[str, Array]:
    """Return the digests of each part's rows as a model takes them: two texts of the same tokens are one row to it."""
    # Side by side, because digests of several columns leave out their order: user 3 with item 5 is not user 5 with item 3.
    flat = {name: [array.reshape(len(rows), -1) for _, array in sorted(rows.inputs.items())] for name, rows in parts.items()}
    return {name: row_digests(arrays if len(arrays) == 1 else [np.concatenate(arrays, axis=1)]) for name, arrays in flat.items()}


def _first_places(digests: Array, wanted: Array) -> Array:
    """Return where each of ``wanted``, which are all there, stands first among ``digests``."""
    order = np.argsort(digests, kind="stable")
    return order[np.searchsorted(digests[order], wanted)]


def _differing(one: Rows, places: Array, other: Rows, twins: Array) -> int:
    """Count the rows at ``places`` whose twins have another label."""
    if one.labels is None or other.labels is None or one.labels.shape[1:] != other.labels.shape[1:]:
        return 0
    differs = one.labels[places] != other.labels[twins]
    return int(differs.reshape(len(places), -1).any(axis=1).sum())
