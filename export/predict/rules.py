"""Rules on single nodes, to be put together into the rule book of an execution provider.

A rule looks at a node and returns why the node cannot be taken, or None. What is not known (a shape, a type) cannot be taken:
providers decide before they run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto

from monograph.export.predict.graph import Node, Tensor

Rule = Callable[[Node], str | None]
FLOAT, FLOAT16 = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)
INT32, INT64, BOOL = int(TensorProto.INT32), int(TensorProto.INT64), int(TensorProto.BOOL)
UINT8, INT8 = int(TensorProto.UINT8), int(TensorProto.INT8)


@dataclass(frozen=True)
class RuleBook:
    """What one execution provider takes."""

    title: str
    """The provider, its format where it has several, and whose lists."""
    provider: str
    operators: Mapping[str, tuple[Rule, ...]]
    """Operators that it knows, each with its rules."""
    sources: tuple[str, ...]
    """Where the operators and rules are written down."""
    general: tuple[Rule, ...] = ()
    """Rules that hold for every operator."""
    quantised: Mapping[str, tuple[Rule, ...]] | None = None
    """Operators that it takes between DequantizeLinear and QuantizeLinear as one; None where it judges the three apart.

    The rules see the operator with the quantised tensors in place of the dequantised ones."""
    fused_activations: frozenset[str] = frozenset()
    """Activations that it takes where they follow one of ``fusing`` that it takes."""
    fusing: frozenset[str] = frozenset()
    enters_branches: bool = False
    """Whether it is asked about the nodes in the branches of an If."""
    not_alone: frozenset[str] = frozenset()
    """Operators that only move data: a part of the graph with nothing but one of them is left to the processor."""
    notes: tuple[str, ...] = field(default=())
    """What a reader has to know of the assumptions."""

    @property
    def name(self) -> str:
        """The provider and its format, for people."""
        return self.title.partition(",")[0]

    def judge(self, node: Node) -> str | None:
        """Return why ``node`` cannot be taken, or None."""
        rules = self.operators.get(node.operator)
        if rules is None:
            return f"{self.name} has no {node.operator}"
        return first_reason(node, (*self.general, *rules))


def first_reason(node: Node, rules: tuple[Rule, ...]) -> str | None:
    """Return the reason of the first rule that refuses ``node``."""
    return next((reason for rule in rules if (reason := rule(node)) is not None), None)


def attribute(name: str, *allowed: Any, default: Any) -> Rule:
    """Take only these values of an attribute."""

    def rule(node: Node) -> str | None:
        value = node.attributes.get(name, default)
        return None if value in allowed else f"{name} is {value}, it takes {' or '.join(map(str, allowed))}"

    return rule


def constant(*positions: int) -> Rule:
    """Take only constants as these inputs, where they are given."""

    def rule(node: Node) -> str | None:
        given = [(position, tensor) for position in positions if (tensor := node.input(position)) is not None]
        return next((f"input {position} is not a constant" for position, tensor in given if not tensor.is_constant), None)

    return rule


def rank(position: int, *allowed: int) -> Rule:
    """Take only these ranks of an input, where it is given."""

    def rule(node: Node) -> str | None:
        tensor = node.input(position)
        if tensor is None:
            return None
        if tensor.shape is None:
            return f"the rank of input {position} is not known"
        return (
            None if len(tensor.shape) in allowed else f"input {position} has rank {len(tensor.shape)}, it takes {_range(allowed)}"
        )

    return rule


def dtype(position: int, *allowed: int) -> Rule:
    """Take only these element types of an input, where it is given."""

    def rule(node: Node) -> str | None:
        tensor = node.input(position)
        if tensor is None or tensor.dtype in allowed:
            return None
        return f"input {position} is {_dtype_name(tensor.dtype)}, it takes {' or '.join(map(_dtype_name, allowed))}"

    return rule


def output_dtype(*allowed: int) -> Rule:
    """Take only these element types of the first output."""

    def rule(node: Node) -> str | None:
        got = node.outputs[0].dtype
        return None if got in allowed else f"gives {_dtype_name(got)}, it takes {' or '.join(map(_dtype_name, allowed))}"

    return rule


def known_axes(position: int, *axes: int) -> Rule:
    """Take an input only where these axes have a fixed size."""

    def rule(node: Node) -> str | None:
        tensor = node.input(position)
        shape = None if tensor is None else tensor.shape
        if shape is None:
            return f"the shape of input {position} is not known"
        free = [axis for axis in axes if axis < len(shape) and shape[axis] is None]
        return f"axis {free[0]} of input {position} is free" if free else None

    return rule


def static_inputs(node: Node) -> str | None:
    """Take only inputs whose shape is fixed."""
    for position, tensor in enumerate(node.inputs):
        if tensor is None:
            continue
        if tensor.shape is None:
            return f"the shape of input {position} is not known"
        if None in tensor.shape:
            return f"axis {tensor.shape.index(None)} of input {position} is free"
    return None


def ranks_up_to(largest: int) -> Rule:
    """Take only inputs of known rank, up to ``largest``."""

    def rule(node: Node) -> str | None:
        for position, tensor in enumerate(node.inputs):
            if tensor is not None and tensor.shape is None:
                return f"the rank of input {position} is not known"
            if tensor is not None and tensor.shape is not None and len(tensor.shape) > largest:
                return f"input {position} has rank {len(tensor.shape)}, it takes up to {largest}"
        return None

    return rule


def one_output(node: Node) -> str | None:
    """Take only the first output."""
    return None if len(node.outputs) == 1 else f"gives {len(node.outputs)} outputs, it takes 1"


def since(first: int, last: int | None = None) -> Rule:
    """Take only these versions of the operator."""

    def rule(node: Node) -> str | None:
        version = node.since_version
        if version < first or (last is not None and version > last):
            wanted = f"{first} and later" if last is None else f"{first} to {last}"
            return f"is {node.op_type}-{version}, it takes versions {wanted}"
        return None

    return rule


def window_2d(node: Node) -> str | None:
    """Take only windows over two axes."""
    kernel = node.attributes.get("kernel_shape", (1, 1))
    return None if len(kernel) == 2 else f"a window over {len(kernel)} axes, it takes 2"


def ones(name: str) -> Rule:
    """Take an attribute only where it holds nothing but ones, or is not there."""

    def rule(node: Node) -> str | None:
        value = node.attributes.get(name, ())
        return None if all(item == 1 for item in value) else f"{name} is {list(value)}, it takes ones"

    return rule


def constant_numbers(tensor: Tensor | None) -> list[float] | None:
    """Return the numbers of a small constant, or None."""
    return None if tensor is None or tensor.value is None else [float(number) for number in np.ravel(tensor.value)]


def _range(ranks: tuple[int, ...]) -> str:
    return " or ".join(map(str, ranks))


def _dtype_name(code: int) -> str:
    return "of unknown type" if code == 0 else str(TensorProto.DataType.Name(code)).lower()
