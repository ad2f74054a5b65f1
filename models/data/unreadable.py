"""Rows that cannot be read: a picture that no decoder takes, or a column without a value, for which NaN stands too."""

from __future__ import annotations

from collections.abc import Mapping

from monograph.errors import DataError


class UnreadableRowError(DataError):
    """One row cannot be read, whatever the model takes; the others may be sound."""

    def __init__(self, message: str, reason: str = "") -> None:
        """Take the whole message, and what is wrong with the row in a few words."""
        super().__init__(message)
        self.reason = reason


def how_many_unreadable(reasons: Mapping[int, str], row_count: int) -> str:
    """Say how many of ``row_count`` rows cannot be read, and which is the first; ``reasons`` by row, in their order."""
    row, reason = next(iter(reasons.items()))
    return f"{len(reasons)} of {row_count} rows cannot be read (first: row {row}: {reason})"
