"""How members that were not made for each other come to share inputs and classes.

Everything here speaks of contracts; graphs are not touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from monograph.errors import FusionError
from monograph.models.contract import Contract, Dim, TensorSpec

_INTEGERS = ("int32", "int64")
_FLOATS = ("float16", "float32", "float64")
_INPUTS = (*_FLOATS, *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "bool", "str")


@dataclass(frozen=True)
class InputLink:
    """One input of a member, fed from a shared input of the fused graph, through a cast where the dtypes differ."""

    member_input: str
    shared_input: str
    dtype: str
    """The member's."""


def share_inputs(
    contracts: Sequence[Contract], names: Sequence[str]
) -> tuple[tuple[TensorSpec, ...], tuple[tuple[InputLink, ...], ...]]:
    """Return the fused graph's inputs, named as the first member's, and each member's links to them.

    Inputs are matched by name, and where names differ by position. A dimension that one member fixes is fixed for all.

    Raises:
        FusionError: members differ in the number of inputs, in a fixed dimension, in rank, dtype or preprocessing; names
            and positions of inputs contradict each other; or an input is of a type that numpy does not have.
    """
    shared = list(contracts[0].inputs)
    links = []
    for contract, name in zip(contracts, names, strict=True):
        if len(contract.inputs) != len(shared):
            raise FusionError(
                f"{names[0]} takes {_names(shared)} but {name} takes {_names(contract.inputs)}: members must take the same inputs"
            )
        positions = _positions(shared, contract.inputs, names[0], name)
        member_links = []
        for position, spec in zip(positions, contract.inputs, strict=True):
            shared[position] = _unify(shared[position], spec, names[0], name)
            member_links.append(InputLink(spec.name, shared[position].name, spec.dtype))
        links.append(tuple(member_links))
    return tuple(shared), tuple(links)


def _names(specs: Sequence[TensorSpec]) -> str:
    return f"{len(specs)} inputs ({', '.join(spec.name for spec in specs)})"


def _positions(shared: Sequence[TensorSpec], specs: Sequence[TensorSpec], first: str, name: str) -> list[int]:
    by_name = {spec.name: position for position, spec in enumerate(shared)}
    if {spec.name for spec in specs} == set(by_name):
        return [by_name[spec.name] for spec in specs]
    if any(by_name.get(spec.name, position) != position for position, spec in enumerate(specs)):
        raise FusionError(
            f"{first} takes {_names(shared)} but {name} takes {_names(specs)}: which belong together cannot be told; "
            "export them again with the same input names"
        )
    return list(range(len(specs)))


def _unify(shared: TensorSpec, spec: TensorSpec, first: str, name: str) -> TensorSpec:
    both = f"{first} takes {shared.describe()} but {name} takes {spec.describe()}"
    if spec.dtype not in _INPUTS:
        raise FusionError(f"{name} takes {spec.describe()}: no rows of that type can be fed; export it again with float32 inputs")
    if len(shared.shape) != len(spec.shape):
        raise FusionError(f"{both}: members must take the same input; export them again for one shape")
    if shared.dtype != spec.dtype and not (shared.dtype in _INTEGERS and spec.dtype in _INTEGERS):
        raise FusionError(f"{both}: export them again with one input type")
    if shared.preprocessing != spec.preprocessing:
        raise FusionError(
            f"{first} and {name} want input {shared.name!r} preprocessed differently "
            f"({shared.preprocessing} against {spec.preprocessing}): export them again with the same preprocessing"
        )
    shape = tuple(_unify_dim(a, b, both) for a, b in zip(shared.shape, spec.shape, strict=True))
    bounds = [bound for bound in (shared.upper_bound, spec.upper_bound) if bound is not None]
    return TensorSpec(shared.name, shared.dtype, shape, shared.preprocessing, min(bounds, default=None))


def _unify_dim(a: Dim, b: Dim, both: str) -> Dim:
    if isinstance(a, int) and isinstance(b, int) and a != b:
        raise FusionError(f"{both}: {a} is not {b}; export them again for one shape")
    return a if isinstance(a, int) or not isinstance(b, int) else b


def align_classes(
    contracts: Sequence[Contract], names: Sequence[str]
) -> tuple[tuple[str, ...] | None, tuple[tuple[int, ...] | None, ...]]:
    """Return the fused graph's class names and, for each member, where each of its classes is found (None: in order).

    The first member that names its classes sets the order; one that names none is taken to be in that order.

    Raises:
        FusionError: members differ in how many classes they have, or in their names.
    """
    leader = next((index for index, contract in enumerate(contracts) if contract.class_names), None)
    _check_class_counts(contracts, names)
    if leader is None:
        return None, (None,) * len(contracts)
    order = contracts[leader].class_names or ()
    gathers: list[tuple[int, ...] | None] = []
    for contract, name in zip(contracts, names, strict=True):
        own = contract.class_names
        if own is None or own == order:
            gathers.append(None)
            continue
        strangers = sorted(set(own) ^ set(order))
        if strangers:
            raise FusionError(
                f"{names[leader]} and {name} name different classes ({', '.join(strangers[:5])}): "
                "export them again with the same class names"
            )
        gathers.append(tuple(own.index(class_name) for class_name in order))
    return order, tuple(gathers)


def _check_class_counts(contracts: Sequence[Contract], names: Sequence[str]) -> None:
    counts = [(contract.class_count, name) for contract, name in zip(contracts, names, strict=True)]
    known = [(count, name) for count, name in counts if count is not None]
    for count, name in known[1:]:
        if count != known[0][0]:
            raise FusionError(
                f"{known[0][1]} has {known[0][0]} classes but {name} has {count}: only models of the same classes can be fused"
            )


def unify_output_shape(contracts: Sequence[Contract], names: Sequence[str]) -> tuple[Dim, ...]:
    """Return the shape of the fused output.

    Raises:
        FusionError: members' outputs differ in rank or in a fixed dimension.
    """
    shape = contracts[0].output.shape
    for contract, name in zip(contracts[1:], names[1:], strict=True):
        both = f"{names[0]} gives {contracts[0].output.describe()} but {name} gives {contract.output.describe()}"
        if len(shape) != len(contract.output.shape):
            raise FusionError(f"{both}: only outputs of one shape can be fused")
        shape = tuple(_unify_dim(a, b, both) for a, b in zip(shape, contract.output.shape, strict=True))
    for contract, name in zip(contracts, names, strict=True):
        if contract.output.dtype not in _FLOATS:
            raise FusionError(f"{name} gives {contract.output.describe()}: only float outputs can be fused")
    return shape
