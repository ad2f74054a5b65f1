"""Sizes read at run time, written one way, however an exporter writes them: as the size of an input of the graph.

One exporter reads the batch size of each hidden state anew (Shape, Gather, Unsqueeze, Concat), another once of an input
(Shape with start and end).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from monograph.export.fusion.sharing.sizes import Sizes, whole_numbers


def unify_sizes(model: ir.Model) -> None:
    """Read each size of an input once, whatever hidden state it was read of; two Unsqueezes in a row become one.

    ``Gather(Shape(v), k)`` under an Unsqueeze and ``Shape<start = k, end = k + 1>(v)`` become the size of an input. A
    Reshape loses ``allowzero`` where its shape holds no zero but sizes that its data has on the same axes.
    """
    sizes = Sizes(model.graph)
    for node in list(model.graph):
        if node.domain != "" or any(value.is_graph_output() for value in node.outputs):
            continue
        if isinstance(origin := sizes.size_read(node), tuple):
            node.outputs[0].replace_all_uses_with(sizes.read(origin))
        elif node.op_type == "Reshape" and "allowzero" in node.attributes and _zero_means_copy(node, sizes):
            node.attributes.pop("allowzero")
        elif node.op_type == "Unsqueeze":
            _join_unsqueezes(node, model.graph)


def _zero_means_copy(node: ir.Node, sizes: Sizes) -> bool:
    """True where a zero of the shape could only be the size that the data has on the same axis."""
    parts = sizes.parts(node.inputs[1])
    return parts is not None and all(
        sizes.origin(node.inputs[0], axis) == part if isinstance(part, tuple) else part != 0 for axis, part in enumerate(parts)
    )


def _join_unsqueezes(node: ir.Node, graph: ir.Graph) -> None:
    """Let Unsqueeze(Unsqueeze(x, [a]), [b]) with a < b be Unsqueeze(x, [a, b])."""
    source = node.inputs[0]
    inner = None if source is None else source.producer()
    if inner is None or inner.op_type != "Unsqueeze":
        return
    first, second = whole_numbers(inner.inputs[1]), whole_numbers(node.inputs[1])
    if first is None or second is None or min(first + second) < 0 or max(first) >= min(second):
        return
    axes = np.array(sorted([*first, *second]), np.int64)
    name = f"{node.name}/axes"
    if name in graph.initializers:
        return
    value = ir.Value(name=name, const_value=ir.tensor(axes, name=name), type=ir.TensorType(ir.DataType.INT64))
    value.shape = ir.Shape(axes.shape)
    graph.register_initializer(value)
    node.replace_input_with(0, inner.inputs[0])
    node.replace_input_with(1, value)
