"""Split rows into disjoint parts, the same parts every time.

Shape letters: ``n`` rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from monograph.errors import DataError
from monograph.models.data.rows import Array, Rows


def stratified_split(rows: Rows, fractions_or_counts: Mapping[str, float | int], seed: int) -> dict[str, Rows]:
    """Draw disjoint parts of ``rows``, each with the classes in the proportion in which ``rows`` has them.

    Where classes cannot be kept in proportion (no labels, labels that are no classes, a class with a single row, or a part
    smaller than the number of classes), that part is drawn by a plain shuffle and says so in its ``assumed``.

    Args:
        rows: what to split.
        fractions_or_counts: the size of each part by its name; all fractions of ``n`` (floats), or all counts (integers).
            Rows that no part asks for are left out.
        seed: the same seed gives the same parts.

    Raises:
        DataError: sizes that are not positive, ask for more rows than there are, or mix fractions and counts.
    """
    counts = _counts(fractions_or_counts, len(rows), rows.origin)
    left = np.arange(len(rows))
    parts = {}
    for name, count in counts.items():
        chosen, left, assumed = _draw(rows.labels, left, count, seed)
        parts[name] = replace(rows.take(chosen), assumed=(*rows.assumed, *(f"part {name!r} {text}" for text in assumed)))
    return parts


def _counts(sizes: Mapping[str, float | int], n: int, origin: str) -> dict[str, int]:
    asked = ", ".join(f"{name}: {size}" for name, size in sizes.items())
    if not sizes or any(not size > 0 for size in sizes.values()):
        raise DataError(f"{origin}: cannot split into {asked or 'no parts'}, expected a positive size for each part")
    if all(isinstance(size, int | np.integer) for size in sizes.values()):
        if sum(sizes.values()) > n:
            raise DataError(f"{origin}: parts of {asked} need {sum(sizes.values())} rows, but there are {n}: ask for fewer")
        return {name: int(size) for name, size in sizes.items()}
    if any(isinstance(size, int | np.integer) for size in sizes.values()):
        raise DataError(f"{origin}: parts of {asked} mix fractions and counts: give all as fractions, or all as counts")
    ends = np.cumsum(list(sizes.values()))
    if ends[-1] > 1 + 1e-9:
        raise DataError(f"{origin}: parts of {asked} sum to {ends[-1]:g}, expected at most 1")
    # Rounding the ends, not the sizes, hands out every row where the fractions sum to one.
    counts = np.diff(np.rint(ends * n).astype(int), prepend=0)
    for name, count in zip(sizes, counts, strict=True):
        if count == 0:
            raise DataError(f"{origin}: part {name!r} of {sizes[name]:g} gets none of {n} rows: ask for a larger fraction")
    return dict(zip(sizes, counts.tolist(), strict=True))


def _draw(labels: Array | None, left: Array, count: int, seed: int) -> tuple[Array, Array, tuple[str, ...]]:
    """Return the ``count`` rows drawn from ``left``, what is left then, and what had to be assumed."""
    # Imported here because scikit-learn takes a second to load.
    from sklearn.model_selection import train_test_split

    if count == len(left):
        return np.random.default_rng(seed).permutation(left), left[:0], ()
    strata = None if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu" else labels[left]
    reason = None if strata is None else _reason_against_strata(strata, count)
    chosen, rest = train_test_split(
        left, train_size=count, test_size=len(left) - count, stratify=None if reason else strata, random_state=seed
    )
    return chosen, rest, (f"was drawn without regard to its classes: {reason}",) if reason else ()


def _reason_against_strata(strata: Array, count: int) -> str | None:
    names, sizes = np.unique(strata, return_counts=True)
    if sizes.min() < 2:
        return f"class {names[sizes.argmin()]} has a single row left"
    if min(count, len(strata) - count) < len(names):
        return f"{count} of {len(strata)} rows cannot hold all {len(names)} classes on both sides"
    return None
