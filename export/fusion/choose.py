"""Which form fits the members."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from monograph.errors import FusionError
from monograph.export.fusion.forms import FORMS, Form
from monograph.models.contract import Contract, Kind


def choose_form(contracts: Sequence[Contract], names: Sequence[str], combine: str | None) -> Form:
    """Return the form called ``combine``, or the one that fits the members' kinds.

    Raises:
        FusionError: there is no such form, or a member's output is of a kind that it cannot take.
    """
    kinds = {contract.kind for contract in contracts}
    subset = _some_lack_classes(contracts)
    if combine is None:
        classify = kinds <= {Kind.LOGITS, Kind.PROBABILITIES}
        combine = "logits" if kinds == {Kind.LOGITS} and not subset else "probs" if classify else "mean"
    if combine not in FORMS:
        raise FusionError(f"unknown form {combine!r}: choose --combine from {', '.join(FORMS)}")
    form = FORMS[combine]
    for contract, name in zip(contracts, names, strict=True):
        if contract.kind not in form.kinds:
            fitting = [other.name for other in FORMS.values() if kinds <= set(other.kinds)] if _go_together(kinds) else []
            remedy = f"use --combine {_either(fitting)}" if fitting else "members must give outputs of one kind"
            raise FusionError(f"{name} gives {contract.kind.value}, which --combine {combine} cannot take: {remedy}")
    if subset and not form.takes_subsets:
        able = _either([other.name for other in FORMS.values() if other.takes_subsets])
        raise FusionError(
            f"some members lack classes that others have, which --combine {form.name} cannot take: use --combine {able}"
        )
    if not _go_together(kinds):
        raise FusionError(f"members give {', '.join(sorted(kinds))}: outputs of different kinds have no common mean")
    return form


def _go_together(kinds: AbstractSet[Kind]) -> bool:
    """Logits and probabilities can be told from each other and brought to one space; other outputs must be of one kind."""
    return len(kinds) == 1 or all(kind.has_classes for kind in kinds)


def _either(names: Sequence[str]) -> str:
    return " or ".join([part for part in (", ".join(names[:-1]), names[-1]) if part])


def _some_lack_classes(contracts: Sequence[Contract]) -> bool:
    named = [frozenset(contract.class_names) for contract in contracts if contract.class_names]
    return any(names < max(named, key=len) for names in named)
