"""What members are called inside a fused graph: short, distinct, and safe to stand before the names of nodes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from monograph.errors import FusionError

_LONGEST_NAME = 40
_RESERVED_NAME = "fusion"
"""What joins the members is named so."""


def member_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return short, distinct names made of the files' names."""
    names: list[str] = []
    for path in paths:
        stem = re.sub(r"[^0-9A-Za-z_.-]+", "_", path.stem)[:_LONGEST_NAME] or "member"
        name, number = stem, 2
        while name in (*names, _RESERVED_NAME):
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return tuple(names)


def checked_names(names: Sequence[str], member_count: int) -> tuple[str, ...]:
    """Return ``names`` as they were given.

    Raises:
        FusionError: there are not as many as members, or one cannot stand before the names of nodes, or two are equal.
    """
    if len(names) != member_count:
        raise FusionError(f"{len(names)} names ({', '.join(names)}) for {member_count} members: give one name a member")
    for name in names:
        if not name or "/" in name or "," in name or name == _RESERVED_NAME or list(names).count(name) > 1:
            raise FusionError(
                f"a member cannot be called {name!r} among {', '.join(map(repr, names))}: "
                f"give each a name of its own without '/' or ',', other than {_RESERVED_NAME!r}"
            )
    return tuple(names)
