"""Families of students: what inputs each takes, how it is made in a width and a depth, and what it promises.

Shape letters: ``b`` batch, ``c`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from monograph.errors import ConfigError
from monograph.models.contract import Contract, ImagePreprocessing, Kind, TensorSpec, TextPreprocessing
from monograph.models.students import ModuleAndContract, conv, mlp, separable_conv, transformer
from monograph.models.torch_model import TorchModel

WIDTHS = (*range(4, 16), *range(16, 64, 4), *range(64, 4097, 8))
"""Each costs at most 1.6 times what the one before does; the large ones are round, which suits vector units."""
DEPTHS = (12, 8, 6, 4, 3, 2, 1)
WIDTH_OF_A_LAYER = 64
"""A layer is added for each 64 units of width, as in the small BERTs of Turc et al. 2019 (arXiv 1908.08962)."""
_WIDTH_OF_A_HEAD = 32
_DEFAULT_MAX_LENGTH = 512

Build = Callable[[int, int], ModuleAndContract]
"""Makes a student of a width and a depth; families without a depth ignore it."""


def fitting_family(contract: Contract) -> str:
    """Return the family that the first input of ``contract`` asks for.

    Raises:
        ConfigError: there is none.
    """
    spec = contract.inputs[0]
    dtype = np.dtype(spec.dtype)
    if isinstance(spec.preprocessing, ImagePreprocessing) or (dtype.kind == "f" and len(spec.shape) == 4):
        return "separable_conv"
    if isinstance(spec.preprocessing, TextPreprocessing) or (dtype.kind in "iu" and len(spec.shape) == 2):
        return "transformer"
    if dtype.kind == "f":
        return "mlp"
    raise ConfigError(f"no family of students takes {spec.describe()}: give a student of your own")


def maker_of(
    name: str, contract: Contract, class_count: int, teacher: TorchModel | None, tokenizer_json: str | None
) -> tuple[Callable[[int, int], TorchModel], tuple[str, ...]]:
    """Return what makes a student of this family by its width and depth, and a note on inputs that it leaves out."""
    build = FAMILIES[name](contract, class_count)
    promised, left_out = _promising_as_the_teacher(contract, name, class_count)
    tokenizer = tokenizer_json or (teacher.tokenizer_json if teacher is not None else None)

    def make(width: int, depth: int) -> TorchModel:
        return TorchModel(build(width, depth)[0], promised, name, tokenizer if name == "transformer" else None)

    return make, left_out


def in_words(name: str, width: int, depth: int) -> str:
    """Return what a student of this family is, for people."""
    return f"{name} of width {width}" + (f" and depth {depth}" if name == "transformer" else "")


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
