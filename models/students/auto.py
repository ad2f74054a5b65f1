"""A student by its budget: the largest of a fitting family that costs no more than a share of its teacher."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction
from functools import partial

import torch

from monograph.errors import ConfigError
from monograph.models.contract import Contract
from monograph.models.size import count_macs, count_parameters
from monograph.models.students.families import DEPTHS, FAMILIES, WIDTH_OF_A_LAYER, WIDTHS, fitting_family, in_words, maker_of
from monograph.models.students.layers import FEWER_LAYERS, encoder_layers, with_layers
from monograph.models.torch_model import TorchModel

AUTO_PREFIX = "auto:"


class Measure(StrEnum):
    """What a budget counts."""

    MACS = "macs"
    PARAMETERS = "parameters"


@dataclass(frozen=True)
class Budget:
    """A share of what the teacher costs."""

    share: Fraction
    measure: Measure

    def __str__(self) -> str:
        return f"{AUTO_PREFIX}{self.share}" + ("" if self.measure is Measure.MACS else f":{self.measure}")


@dataclass(frozen=True)
class Size:
    """How wide and deep a student is, and what that costs in its budget's measure."""

    width: int
    depth: int
    cost: int


def parse_budget(text: str) -> Budget:
    """Read ``auto:SHARE`` or ``auto:SHARE:parameters``, in which SHARE is ``1/10`` or ``0.1``.

    Raises:
        ConfigError: the text has another form, or the share does not lie above 0 and up to 1.
    """
    share_text, _, measure = text.removeprefix(AUTO_PREFIX).partition(":")
    try:
        share = Fraction(share_text)
        if not text.startswith(AUTO_PREFIX) or not 0 < share <= 1:
            raise ValueError
        return Budget(share, Measure(measure or Measure.MACS))
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            f"budget is {text!r}, expected auto:SHARE or auto:SHARE:parameters with a share of the teacher above 0 and up to 1, "
            "for example auto:1/10; or a latency, for example auto:2ms@cpu"
        ) from error


def auto_student(
    teacher_macs: int,
    contract: Contract,
    class_count: int,
    budget: str,
    family: str | None = None,
    *,
    teacher_parameters: int | None = None,
    teacher: TorchModel | None = None,
    tokenizer_json: str | None = None,
) -> tuple[TorchModel, tuple[str, ...]]:
    """Make the largest student that the budget allows, and say in notes what was chosen.

    Without ``family`` it is the teacher with fewer layers where ``teacher`` is given and a BERT of transformers, as long as
    one layer fits the budget; else the first input of the teacher's ``contract`` decides: ``separable_conv`` for pictures,
    ``transformer`` for token ids, ``mlp`` for other numbers. Its weights are drawn from PyTorch's global generator, once.

    Args:
        teacher_macs: multiply-accumulates of one row; see :func:`monograph.models.size.count_macs`.
        contract: the teacher's; the student takes the same inputs, prepared alike.
        class_count: the last size of the student's output.
        budget: see :func:`parse_budget`.
        family: one of ``FAMILIES``, or ``fewer_layers``.
        teacher_parameters: needed for a budget of parameters, unless ``teacher`` is given.
        teacher: needed for ``fewer_layers``.
        tokenizer_json: travels with a student of texts; without it the ``teacher``'s does.

    Raises:
        ConfigError: the budget or the family cannot be used, the family does not fit the inputs, or even the smallest
            student costs more than the budget.
    """
    wanted = parse_budget(budget)
    limit, total = _limit(wanted, teacher_macs, teacher_parameters, teacher)
    notes: tuple[str, ...] = ()
    if family == FEWER_LAYERS or (family is None and teacher is not None and encoder_layers(teacher.module) is not None):
        try:
            return _teacher_with_fewer_layers(teacher, contract, class_count, wanted, limit, total)
        except ConfigError as error:
            if family is not None:
                raise
            notes = (f"the teacher with fewer layers was not taken: {error}",)
    name = family or fitting_family(contract)
    if name not in FAMILIES:
        raise ConfigError(f"family is {name!r}, expected one of: {', '.join((*FAMILIES, FEWER_LAYERS))}")
    make, left_out = maker_of(name, contract, class_count, teacher, tokenizer_json)
    size = _largest(name, make, wanted, limit, total)
    return make(size.width, size.depth), (*notes, _described(name, size, wanted, limit, total), *left_out)


def _teacher_with_fewer_layers(
    teacher: TorchModel | None, contract: Contract, class_count: int, budget: Budget, limit: int, total: int
) -> tuple[TorchModel, tuple[str, ...]]:
    if teacher is None:
        raise ConfigError(f"family {FEWER_LAYERS} needs a PyTorch teacher, and none was given: take one of {', '.join(FAMILIES)}")
    found = encoder_layers(teacher.module)
    count = 1 if found is None else len(found[1])
    if contract.output.shape[-1:] != (class_count,):
        raise ConfigError(f"{teacher.name} gives {contract.output.describe()}, but {class_count} classes were asked for")

    def cost(keep: int) -> int:
        return _cost(with_layers(teacher, contract, keep), budget.measure)

    keep = bisect_right(range(1, count + 1), limit, key=cost)
    if keep == 0:
        raise _too_small(budget, limit, total, f"{teacher.name} with one layer of {count}", cost(1))
    model = with_layers(teacher, contract, keep)
    what = f"{teacher.name} with {keep} of its {count} layers"
    return model, (_said(what, _cost(model, budget.measure), budget, limit, total),)


def _limit(budget: Budget, teacher_macs: int, teacher_parameters: int | None, teacher: TorchModel | None) -> tuple[int, int]:
    """Return what a student may cost and what the teacher does, in the budget's measure."""
    total: int | None = teacher_macs
    if budget.measure is Measure.PARAMETERS:
        total = count_parameters(teacher.module) if teacher_parameters is None and teacher is not None else teacher_parameters
    if total is None or total < 1:
        raise ConfigError(f"the teacher has {total or 'an unknown number of'} {budget.measure}, of which {budget} takes a share")
    return math.floor(total * budget.share), total


def _largest(name: str, make: Callable[[int, int], TorchModel], budget: Budget, limit: int, total: int) -> Size:
    """Return the widest, and of transformers the deepest that is wide enough for its depth."""

    def cost(depth: int, width: int) -> int:
        with torch.device("meta"):  # counts without weights, and draws no random numbers
            model = make(width, depth)
        return _cost(model, budget.measure)

    for depth in DEPTHS if name == "transformer" else (1,):
        if depth > 1 and cost(depth, WIDTH_OF_A_LAYER * depth) > limit:
            continue
        fitting = bisect_right(WIDTHS, limit, key=partial(cost, depth))
        if fitting:
            return Size(WIDTHS[fitting - 1], depth, cost(depth, WIDTHS[fitting - 1]))
    raise _too_small(budget, limit, total, f"the smallest {name} (width {WIDTHS[0]})", cost(1, WIDTHS[0]))


def _cost(model: TorchModel, measure: Measure) -> int:
    return count_macs(model) if measure is Measure.MACS else count_parameters(model.module)


def _described(name: str, size: Size, budget: Budget, limit: int, total: int) -> str:
    return _said(in_words(name, size.width, size.depth), size.cost, budget, limit, total)


def _said(what: str, cost: int, budget: Budget, limit: int, total: int) -> str:
    return f"{what}: {cost:,} {budget.measure} of {limit:,} allowed ({budget.share} of the teacher's {total:,})"


def _too_small(budget: Budget, limit: int, total: int, what: str, cost: int) -> ConfigError:
    advice = (
        f"take a larger share, such as {replace(budget, share=Fraction(1, total // cost))}"
        if cost <= total
        else "no student of this family costs less than the teacher: take another"
    )
    return ConfigError(
        f"{budget} allows {limit:,} of the teacher's {total:,} {budget.measure}, but {what} costs {cost:,}: {advice}"
    )
