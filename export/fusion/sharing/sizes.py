"""Where the sizes of values come from: each axis followed back, through the operators, to an input or to a number.

What value infos claim is not read, only what operators do to the inputs of the graph and to constants. ONNX's own shape
inference gives up at a size that was read at run time and put together again, which is what exporters of transformers write.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from monograph.export.fusion.sharing.shape_values import PARTS, whole_numbers
from monograph.export.fusion.sharing.size_rules import RANK_RULES, SIZE_RULES

Origin = tuple[ir.Value, int]
"""An input of the graph and an axis of it."""
Size = Origin | int
Parts = list[Size | None]
"""What a shape ``int64 [rank]`` is put together from; None for a number that is not known."""
_MAX_DEPTH = 200
"""A long chain of layers is told from its start on, since what was found is kept; this bounds one step of it."""


class Sizes:
    """The sizes of the values of one graph, and for each shape that is needed at run time the one value that holds it."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._vectors: dict[tuple[Size, ...], ir.Value] = {}
        self._parts: dict[ir.Value, Parts | None] = {}
        self._head: ir.Node | None = None
        self._taken = {value.name for node in graph.all_nodes() for value in node.outputs} | set(graph.initializers)
        self._first: dict[str, Origin] = {}
        for value in graph.inputs:
            for axis, dim in enumerate(value.shape or ()):
                if isinstance(dim, ir.SymbolicDim) and dim.value:
                    self._first.setdefault(dim.value, (value, axis))
        self._sizes: dict[tuple[ir.Value, int], Size | None] = {}
        self._ranks: dict[ir.Value, int | None] = {}
        for node in graph:  # in order, so that no question goes further back than one node
            for value in node.outputs:
                for axis in range(self.rank(value) or 0):
                    self.size(value, axis)

    def vector(self, parts: Sequence[Size]) -> ir.Value:
        """Return the value ``int64 [n]`` that holds ``parts``: a constant, or nodes at the head of the graph, made once."""
        key = tuple(parts)
        if key not in self._vectors:
            self._vectors[key] = self._emit_vector(key)
            self._parts[self._vectors[key]] = list(parts)
        return self._vectors[key]

    def _emit_vector(self, parts: tuple[Size, ...]) -> ir.Value:
        if all(isinstance(part, int) for part in parts):
            name = self._free_name("fusion/shape")
            tensor = ir.tensor(np.array(parts, np.int64), name=name)
            value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([len(parts)]))
            self.graph.register_initializer(value)
            return value
        if len(parts) == 1:
            source, axis = parts[0]  # type: ignore[misc]  # the one part is no number
            name = self._free_name(f"fusion/size/{source.name}/{axis}")
            node = ir.node("Shape", [source], {"start": axis, "end": axis + 1}, name=name)
        else:
            node = ir.node("Concat", [self.vector([part]) for part in parts], {"axis": 0}, name=self._free_name("fusion/shape"))
        out = node.outputs[0]
        out.name, out.shape, out.type = node.name, ir.Shape([len(parts)]), ir.TensorType(ir.DataType.INT64)
        if self._head is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(self._head, node)
        self._head = node
        return out

    def _free_name(self, stem: str) -> str:
        name, number = stem, 2
        while name in self._taken:
            name, number = f"{stem}_{number}", number + 1
        self._taken.add(name)
        return name

    def size(self, value: ir.Value | None, axis: int, depth: int = 0) -> Size | None:
        """Return the size of ``value`` along ``axis``: of an input, or a number; None where that cannot be told."""
        if value is None or axis < 0 or depth > _MAX_DEPTH:
            return None
        if value.const_value is not None and not value.is_graph_input():
            shape = value.const_value.shape
            return int(shape[axis]) if axis < len(shape) else None  # type: ignore[arg-type]
        if (value, axis) not in self._sizes:
            self._sizes[value, axis] = self._trace(value, axis, depth + 1)
        return self._sizes[value, axis]

    def rank(self, value: ir.Value | None, depth: int = 0) -> int | None:
        """Return the number of axes; None where it cannot be told."""
        if value is None or depth > _MAX_DEPTH:
            return None
        if value.const_value is not None:
            return len(value.const_value.shape)
        if value not in self._ranks:
            self._ranks[value] = self._trace_rank(value, depth + 1)
        return self._ranks[value]

    def parts(self, value: ir.Value | None) -> Parts | None:
        """Return what an ``int64`` vector or number is put together from; None where not even its length is known."""
        if value is None:
            return None
        if (numbers := whole_numbers(value)) is not None:
            return list(numbers)
        if value not in self._parts:
            node = value.producer()
            handler = PARTS.get(node.op_type) if node is not None and node.domain == "" else None
            self._parts[value] = handler(self, node) if handler and node is not None else None
        return self._parts[value]

    def known_parts(self, value: ir.Value | None) -> list[Size] | None:
        """Return the parts where all of them are known."""
        parts = self.parts(value)
        return None if parts is None or None in parts else [part for part in parts if part is not None]

    def _trace(self, value: ir.Value, axis: int, depth: int) -> Size | None:
        if value.is_graph_input():
            dims = value.shape or ()
            dim = dims[axis] if axis < len(dims) else None
            if isinstance(dim, int):
                return dim
            return self._first.get(dim.value) if isinstance(dim, ir.SymbolicDim) and dim.value else None
        node = value.producer()
        rule = SIZE_RULES.get(node.op_type) if node is not None and node.domain == "" and value.index() == 0 else None
        return rule(self, node, axis, depth) if rule and node is not None else None

    def _trace_rank(self, value: ir.Value, depth: int) -> int | None:
        claimed = None if value.shape is None else len(value.shape)
        node = value.producer()
        rule = RANK_RULES.get(node.op_type) if node is not None and node.domain == "" else None
        found = rule(self, node, depth) if rule and node is not None else None
        return claimed if found is None else found
