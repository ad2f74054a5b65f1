"""A student by its budget: the largest of a fitting family that costs no more than a share of its teacher.

Shape letters: ``b`` batch, ``c`` classes.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from monograph.errors import ConfigError
from monograph.models.contract import Contract, ImagePreprocessing, Kind, TensorSpec, TextPreprocessing
from monograph.models.size import count_macs, count_parameters
from monograph.models.students import ModuleAndContract, conv, mlp, separable_conv, transformer
from monograph.models.torch_model import TorchModel

AUTO_PREFIX = "auto:"
FEWER_LAYERS = "fewer_layers"
WIDTHS = (*range(4, 16), *range(16, 64, 4), *range(64, 4097, 8))
"""Each costs at most 1.6 times what the one before does; the large ones are round, which suits vector units."""
DEPTHS = (12, 8, 6, 4, 3, 2, 1)
_WIDTH_OF_A_LAYER, _WIDTH_OF_A_HEAD = 64, 32
"""A layer is added for each 64 units of width, as in the small BERTs of Turc et al. 2019 (arXiv 1908.08962)."""
_DEFAULT_MAX_LENGTH = 512

Build = Callable[[int, int], ModuleAndContract]
"""Makes a student of a width and a depth; families without a depth ignore it."""


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
            "for example auto:1/10"
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
    name = family or _fitting_family(contract)
    if name not in FAMILIES:
        raise ConfigError(f"family is {name!r}, expected one of: {', '.join((*FAMILIES, FEWER_LAYERS))}")
    build = FAMILIES[name](contract, class_count)
    promised, left_out = _promising_as_the_teacher(contract, name, class_count)
    tokenizer = tokenizer_json or (teacher.tokenizer_json if teacher is not None else None)

    def make(width: int, depth: int) -> TorchModel:
        return TorchModel(build(width, depth)[0], promised, name, tokenizer if name == "transformer" else None)

    size = _largest(name, make, wanted, limit, total)
    return make(size.width, size.depth), (*notes, _described(name, size, wanted, limit, total), *left_out)


def fewer_layers(teacher_module: nn.Module, keep: int) -> nn.Module:
    """Return a copy with ``keep`` of the encoder's layers, spread evenly from the first to the last.

    Embeddings, the kept layers and the head start from the teacher's weights, as in DistilBERT (Sanh et al. 2019, arXiv
    1910.01108), whose script keeps the layers 0, 2, 4, 7, 9 and 11 of 12:
    https://github.com/huggingface/transformers/blob/v4.30.0/examples/research_projects/distillation/scripts/extract.py
    Every parameter of the copy can be trained; the teacher stays as it is.

    Raises:
        ConfigError: the module holds no BERT-like encoder of transformers, or ``keep`` is not from 1 to its layers' number.
    """
    found = encoder_layers(teacher_module)
    if found is None:
        raise ConfigError(
            f"{type(teacher_module).__name__} holds no BERT-like encoder of transformers (config.num_hidden_layers, and as many "
            f"modules in encoder.layer): take another family than {FEWER_LAYERS}"
        )
    count = len(found[1])
    if not 1 <= keep <= count:
        raise ConfigError(f"keep is {keep}, expected 1 to {count}: the encoder has {count} layers")
    kept = np.linspace(0, count - 1, keep).round().astype(int).tolist()
    student = copy.deepcopy(teacher_module)
    copied = encoder_layers(student)
    assert copied is not None
    parent, layers, config = copied
    parent.layer = nn.ModuleList(layers[index] for index in kept)
    config.num_hidden_layers = keep
    return student.requires_grad_(True)


def encoder_layers(module: nn.Module) -> tuple[nn.Module, nn.ModuleList, Any] | None:
    """Return the encoder of a BERT-like model of transformers, its layers and the model's config; None for other modules."""
    for model in module.modules():
        config = getattr(model, "config", None)
        count = getattr(config, "num_hidden_layers", None)
        if config is None or not isinstance(count, int):
            continue
        named = [(parent, getattr(parent, "layer", None)) for parent in model.modules()]
        lists = [(parent, layers) for parent, layers in named if isinstance(layers, nn.ModuleList) and len(layers) == count]
        return (*lists[0], config) if len(lists) == 1 else None
    return None


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
        return _cost(replace(teacher, module=fewer_layers(teacher.module, keep), contract=contract), budget.measure)

    keep = bisect_right(range(1, count + 1), limit, key=cost)
    if keep == 0:
        raise _too_small(budget, limit, total, f"{teacher.name} with one layer of {count}", cost(1))
    model = replace(teacher, module=fewer_layers(teacher.module, keep), contract=contract, name=f"{teacher.name}_{keep}_layers")
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


def _fitting_family(contract: Contract) -> str:
    spec = contract.inputs[0]
    dtype = np.dtype(spec.dtype)
    if isinstance(spec.preprocessing, ImagePreprocessing) or (dtype.kind == "f" and len(spec.shape) == 4):
        return "separable_conv"
    if isinstance(spec.preprocessing, TextPreprocessing) or (dtype.kind in "iu" and len(spec.shape) == 2):
        return "transformer"
    if dtype.kind == "f":
        return "mlp"
    raise ConfigError(f"no family of students takes {spec.describe()}: give a student of your own")


def _sizes(spec: TensorSpec) -> tuple[int, ...]:
    """Return the sizes of one row of floats."""
    sizes = tuple(dim for dim in spec.shape[1:] if isinstance(dim, int))
    if spec.dtype != "float32" or len(sizes) != len(spec.shape) - 1 or not sizes:
        raise ConfigError(f"input {spec.describe()} is not of float32 and one size: give a student of your own")
    return sizes


def _picture_family(factory: Callable[..., ModuleAndContract]) -> Callable[[Contract, int], Build]:
    def family(contract: Contract, class_count: int) -> Build:
        spec = contract.inputs[0]
        sizes = _sizes(spec)
        if isinstance(spec.preprocessing, ImagePreprocessing) and spec.preprocessing.layout != "NCHW":
            raise ConfigError(
                f"input {spec.describe()} has the layout {spec.preprocessing.layout}, and {factory.__name__} takes NCHW: "
                "take the family mlp, or give a student of your own"
            )
        return lambda width, depth: factory(sizes, class_count, width=width)

    return family


def _flat_family(contract: Contract, class_count: int) -> Build:
    feature_count = math.prod(_sizes(contract.inputs[0]))
    return lambda width, depth: mlp((feature_count,), class_count, width=width)


def _text_family(contract: Contract, class_count: int) -> Build:
    ids = _token_ids(contract)
    vocabulary_size = ids.upper_bound
    if np.dtype(ids.dtype).kind not in "iu" or len(ids.shape) != 2 or vocabulary_size is None:
        raise ConfigError(f"input {ids.describe()} is not of token ids with a known vocabulary: give a student of your own")
    lengths = [dim for dim in ids.shape[1:] if isinstance(dim, int)]
    if isinstance(ids.preprocessing, TextPreprocessing):
        lengths.append(ids.preprocessing.max_length)
    max_length = max(lengths, default=_DEFAULT_MAX_LENGTH)
    return lambda width, depth: transformer(vocabulary_size, max_length, class_count, width, depth, _head_count(width))


FAMILIES: dict[str, Callable[[Contract, int], Build]] = {
    "separable_conv": _picture_family(separable_conv),
    "conv": _picture_family(conv),
    "mlp": _flat_family,
    "transformer": _text_family,
}


def _head_count(width: int) -> int:
    """Return the most heads of 32 units or more that share the width equally."""
    return max(heads for heads in range(1, max(1, width // _WIDTH_OF_A_HEAD) + 1) if width % heads == 0)


def _largest(name: str, make: Callable[[int, int], TorchModel], budget: Budget, limit: int, total: int) -> Size:
    """Return the widest, and of transformers the deepest that is wide enough for its depth."""

    def cost(depth: int, width: int) -> int:
        with torch.device("meta"):  # counts without weights, and draws no random numbers
            model = make(width, depth)
        return _cost(model, budget.measure)

    for depth in DEPTHS if name == "transformer" else (1,):
        if depth > 1 and cost(depth, _WIDTH_OF_A_LAYER * depth) > limit:
            continue
        fitting = bisect_right(WIDTHS, limit, key=partial(cost, depth))
        if fitting:
            return Size(WIDTHS[fitting - 1], depth, cost(depth, WIDTHS[fitting - 1]))
    raise _too_small(budget, limit, total, f"the smallest {name} (width {WIDTHS[0]})", cost(1, WIDTHS[0]))


def _cost(model: TorchModel, measure: Measure) -> int:
    return count_macs(model) if measure is Measure.MACS else count_parameters(model.module)


def _promising_as_the_teacher(contract: Contract, name: str, class_count: int) -> tuple[Contract, tuple[str, ...]]:
    """Return the student's contract: the teacher's inputs, kind and class names; and a note on inputs that it leaves out."""
    taken: tuple[TensorSpec, ...] = contract.inputs[:1]
    if name == "transformer":
        ids = _token_ids(contract)
        taken = (ids, _text_input(contract, "attention_mask") or _mask_of(ids))
    left_out = [spec.name for spec in contract.inputs if spec not in taken]
    notes = (f"the student takes no {', '.join(left_out)}, which the teacher takes",) if left_out else ()
    shape = (taken[0].shape[0], class_count)
    if contract.kind.has_classes:
        names = contract.class_names if contract.class_names and len(contract.class_names) == class_count else None
        return Contract(taken, (TensorSpec("logits", "float32", shape),), Kind.LOGITS, names), notes
    return Contract(taken, (TensorSpec(contract.output.name, "float32", shape),), contract.kind), notes


def _token_ids(contract: Contract) -> TensorSpec:
    return _text_input(contract, "input_ids") or contract.inputs[0]


def _mask_of(ids: TensorSpec) -> TensorSpec:
    text = ids.preprocessing
    mask = TextPreprocessing("attention_mask", text.max_length) if isinstance(text, TextPreprocessing) else None
    return TensorSpec("attention_mask", ids.dtype, ids.shape, mask, upper_bound=2)


def _text_input(contract: Contract, role: str) -> TensorSpec | None:
    """Return the input of this role: by its preprocessing, or where it has none by its name."""
    for spec in contract.inputs:
        if (spec.preprocessing.role if isinstance(spec.preprocessing, TextPreprocessing) else spec.name) == role:
            return spec
    return None


def _described(name: str, size: Size, budget: Budget, limit: int, total: int) -> str:
    depth = f" and depth {size.depth}" if name == "transformer" else ""
    return _said(f"{name} of width {size.width}{depth}", size.cost, budget, limit, total)


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
