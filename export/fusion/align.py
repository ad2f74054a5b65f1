"""How members that were not made for each other come to share inputs and classes.

Everything here speaks of contracts; graphs are not touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from monograph.errors import FusionError
from monograph.export.fusion.adapters import Array, Cast, RoundPixels, Step, Truncate
from monograph.export.fusion.pictures import picture_notes, picture_steps, raw_pixels, want_raw_pixels
from monograph.models.contract import Contract, Dim, ImagePreprocessing, Kind, Preprocessing, TensorSpec, TextPreprocessing

_INTEGERS = ("int32", "int64")
_FLOATS = ("float16", "float32", "float64")
_INPUTS = (*_FLOATS, *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "bool", "str")
_TEXT_ROLES = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class InputLink:
    """One input of a member, fed from a shared input of the fused graph through ``steps``."""

    member_input: str
    shared_input: str
    dtype: str
    """The member's."""
    steps: tuple[Step, ...] = ()

    def apply(self, array: Array) -> Array:
        """Return the array that the member is fed for the shared one."""
        for step in self.steps:
            array = step.apply(array)
        return array

    def describe(self) -> list[str]:
        """Return what is done to the shared input on its way to the member."""
        return [step.describe(self.member_input) for step in self.steps]


def share_inputs(
    contracts: Sequence[Contract], names: Sequence[str]
) -> tuple[tuple[TensorSpec, ...], tuple[tuple[InputLink, ...], ...]]:
    """Return the fused graph's inputs, named as the first member's, and each member's links to them.

    Inputs are matched by name, those of texts by their role too, and where names differ by position. A dimension that one
    member fixes is fixed for all. Pictures that members want prepared differently become one input of raw pixels; of text
    limits the longest counts, and a text input that some members lack is taken for those that have it.

    Raises:
        FusionError: members differ in the number of inputs, in a fixed dimension, in rank, dtype or preprocessing in a way
            that no step mends; names and positions of inputs contradict each other; or an input is of a type that numpy
            does not have.
    """
    shared = list(contracts[0].inputs)
    positions = [_positions(shared, contract, names[0], name) for contract, name in zip(contracts, names, strict=True)]
    for position in range(len(shared)):
        takers = [index for index, own in enumerate(positions) if position in own]
        specs = [contracts[index].inputs[positions[index].index(position)] for index in takers]
        shared[position] = _shared_spec(shared[position], specs, [names[index] for index in takers])
    shared = _with_equal_text_shapes(shared)
    links = []
    for contract, own in zip(contracts, positions, strict=True):
        pairs = [(shared[position], spec) for position, spec in zip(own, contract.inputs, strict=True)]
        links.append(tuple(InputLink(spec.name, given.name, spec.dtype, _steps(given, spec)) for given, spec in pairs))
    return tuple(shared), tuple(links)


def input_notes(
    contracts: Sequence[Contract], names: Sequence[str], shared: Sequence[TensorSpec], links: Sequence[Sequence[InputLink]]
) -> list[str]:
    """Return what was decided about inputs, each a sentence for the user."""
    notes = []
    for contract, name, own in zip(contracts, names, links, strict=True):
        pairs = [(link.member_input, link.shared_input) for link in own]
        if len(pairs) > 1 and not {taken for taken, _ in pairs} <= {given for _, given in pairs}:
            how = "role" if _roles(contract.inputs) and _roles(shared) else "position"
            notes.append(f"inputs of {name} are matched by {how}: {', '.join(f'{taken} to {given}' for taken, given in pairs)}")
        lacking = {spec.name for spec in shared} - {given for _, given in pairs}
        for spec in shared:
            if spec.name in lacking and _role(spec) == "attention_mask":
                notes.append(f"{name} takes no {spec.name}: padding is text to it, so feed it texts of one length at a time")
            elif spec.name in lacking:
                notes.append(f"{name} takes no {spec.name}: what is given there does not reach it")
        limit = next((step.length for link in own for step in link.steps if isinstance(step, Truncate)), None)
        if limit is not None:
            notes.append(f"{name} sees the first {limit} tokens of longer texts: their final special token is cut off for it")
    for spec in shared:
        takers = [(index, link) for index, own in enumerate(links) for link in own if link.shared_input == spec.name]
        own_specs = [next(own for own in contracts[i].inputs if own.name == link.member_input) for i, link in takers]
        takers_names = [names[index] for index, _ in takers]
        if want_raw_pixels(own_specs):
            notes += picture_notes(spec, own_specs, takers_names)
        elif len({own.dtype for own in own_specs}) > 1 and spec.dtype == "float32":
            notes.append(f"input {spec.name} takes float32 pixels; {_integer_takers(own_specs, takers_names)} rounds them")
    return notes


def _integer_takers(specs: Sequence[TensorSpec], names: Sequence[str]) -> str:
    return ", ".join(name for spec, name in zip(specs, names, strict=True) if spec.dtype == "uint8")


def _names(specs: Sequence[TensorSpec]) -> str:
    return f"{len(specs)} inputs ({', '.join(spec.name for spec in specs)})"


def _positions(shared: list[TensorSpec], contract: Contract, first: str, name: str) -> list[int]:
    """Return where in ``shared`` each input of a member stands; text inputs that are new are added at its end."""
    specs = contract.inputs
    by_name = {spec.name: position for position, spec in enumerate(shared)}
    if {spec.name for spec in specs} == set(by_name):
        return [by_name[spec.name] for spec in specs]
    shared_roles, roles = _roles(shared), _roles(specs)
    if set(shared_roles) & set(roles):
        return _positions_by_role(shared, specs, first, name)
    if len(specs) != len(shared):
        raise FusionError(f"{first} takes {_names(shared)} but {name} takes {_names(specs)}: members must take the same inputs")
    if any(by_name.get(spec.name, position) != position for position, spec in enumerate(specs)):
        raise FusionError(
            f"{first} takes {_names(shared)} but {name} takes {_names(specs)}: which belong together cannot be told; "
            "export them again with the same input names"
        )
    return list(range(len(specs)))


def _role(spec: TensorSpec) -> str | None:
    if isinstance(spec.preprocessing, TextPreprocessing):
        return spec.preprocessing.role
    return spec.name if spec.name in _TEXT_ROLES and spec.dtype in _INTEGERS and len(spec.shape) == 2 else None


def _roles(specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Return the role of each input in a text, or nothing unless all of them have one of their own."""
    roles = tuple(role for spec in specs if (role := _role(spec)) is not None)
    return roles if len(set(roles)) == len(specs) else ()


def _positions_by_role(shared: list[TensorSpec], specs: Sequence[TensorSpec], first: str, name: str) -> list[int]:
    taken = {_role(spec): position for position, spec in enumerate(shared)}
    symbols: dict[Dim, Dim] = {}
    for spec in specs:
        if _role(spec) in taken:
            given = shared[taken[_role(spec)]]
            symbols |= {own: dim for own, dim in zip(spec.shape, given.shape, strict=False) if isinstance(own, str)}
    for spec in specs:
        if _role(spec) not in taken:
            if any(spec.name == other.name for other in shared):
                raise FusionError(
                    f"{first} and {name} both take {spec.name!r}, but not for the same of a text's arrays: "
                    "export them again with the same input names"
                )
            taken[_role(spec)] = len(shared)
            shared.append(replace(spec, shape=tuple(symbols.get(dim, dim) for dim in spec.shape)))
    return [taken[_role(spec)] for spec in specs]


def _with_equal_text_shapes(shared: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Fix for all arrays of a text what one of them fixes: members that lack an array say nothing of its shape."""
    if not _roles(shared) or any(len(spec.shape) != 2 for spec in shared):
        return list(shared)
    fixed = [next((spec.shape[axis] for spec in shared if isinstance(spec.shape[axis], int)), None) for axis in (0, 1)]
    shapes = [
        tuple(dim if size is None or isinstance(dim, int) else size for dim, size in zip(spec.shape, fixed, strict=True))
        for spec in shared
    ]
    return [replace(spec, shape=shape) for spec, shape in zip(shared, shapes, strict=True)]


def _shared_spec(shared: TensorSpec, specs: Sequence[TensorSpec], names: Sequence[str]) -> TensorSpec:
    for spec, name in zip(specs, names, strict=True):
        if spec.dtype not in _INPUTS:
            raise FusionError(
                f"{name} takes {spec.describe()}: no rows of that type can be fed; export it again with float32 inputs"
            )
    if want_raw_pixels(specs):
        return raw_pixels(specs, names)
    for spec, name in zip(specs, names, strict=True):
        shared = _unify(shared, spec, names[0], name)
    return shared


def _steps(shared: TensorSpec, spec: TensorSpec) -> tuple[Step, ...]:
    if isinstance(shared.preprocessing, ImagePreprocessing) and len(shared.shape) == 4:
        return picture_steps(shared, spec)
    steps: list[Step] = []
    if isinstance(own := spec.preprocessing, TextPreprocessing) and isinstance(shared.preprocessing, TextPreprocessing):
        given = shared.shape[1] if len(shared.shape) > 1 and isinstance(shared.shape[1], int) else shared.preprocessing.max_length
        fixed = spec.shape[1] if len(spec.shape) > 1 else None
        limit = fixed if isinstance(fixed, int) else own.max_length
        steps += [Truncate(limit)] if limit < given else []
    if spec.dtype != shared.dtype:
        steps.append(RoundPixels(spec.dtype) if spec.dtype == "uint8" else Cast(spec.dtype))
    return tuple(steps)


def _unify(shared: TensorSpec, spec: TensorSpec, first: str, name: str) -> TensorSpec:
    both = f"{first} takes {shared.describe()} but {name} takes {spec.describe()}"
    if len(shared.shape) != len(spec.shape):
        raise FusionError(f"{both}: members must take the same input; export them again for one shape")
    dtype = _unify_dtype(shared, spec, both)
    preprocessing = _unify_preprocessing(shared, spec, first, name)
    dims = list(zip(shared.shape, spec.shape, strict=True))
    if isinstance(preprocessing, TextPreprocessing) and all(isinstance(dim, int) for pair in dims[1:2] for dim in pair):
        dims[1] = (max(dims[1], key=int), max(dims[1], key=int))  # the longest text; members that fix less see its beginning
    shape = tuple(_unify_dim(a, b, both) for a, b in dims)
    bounds = [bound for bound in (shared.upper_bound, spec.upper_bound) if bound is not None]
    return TensorSpec(shared.name, dtype, shape, preprocessing, min(bounds, default=None))


def _unify_dtype(shared: TensorSpec, spec: TensorSpec, both: str) -> str:
    dtypes = {shared.dtype, spec.dtype}
    if len(dtypes) == 1 or dtypes <= set(_INTEGERS):
        return shared.dtype
    if dtypes == {"uint8", "float32"} and len(spec.shape) in (3, 4) and shared.preprocessing is None is spec.preprocessing:
        return "float32"  # pixels, from 0 to 255
    raise FusionError(f"{both}: export them again with one input type")


def _unify_preprocessing(shared: TensorSpec, spec: TensorSpec, first: str, name: str) -> Preprocessing | None:
    a, b = shared.preprocessing, spec.preprocessing
    if isinstance(a, TextPreprocessing) and isinstance(b, TextPreprocessing) and a.role == b.role:
        return replace(a, max_length=max(a.max_length, b.max_length))
    if a != b:
        raise FusionError(
            f"{first} and {name} want input {shared.name!r} preprocessed differently ({a} against {b}): "
            "export them again with the same preprocessing"
        )
    return a


def _unify_dim(a: Dim, b: Dim, both: str) -> Dim:
    if isinstance(a, int) and isinstance(b, int) and a != b:
        raise FusionError(f"{both}: {a} is not {b}; export them again for one shape")
    return a if isinstance(a, int) or not isinstance(b, int) else b


MISSING = -1
"""The position of a class that a member does not know."""
_LOGIT_OF_ZERO = -1e9
"""Softmax of it is exactly 0 beside any logit of a real model."""


def missing_value(kind: Kind) -> float:
    """Return what a member is taken to give for a class that it does not know: a probability of 0."""
    return _LOGIT_OF_ZERO if kind is Kind.LOGITS else 0.0


def missing_output(kind: Kind) -> float:
    """Return what stands for such a class where a member's own output is given: a logit that no temperature makes likely."""
    return -math.inf if kind is Kind.LOGITS else 0.0


def align_classes(
    contracts: Sequence[Contract], names: Sequence[str]
) -> tuple[tuple[str, ...] | None, tuple[tuple[int, ...] | None, ...]]:
    """Return the fused graph's class names and, for each member, where each of its classes is found (None: in order).

    The member that names the most classes sets the order, the first of these where several do; the others may lack
    some (``MISSING``), but know none that it lacks. One that names none is taken to be in that order.

    Raises:
        FusionError: members differ in how many classes they have, or in their names.
    """
    leader = class_leader(contracts)
    if leader is None:
        _check_class_counts(contracts, names)
        return None, (None,) * len(contracts)
    order = contracts[leader].class_names or ()
    nameless = [(contract, name) for contract, name in zip(contracts, names, strict=True) if not contract.class_names]
    _check_class_counts([contract for contract, _ in nameless], [name for _, name in nameless], len(order), names[leader])
    positions: list[tuple[int, ...] | None] = []
    for contract, name in zip(contracts, names, strict=True):
        own = contract.class_names
        if own is None or own == order:
            positions.append(None)
            continue
        if strangers := sorted(set(own) - set(order)):
            raise FusionError(
                f"{names[leader]} and {name} name different classes ({', '.join(strangers[:5])} unknown to {names[leader]}): "
                "export them again with the same class names"
            )
        index = {class_name: position for position, class_name in enumerate(own)}
        positions.append(tuple(index.get(class_name, MISSING) for class_name in order))
    return order, tuple(positions)


def class_leader(contracts: Sequence[Contract]) -> int | None:
    """Return the position of the contract whose class names set the order; None where none names its classes."""
    counts = [len(contract.class_names or ()) for contract in contracts]
    return counts.index(max(counts)) if max(counts) else None


def _check_class_counts(
    contracts: Sequence[Contract], names: Sequence[str], expected: int | None = None, first: str | None = None
) -> None:
    for contract, name in zip(contracts, names, strict=True):
        count = contract.class_count
        if count is None:
            continue
        if expected is not None and count != expected:
            raise FusionError(
                f"{first} has {expected} classes but {name} has {count}: only models of the same classes can be fused"
            )
        expected, first = (count, name) if expected is None else (expected, first)


def unify_output_shape(
    contracts: Sequence[Contract], names: Sequence[str], *, class_count: int | None = None, joins_features: bool = False
) -> tuple[Dim, ...]:
    """Return the shape of the fused output; its last dimension is ``class_count`` where some members lack classes.

    With ``joins_features`` the last dimensions are added up, else they must be equal.

    Raises:
        FusionError: members' outputs differ in rank or in a fixed dimension.
    """
    shapes = [contract.output.shape for contract in contracts]
    lasts = [shape[-1] for shape in shapes if shape]
    free_last = joins_features or class_count is not None
    shape = shapes[0]
    for contract, name, other in zip(contracts[1:], names[1:], shapes[1:], strict=True):
        both = f"{names[0]} gives {contracts[0].output.describe()} but {name} gives {contract.output.describe()}"
        if len(shape) != len(other):
            raise FusionError(f"{both}: only outputs of one shape can be fused")
        adapted = (*other[:-1], shape[-1]) if free_last and other else other
        shape = tuple(_unify_dim(a, b, both) for a, b in zip(shape, adapted, strict=True))
    if joins_features and shape:
        sizes = [last for last in lasts if isinstance(last, int)]
        shape = (*shape[:-1], sum(sizes) if len(sizes) == len(lasts) else "features")
    elif class_count is not None:
        shape = (*shape[:-1], class_count)
    for contract, name in zip(contracts, names, strict=True):
        if contract.output.dtype not in _FLOATS:
            raise FusionError(f"{name} gives {contract.output.describe()}: only float outputs can be fused")
    return shape
