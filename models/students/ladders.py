"""Students of rising size to choose among by measuring, as a budget of latency does.

What a network takes on a processor follows from its multiply-accumulates only roughly, so such a budget is a search.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from monograph.errors import ConfigError
from monograph.models.contract import Contract
from monograph.models.size import count_macs
from monograph.models.students.families import DEPTHS, WIDTH_OF_A_LAYER, WIDTHS, fitting_family, in_words, maker_of
from monograph.models.students.layers import encoder_layers, with_layers
from monograph.models.torch_model import TorchModel

_RUNG = 1.05
"""How much wider a rung is than the one before, at least: less drowns in the noise of a measurement."""


@dataclass(frozen=True)
class Rung:
    """A student of one size, not made yet."""

    what: str
    """In words: ``separable_conv of width 24``."""
    make: Callable[[], TorchModel]
    """Makes it, with fresh weights from PyTorch's global generator, or with its teacher's."""


@dataclass(frozen=True)
class Ladder:
    """Students of one family, the smallest first, none of which costs more than the teacher in multiply-accumulates."""

    rungs: tuple[Rung, ...]
    """At least one, and few: a search by halves takes seven steps at most."""
    notes: tuple[str, ...]
    """What holds for each of them, a sentence each for the user."""


def ladders(
    teacher_macs: int,
    contract: Contract,
    class_count: int,
    *,
    teacher: TorchModel | None = None,
    tokenizer_json: str | None = None,
) -> Iterator[Ladder]:
    """Yield the students to measure, in the order in which families are to be tried: as for a share of its work.

    That is the teacher with fewer layers where ``teacher`` is a BERT of transformers, then the family that fits its inputs.

    Args:
        teacher_macs: multiply-accumulates of one row; see :func:`monograph.models.size.count_macs`.
        contract: the teacher's; students take the same inputs, prepared alike.
        class_count: the last size of a student's output.
        teacher: its module, where it has one.
        tokenizer_json: travels with a student of texts; without it the ``teacher``'s does.

    Raises:
        ConfigError: no family fits the inputs, or even its smallest student costs more than the teacher.
    """
    found = None if teacher is None else encoder_layers(teacher.module)
    if teacher is not None and found is not None:
        keeps = range(1, len(found[1]) + 1)
        yield Ladder(tuple(_rung_of_layers(teacher, contract, keep, len(found[1])) for keep in keeps), ())
    name = fitting_family(contract)
    make, left_out = maker_of(name, contract, class_count, teacher, tokenizer_json)

    def cost(width: int) -> int:
        with torch.device("meta"):
            return count_macs(make(width, _fitting_depth(name, width)))

    widths = WIDTHS[: bisect_right(WIDTHS, teacher_macs, key=cost)]
    if not widths:
        raise ConfigError(
            f"the smallest {name} (width {WIDTHS[0]}) costs {cost(WIDTHS[0]):,} multiply-accumulates, more than the teacher's "
            f"{teacher_macs:,}: name a student"
        )
    yield Ladder(tuple(_rung_of_width(name, make, width) for width in _spread(widths)), left_out)


def _rung_of_layers(teacher: TorchModel, contract: Contract, keep: int, count: int) -> Rung:
    what = f"{teacher.name} with {keep} of its {count} layers"
    return Rung(what, lambda: with_layers(teacher, contract, keep))


def _rung_of_width(name: str, make: Callable[[int, int], TorchModel], width: int) -> Rung:
    depth = _fitting_depth(name, width)
    return Rung(in_words(name, width, depth), lambda: make(width, depth))


def _fitting_depth(name: str, width: int) -> int:
    """Return the largest depth that the width is wide enough for; 1 for families without a depth."""
    if name != "transformer":
        return 1
    return next(depth for depth in DEPTHS if depth == 1 or width >= WIDTH_OF_A_LAYER * depth)


def _spread(widths: Sequence[int]) -> list[int]:
    """Return the widths that are a rung apart, counted from the largest down, in rising order."""
    kept = [widths[-1]]
    for width in reversed(widths[:-1]):
        if width * _RUNG <= kept[-1]:
            kept.append(width)
    return kept[::-1]
