"""How counterparts of several members lie in one tensor, and how to get from one way of lying to another.

Shape letters: ``m`` members, ``b`` batch, ``c`` channels or columns of one member.

*Joined* along an axis, the members' values stand side by side: ``[b, m·c, …]``, as a grouped Conv takes them. *Stacked*,
they have an axis of their own before all others: ``[m, b, …]``, as a batched MatMul takes them. A shared value has no member
axis at all, and broadcasts against either where shapes allow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from monograph.export.fusion.horizontal.find import Counterparts
from monograph.export.fusion.sharing.provenance import MEMBERS_KEY

Array = npt.NDArray[Any]
STACKED = None
"""The member axis of values that are stacked."""


class CannotBatchError(Exception):
    """A group stays apart: its shapes are not known well enough, or its operator mixes what lies side by side."""


@dataclass(frozen=True)
class Shared:
    """One value that all members read."""

    value: ir.Value

    @property
    def sample(self) -> ir.Value:
        """A value that tells one member's shape."""
        return self.value


@dataclass(frozen=True)
class Weights:
    """Initializers, one a member."""

    values: tuple[ir.Value, ...]

    @property
    def sample(self) -> ir.Value:
        """A value that tells one member's shape."""
        return self.values[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of each of them."""
        return shape_of_weight(self.values[0])


@dataclass(frozen=True)
class Apart:
    """Values that each member computes for itself."""

    values: tuple[ir.Value, ...]

    @property
    def sample(self) -> ir.Value:
        """A value that tells one member's shape."""
        return self.values[0]


@dataclass(frozen=True)
class Batched:
    """One value that holds those of all members: joined along ``axis``, or STACKED."""

    value: ir.Value
    axis: int | None
    values: tuple[ir.Value, ...]
    """The members' own, which it stands for."""

    @property
    def sample(self) -> ir.Value:
        """A value that tells one member's shape."""
        return self.values[0]


Operand = Shared | Weights | Apart | Batched


def rank_of(operand: Operand) -> int:
    """Return the number of axes of one member's value.

    Raises:
        CannotBatchError: it is not known.
    """
    shape = operand.sample.shape
    if shape is None:
        raise CannotBatchError
    return len(shape)


def dim_of(operand: Operand, axis: int) -> int | None:
    """Return the size of one member's value along ``axis``; None where it is known only at run time."""
    size = operand.sample.shape[axis] if operand.sample.shape is not None else None
    return size if isinstance(size, int) else None


def static_dim(operand: Operand, axis: int) -> int:
    """Return the size of one member's value along ``axis``.

    Raises:
        CannotBatchError: it is known only at run time.
    """
    size = dim_of(operand, axis)
    if size is None:
        raise CannotBatchError
    return size


def shape_of_weight(value: ir.Value) -> tuple[int, ...]:
    """Return the shape of an initializer."""
    assert value.const_value is not None
    return tuple(value.const_value.shape.numpy())


def is_weight(value: ir.Value | None) -> bool:
    """True for an initializer that nobody can feed."""
    return value is not None and value.const_value is not None and value.producer() is None and not value.is_graph_input()


class Batch:
    """The batched graph while it is written: new nodes in order, new weights, and what stands for which counterparts."""

    def __init__(self, graph: ir.Graph, members: Sequence[str]) -> None:
        self.graph = graph
        self.member_count = len(members)
        self.nodes: list[ir.Node] = []
        self._members = ",".join(members)
        self._known: dict[tuple[int, ...], Operand] = {}
        self._constants: dict[tuple[tuple[int, ...], bool], ir.Value] = {}
        self._forms: dict[tuple[object, ...], ir.Value] = {}

    @property
    def opset(self) -> int:
        """Of ONNX's own operators."""
        return self.graph.opset_imports[""]

    def read(self, values: Counterparts) -> Operand | None:
        """Return how ``values`` lie; None for an input that is left out."""
        given = tuple(value for value in values if value is not None)
        if not given:
            return None
        key = tuple(id(value) for value in given)
        if key in self._known:
            return self._known[key]
        if all(value is given[0] for value in given):
            return Shared(given[0])
        return Weights(given) if all(is_weight(value) for value in given) else Apart(given)

    def know(self, values: Sequence[ir.Value], operand: Operand) -> None:
        """Keep in mind that ``operand`` stands for ``values``."""
        self._known[tuple(id(value) for value in values)] = operand

    def node(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any] | None = None, outputs: int = 1
    ) -> ir.Node:
        """Emit a node that serves all members."""
        name = f"fusion/batched/{op_type}_{len(self.nodes)}"
        node = ir.node(op_type, list(inputs), dict(attributes or {}), num_outputs=outputs, name=name)
        node.metadata_props[MEMBERS_KEY] = self._members
        for position, value in enumerate(node.outputs):
            value.name = f"{name}_output" if outputs == 1 else f"{name}_output_{position}"
        self.nodes.append(node)
        return node

    def op(self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any] | None = None) -> ir.Value:
        """Emit a node of one output, and return that."""
        return self.node(op_type, inputs, attributes).outputs[0]

    def integers(self, numbers: Sequence[int]) -> ir.Value:
        """Return a constant ``int64 [n]``."""
        return self._integer(np.array(numbers, np.int64))

    def integer(self, number: int) -> ir.Value:
        """Return a constant ``int64 []``."""
        return self._integer(np.array(number, np.int64))

    def shape_of_all(self, shape: ir.Value) -> ir.Value:
        """Return the shape of stacked values, given that of one member's ``int64 [rank]``."""
        if is_weight(shape) and shape.const_value is not None:
            return self.integers([self.member_count, *map(int, shape.const_value.numpy())])
        members = self.integers([self.member_count])
        return self._once(("shape", id(shape)), lambda: self.op("Concat", [members, shape], {"axis": 0}))

    def tensor(self, array: Array, name: str) -> ir.Value:
        """Return a constant."""
        return self._register(ir.tensor(array), f"fusion/batched/{name}")

    def _integer(self, array: Array) -> ir.Value:
        key = (tuple(int(number) for number in array.reshape(-1)), array.ndim == 0)
        if key not in self._constants:
            self._constants[key] = self._register(ir.tensor(array), f"fusion/batched/integers_{len(self._constants)}")
        return self._constants[key]

    def _register(self, tensor: ir.TensorProtocol, name: str) -> ir.Value:
        number, full = 2, name
        while full in self.graph.initializers:
            full, number = f"{name}_{number}", number + 1
        value = ir.Value(name=full, const_value=tensor, type=ir.TensorType(tensor.dtype))
        value.shape = ir.Shape(tensor.shape.numpy())
        self.graph.register_initializer(value)
        return value

    def batch_weights(
        self,
        weights: Shared | Weights,
        axis: int | None,
        *,
        shape: Sequence[int] | None = None,
        prepare: Callable[[Array], Array] = lambda array: array,
    ) -> ir.Value:
        """Join or stack weights, each brought to ``shape`` by ``prepare`` and, where sizes are 1, by broadcasting.

        They are put together when they are read, so that no more of them than needed is in memory.
        """
        values = weights.values if isinstance(weights, Weights) else (weights.value,) * self.member_count
        tensors = [value.const_value for value in values if value.const_value is not None]
        each = tuple(shape_of_weight(values[0]) if shape is None else shape)
        joined = [self.member_count, *each]
        if axis is not None:
            joined = list(each)
            joined[axis] *= self.member_count
        dtype = tensors[0].dtype

        def put_together() -> ir.TensorProtocol:
            arrays = [np.broadcast_to(prepare(tensor.numpy()), each) for tensor in tensors]
            return ir.tensor(np.stack(arrays) if axis is None else np.concatenate(arrays, axis), dtype)

        tensor = ir.LazyTensor(put_together, dtype, ir.Shape(joined))
        value = self._register(tensor, f"fusion/batched/{values[0].name}")
        value.metadata_props[MEMBERS_KEY] = self._members
        return value

    def stacked(self, operand: Operand, rank: int | None = None, *, repeat: bool = False) -> ir.Value:
        """Return ``[m, …]`` with ``rank`` axes a member, ones before its own.

        A shared value is left to broadcasting, unless it is to be repeated.

        Raises:
            CannotBatchError: a rank is not known.
        """
        if isinstance(operand, Shared):
            return self._repeated(operand, rank) if repeat else operand.value
        if isinstance(operand, Weights):
            shape = (1,) * ((rank or 0) - len(operand.shape)) + operand.shape
            return self.batch_weights(operand, STACKED, shape=shape, prepare=lambda array: array.reshape(shape))
        value = self._once(("stack", *_key(operand)), lambda: self._stack(operand))
        missing = 0 if rank is None else rank - rank_of(operand)
        if missing == 0:
            return value
        axes = self.integers(range(1, 1 + missing))
        return self._once(("unsqueeze", id(value), rank), lambda: self.op("Unsqueeze", [value, axes]))

    def _repeated(self, operand: Shared, rank: int | None) -> ir.Value:
        if is_weight(operand.value):
            return self.stacked(Weights((operand.value,) * self.member_count), rank)
        return self.stacked(Apart((operand.value,) * self.member_count), rank)

    def _stack(self, operand: Apart | Batched) -> ir.Value:
        if isinstance(operand, Apart):
            return self.op("Concat", [self._with_member_axis(value) for value in operand.values], {"axis": 0})
        if operand.axis is STACKED:
            return operand.value
        rank, axis = rank_of(operand), operand.axis
        sizes = self._sizes(operand)
        if sizes is None:
            return self._stack(Apart(self.take_apart(operand)))
        parted = self.op("Reshape", [operand.value, self.integers([*sizes[:axis], self.member_count, *sizes[axis:]])])
        others = [position for position in range(rank + 1) if position != axis]
        return self.op("Transpose", [parted], {"perm": [axis, *others]})

    def _with_member_axis(self, value: ir.Value) -> ir.Value:
        return self._once(("unsqueeze", id(value)), lambda: self.op("Unsqueeze", [value, self.integers([0])]))

    def _sizes(self, operand: Operand) -> list[int] | None:
        """Return one member's sizes for a Reshape, in which one may be -1; None where more are known only at run time.

        Sizes of leading axes may be 0, which copies: they stand at the same place on both sides.
        """
        axis = operand.axis if isinstance(operand, Batched) and operand.axis is not None else 1
        sizes = []
        for position in range(rank_of(operand)):
            known = dim_of(operand, position)
            sizes.append(known if known is not None else 0 if position < axis else -1)
        return sizes if sizes.count(-1) <= 1 and sizes[axis] > 0 else None

    def joined(self, operand: Operand, axis: int) -> ir.Value:
        """Return the members' values side by side along ``axis``.

        Raises:
            CannotBatchError: a rank is not known.
        """
        if axis >= rank_of(operand):
            raise CannotBatchError
        if isinstance(operand, Batched) and operand.axis == axis:
            return operand.value
        if isinstance(operand, Weights) or (isinstance(operand, Shared) and is_weight(operand.value)):
            return self.batch_weights(operand, axis)
        return self._once(("join", axis, *_key(operand)), lambda: self._join(operand, axis))

    def _join(self, operand: Shared | Apart | Batched, axis: int) -> ir.Value:
        if isinstance(operand, Shared):
            return self.op("Concat", [operand.value] * self.member_count, {"axis": axis})
        if isinstance(operand, Apart):
            return self.op("Concat", list(operand.values), {"axis": axis})
        sizes = self._sizes(Apart(operand.values)) if operand.axis is STACKED and axis == 1 else None
        if sizes is None:
            return self.op("Concat", list(self.take_apart(operand)), {"axis": axis})
        rank = rank_of(operand)
        merged = [sizes[0], sizes[1] * self.member_count, *sizes[2:]]
        turned = self.op("Transpose", [operand.value], {"perm": [1, 0, *range(2, rank + 1)]})
        # The last sizes stand one axis further on before the Reshape, so none of them can be copied by 0.
        return self.op("Reshape", [turned, self.integers(merged)])

    def take_apart(self, operand: Batched) -> tuple[ir.Value, ...]:
        """Return each member's value by itself.

        Raises:
            CannotBatchError: it is joined along an axis of unknown size.
        """
        key = ("apart", id(operand.value), 0)
        if key not in self._forms:
            parts = self._take_apart(operand)
            for position, part in enumerate(parts):
                part.type, part.shape = operand.values[position].type, operand.values[position].shape
                self._forms["apart", id(operand.value), position] = part
        return tuple(self._forms["apart", id(operand.value), position] for position in range(self.member_count))

    def _take_apart(self, operand: Batched) -> list[ir.Value]:
        if operand.axis is STACKED:
            return [
                self.op("Gather", [operand.value, self.integer(position)], {"axis": 0}) for position in range(self.member_count)
            ]
        sizes = self.integers([static_dim(operand, operand.axis)] * self.member_count)
        return list(self.node("Split", [operand.value, sizes], {"axis": operand.axis}, outputs=self.member_count).outputs)

    def _once(self, key: tuple[object, ...], emit: Callable[[], ir.Value]) -> ir.Value:
        if key not in self._forms:
            self._forms[key] = emit()
        return self._forms[key]


def _key(operand: Shared | Apart | Batched) -> tuple[object, ...]:
    values = operand.values if isinstance(operand, Apart) else (operand.value,)
    return (type(operand).__name__, *(id(value) for value in values))
