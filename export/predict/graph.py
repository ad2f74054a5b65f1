"""The graph that an execution provider is shown, as plain nodes for rules to look at.

ONNX Runtime asks its providers what they take after its basic optimisations, and before any fusion of its own. So that is
the graph that rules are put to: ONNX Runtime itself writes it, with the free dimensions of the inputs fixed or left free.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data

from monograph.models.onnx_lazy import load_proto
from monograph.runtime.session import save_optimised

Shape = tuple[int | None, ...]
"""None for a free dimension."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of a node."""

    name: str
    dtype: int
    """``onnx.TensorProto.DataType``; 0 where it is not known."""
    shape: Shape | None
    """None where not even the rank is known."""
    is_constant: bool = False
    value: npt.NDArray[Any] | None = field(default=None, compare=False)
    """Of a small constant."""


@dataclass(frozen=True)
class Node:
    """A node with what rules look at."""

    name: str
    op_type: str
    domain: str
    """Empty for ONNX's own."""
    since_version: int
    """The version of the operator: the opset that last changed it, up to the model's."""
    inputs: tuple[Tensor | None, ...]
    """None for an optional one that is not given."""
    outputs: tuple[Tensor, ...]
    attributes: Mapping[str, Any]
    scope: str = ""
    """The branch or body that it stands in, ``NODE/then_branch``; empty in the graph itself."""
    captured: frozenset[str] = frozenset()
    """Names that its branches use, whether their own or of the graph around them."""

    @property
    def operator(self) -> str:
        """Its operator with the domain, as ONNX Runtime's lists write it."""
        return f"{self.domain}:{self.op_type}" if self.domain else self.op_type

    def input(self, position: int) -> Tensor | None:
        """Return an input, or None where it is not given."""
        return self.inputs[position] if position < len(self.inputs) else None


@dataclass(frozen=True)
class Shown:
    """The graph that a provider is shown."""

    nodes: tuple[Node, ...]
    """In topological order; what stands in branches follows its node."""
    proto: onnx.ModelProto
    """The same, every node with a name of its own; larger weights are left out."""


def free_dimensions(path: Path, batch_size: int, sequence_length: int) -> dict[str, int]:
    """Return the sizes to fix a model's free input dimensions to: the first axis to ``batch_size``, others to the latter."""
    sizes: dict[str, int] = {}
    for value in load_proto(path).graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param:
                sizes.setdefault(dim.dim_param, batch_size if axis == 0 else sequence_length)
    return sizes


def show(path: Path, dimensions: Mapping[str, int]) -> Shown:
    """Return the graph that ONNX Runtime would show to a provider.

    Raises:
        SourceError: ONNX Runtime cannot load the model, or the model cannot have these dimensions.
    """
    with tempfile.TemporaryDirectory(prefix="monograph-predict-") as folder:
        written = Path(folder) / "shown.onnx"
        save_optimised(path, written, dimensions)
        proto = onnx.load(str(written), load_external_data=False)
    # ONNX Runtime knows all shapes, and writes only those that the file had.
    proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    _name_nodes(proto.graph, set())
    opsets = {entry.domain if entry.domain != "ai.onnx" else "": entry.version for entry in proto.opset_import}
    return Shown(tuple(_read_graph(proto.graph, opsets, {}, "")), proto)


def _name_nodes(graph: onnx.GraphProto, taken: set[str]) -> None:
    for node in graph.node:
        name, count = node.name or node.op_type, 1
        while name in taken:
            count += 1
            name = f"{node.name or node.op_type}_{count}"
        node.name = name
        taken.add(name)
        for _, subgraph in _subgraphs(node):
            _name_nodes(subgraph, taken)


def _subgraphs(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """Yield the graphs of a node with what they are to it: ``then_branch``, ``body``."""
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            yield attribute.name, graph


def _used_names(node: onnx.NodeProto) -> Iterator[str]:
    for _, subgraph in _subgraphs(node):
        for inner in subgraph.node:
            yield from inner.input
            yield from _used_names(inner)
        yield from (output.name for output in subgraph.output)


def _read_graph(graph: onnx.GraphProto, opsets: Mapping[str, int], outer: Mapping[str, Tensor], scope: str) -> Iterator[Node]:
    known = dict(outer)
    for value in (*graph.input, *graph.value_info, *graph.output):
        known[value.name] = _read_value(value)
    for tensor in graph.initializer:
        known[tensor.name] = _read_constant(tensor)

    def named(name: str) -> Tensor:
        return known.get(name, Tensor(name, 0, None))

    for node in graph.node:
        yield Node(
            name=node.name,
            op_type=node.op_type,
            domain="" if node.domain == "ai.onnx" else node.domain,
            since_version=_since_version(node, opsets),
            inputs=tuple(named(name) if name else None for name in node.input),
            outputs=tuple(named(name) for name in node.output if name),
            attributes={entry.name: _attribute(entry) for entry in node.attribute if not (entry.HasField("g") or entry.graphs)},
            scope=scope,
            captured=frozenset(_used_names(node)),
        )
        for branch, subgraph in _subgraphs(node):
            yield from _read_graph(subgraph, opsets, known, f"{node.name}/{branch}")


def _read_value(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return Tensor(value.name, kind.elem_type, None)
    return Tensor(
        value.name, kind.elem_type, tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    )


def _read_constant(tensor: onnx.TensorProto) -> Tensor:
    value = None if uses_external_data(tensor) else numpy_helper.to_array(tensor)
    return Tensor(tensor.name, tensor.data_type, tuple(tensor.dims), is_constant=True, value=value)


def _since_version(node: onnx.NodeProto, opsets: Mapping[str, int]) -> int:
    domain = "" if node.domain == "ai.onnx" else node.domain
    version = opsets.get(domain, 1)
    if onnx.defs.has(node.op_type, version, domain):
        return int(onnx.defs.get_schema(node.op_type, version, domain).since_version)
    return 1  # an operator of another domain, which onnx does not know


def _attribute(entry: onnx.AttributeProto) -> Any:
    """Return its value: a number, a text, or a tuple of such."""
    value = onnx.helper.get_attribute_value(entry)
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return tuple(value) if entry.type in _LISTS else value


_LISTS = (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS, onnx.AttributeProto.STRINGS)
