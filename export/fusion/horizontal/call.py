"""A group of nodes about to be run as one, and how its inputs are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from monograph.export.fusion.horizontal.find import Group
from monograph.export.fusion.horizontal.layouts import (
    STACKED,
    Batch,
    Batched,
    CannotBatchError,
    Operand,
    Shared,
    Weights,
    is_weight,
)

Given = tuple[ir.Value, int | None]
"""One output: the value that holds it for all members, and its member axis."""


@dataclass(frozen=True)
class Call:
    """One group of nodes, about to be run as one."""

    group: Group
    batch: Batch
    operands: tuple[Operand | None, ...]

    @property
    def node(self) -> ir.Node:
        """The first member's, from which the others differ in weights only."""
        return self.group.nodes[0]

    def operand(self, position: int) -> Operand:
        """Return an input.

        Raises:
            CannotBatchError: it is left out.
        """
        found = self.operands[position] if position < len(self.operands) else None
        if found is None:
            raise CannotBatchError
        return found

    def optional(self, position: int) -> Operand | None:
        """Return an input, or None where it is left out."""
        return self.operands[position] if position < len(self.operands) else None

    def setting(self, name: str, default: Any) -> Any:
        """Return an attribute."""
        return self.node.attributes[name].value if name in self.node.attributes else default

    def run(self, inputs: Sequence[ir.Value | None], **settings: Any) -> ir.Value:
        """Emit the operator once, with the settings of the members but for ``settings``; those of None are left out."""
        attributes = {name: value for name, value in {**self.node.attributes, **settings}.items() if value is not None}
        return self.batch.op(self.node.op_type, inputs, attributes)

    def rest(self, first: int = 1) -> list[ir.Value | None]:
        """Return the further inputs, which must be shared.

        Raises:
            CannotBatchError: one is not.
        """
        return [None if operand is None else shared_value(operand) for operand in self.operands[first:]]

    def output_rank(self) -> int:
        """Return the number of axes of one member's output.

        Raises:
            CannotBatchError: it is not known.
        """
        shape = self.node.outputs[0].shape
        if shape is None:
            raise CannotBatchError
        return len(shape)


def shared_value(operand: Operand) -> ir.Value:
    """Return the value that all members read.

    Raises:
        CannotBatchError: each reads its own.
    """
    if not isinstance(operand, Shared):
        raise CannotBatchError
    return operand.value


def batched_operand(operand: Operand) -> Batched:
    """Return an operand that is batched already: what is cheap is no reason to put values together.

    Raises:
        CannotBatchError: it is not.
    """
    if not isinstance(operand, Batched):
        raise CannotBatchError
    return operand


def batched_among(operands: Sequence[Operand]) -> list[Batched]:
    """Return those operands that are batched already."""
    return [operand for operand in operands if isinstance(operand, Batched)]


def weights_operand(operand: Operand) -> Shared | Weights:
    """Return an operand that consists of weights, the same ones for all members or not.

    Raises:
        CannotBatchError: it is computed.
    """
    if isinstance(operand, Weights) or (isinstance(operand, Shared) and is_weight(operand.value)):
        return operand
    raise CannotBatchError


def constant_integers(operand: Operand | None) -> list[int]:
    """Return the numbers of a constant that is the same for all members.

    Raises:
        CannotBatchError: it is left out, or no such constant.
    """
    value = None if operand is None else shared_value(operand)
    if value is None or not is_weight(value) or value.const_value is None:
        raise CannotBatchError
    return [int(number) for number in np.atleast_1d(value.const_value.numpy())]


def positive_axis(axis: int, rank: int) -> int:
    """Return ``axis`` counted from the front."""
    return axis + rank if axis < 0 else axis


def without_axes(call: Call, axes: Sequence[int]) -> tuple[ir.Value, int | None]:
    """Return the first input with its member axis, stacked where it was joined along one of ``axes``."""
    x = batched_operand(call.operand(0))
    if x.axis is STACKED or x.axis in axes:
        return call.batch.stacked(x), STACKED
    return x.value, x.axis
