"""Quantised operators written as three: DequantizeLinear, the operator on floats, QuantizeLinear.

Providers that know 8-bit kernels take the three as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from monograph.export.predict.graph import Node, Tensor
from monograph.export.predict.rules import constant_numbers

_QUANTISE, _DEQUANTISE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class QuantisedNode:
    """One operator between DequantizeLinear and QuantizeLinear."""

    node: Node
    """The operator with the quantised tensors in place of the dequantised; its result's scale and zero point as attributes."""
    parts: tuple[str, ...]
    """Names of the three and more nodes that it is written as."""
    has_constant_scales: bool


def quantised_nodes(nodes: Sequence[Node]) -> list[QuantisedNode]:
    """Return the operators whose tensors all come from a DequantizeLinear and all go to one QuantizeLinear."""
    maker = {output.name: node for node in nodes for output in node.outputs}
    users: dict[str, list[Node]] = {}
    for node in nodes:
        for tensor in node.inputs:
            if tensor is not None:
                users.setdefault(tensor.name, []).append(node)
    found = [_quantised(node, maker, users) for node in nodes if node.op_type not in (_QUANTISE, _DEQUANTISE)]
    return [one for one in found if one is not None]


def _quantised(node: Node, maker: dict[str, Node], users: dict[str, list[Node]]) -> QuantisedNode | None:
    before = {
        position: source
        for position, tensor in enumerate(node.inputs)
        if tensor is not None and (source := maker.get(tensor.name)) is not None and source.op_type == _DEQUANTISE
    }
    after = users.get(node.outputs[0].name, []) if len(node.outputs) == 1 else []
    if 0 not in before or len(after) != 1 or after[0].op_type != _QUANTISE:
        return None
    # What is neither dequantised nor constant is a float among quantised tensors, such as an int32 bias is not.
    if any(t is not None and not t.is_constant and position not in before for position, t in enumerate(node.inputs)):
        return None
    inputs: list[Tensor | None] = [before[p].input(0) if p in before else tensor for p, tensor in enumerate(node.inputs)]
    scale, zero = constant_numbers(after[0].input(1)), constant_numbers(after[0].input(2))
    attributes = {**node.attributes, "output_scale": scale[0] if scale else None, "output_zero_point": zero[0] if zero else 0}
    parts = [*before.values(), after[0]]
    return QuantisedNode(
        replace(node, inputs=tuple(inputs), outputs=after[0].outputs, attributes=attributes),
        (node.name, *(part.name for part in parts)),
        all(tensor.is_constant for part in parts for tensor in part.inputs[1:] if tensor is not None),
    )
