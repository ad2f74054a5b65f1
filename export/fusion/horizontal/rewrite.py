"""The fused graph with members of one architecture run as one: grouped Conv, batched MatMul, everything else once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from monograph.errors import HorizontalError
from monograph.export.fusion.horizontal.call import Call
from monograph.export.fusion.horizontal.find import Difference, Group, find_counterparts
from monograph.export.fusion.horizontal.layouts import STACKED, Batch, Batched, CannotBatchError, Operand, Shared, static_dim
from monograph.export.fusion.horizontal.operators import OPERATORS
from monograph.export.fusion.sharing.numbering import node_key

_META_KEY = "monograph.batching"
"""In memory only; nothing of it is written."""
Tap = tuple[ir.Node, int]
"""A node of the fusion's own and the input at which it reads a member's output: it stays so while sharing moves the rest."""


@dataclass(frozen=True)
class Batching:
    """What was batched."""

    members: tuple[str, ...]
    groups: int
    """Nodes that correspond, counted once for all members."""
    groups_batched: int
    nodes_before: int
    """Of the whole graph."""
    nodes_after: int

    def describe(self) -> str:
        """Return one clause for people."""
        return (
            f"{self.groups_batched} of {self.groups} nodes of each of {len(self.members)} members run as one, "
            f"{self.nodes_before} to {self.nodes_after} nodes"
        )


def batch_members(model: ir.Model, taps: Sequence[Tap], names: Sequence[str]) -> Batching:
    """Rewrite ``model``, which sharing has been through, in place: what corresponds in all members runs once.

    Counterparts become one node where its operator allows (see ``operators.py``), with the members' weights put together;
    the others stay apart, and what was batched is split before them. Numbers change by rounding alone.

    Raises:
        HorizontalError: members are not of one architecture, with the first node that differs, or have nothing to batch.
    """
    outputs, names = _distinct_outputs(taps, names)
    if len(outputs) < 2:
        raise HorizontalError("sharing has made one of the members already: nothing is left to batch, so leave out --horizontal")
    groups = find_counterparts(outputs)
    if isinstance(groups, Difference):
        raise HorizontalError(
            f"{', '.join(names)} are not of one architecture and cannot run as one batch ({groups.describe()}): "
            "--horizontal off runs them apart"
        )
    nodes_before = _node_count(model)
    _infer_shapes(model)
    batch = Batch(model.graph, names)
    batched = [group for group in groups if _run_as_one(group, batch)]
    if not batched:
        raise HorizontalError(f"none of the {len(groups)} nodes of {names[0]} can be batched: --horizontal off runs them apart")
    _hand_over(batched, batch)
    model.graph.extend(batch.nodes)
    model.graph.sort()
    RemoveUnusedNodesPass()(model)
    batching = Batching(tuple(names), len(groups), len(batched), nodes_before, _node_count(model))
    model.meta[_META_KEY] = batching
    return batching


def batching_of(model: ir.Model) -> Batching | None:
    """Return what :func:`batch_members` did to ``model``; None where it was not called."""
    batching = model.meta.get(_META_KEY)
    return batching if isinstance(batching, Batching) else None


def _infer_shapes(model: ir.Model) -> None:
    """Fill in shapes that exporters left out; where that fails, less is known, and more stays apart."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    finally:
        logger.setLevel(level)


def _distinct_outputs(taps: Sequence[Tap], names: Sequence[str]) -> tuple[list[ir.Value], list[str]]:
    """Return the members' outputs; of members that sharing found equal, the first alone."""
    outputs: dict[ir.Value, str] = {}
    for (node, position), name in zip(taps, names, strict=True):
        value = node.inputs[position] if node.graph is not None else None
        if value is not None:
            outputs.setdefault(value, name)
    return list(outputs), list(outputs.values())


def _run_as_one(group: Group, batch: Batch) -> bool:
    """Emit one node for all of ``group``, where that can be; say whether."""
    operands = tuple(batch.read(values) for values in group.inputs)
    try:
        results = _run(Call(group, batch, operands))
    except CannotBatchError:
        return False
    for values, result in zip(group.outputs, results, strict=True):
        batch.know(values, result)
    return True


def _run(call: Call) -> list[Operand]:
    if all(operand is None or isinstance(operand, Shared) for operand in call.operands) and node_key(call.node) is not None:
        # What is read of batched values only to learn their sizes is the same for all members.
        return [Shared(value) for value in _run_shared(call)]
    if call.node.op_type == "Shape" and call.node.domain == "":
        sizes = _read_shape(call)
        sizes.type, sizes.shape = call.node.outputs[0].type, call.node.outputs[0].shape
        return [Shared(sizes)]
    if call.node.domain != "" or call.node.op_type not in OPERATORS:
        raise CannotBatchError
    given = zip(OPERATORS[call.node.op_type](call), call.group.outputs, strict=True)
    results = [Batched(value, axis, values) for (value, axis), values in given]
    for result in results:
        if result.axis is not STACKED:
            static_dim(result, result.axis)  # else nothing could take them apart again
    return list(results)


def _run_shared(call: Call) -> Sequence[ir.Value]:
    inputs = [operand.value if isinstance(operand, Shared) else None for operand in call.operands]
    outputs = call.batch.node(call.node.op_type, inputs, call.node.attributes, outputs=len(call.node.outputs)).outputs
    for value, own in zip(outputs, call.node.outputs, strict=True):
        value.type, value.shape = own.type, own.shape
    return outputs


def _read_shape(call: Call) -> ir.Value:
    """Return one member's shape, read of the batched value."""
    x = call.operand(0)
    if not isinstance(x, Batched) or x.sample.shape is None:
        raise CannotBatchError
    rank = len(x.sample.shape)
    start, end = (min(max(at + rank if at < 0 else at, 0), rank) for at in (call.setting("start", 0), call.setting("end", rank)))
    if x.axis is STACKED:
        return call.batch.op("Shape", [x.value], {"start": start + 1, "end": end + 1})
    sizes = call.batch.op("Shape", [x.value], {"start": start, "end": end})
    if not start <= x.axis < end:
        return sizes
    divisors = [call.batch.member_count if axis == x.axis else 1 for axis in range(start, end)]
    return call.batch.op("Div", [sizes, call.batch.integers(divisors)])


def _hand_over(batched: Sequence[Group], batch: Batch) -> None:
    """Let whatever else reads a member's value read its part of the batched one."""
    replaced = {node for group in batched for node in group.nodes} | set(batch.nodes)
    for group in batched:
        for values in group.outputs:
            readers = {use.node for value in values for use in value.uses()} - replaced
            if not readers:
                continue
            operand = batch.read(values)
            assert isinstance(operand, Shared | Batched)
            parts = [operand.value] * len(values) if isinstance(operand, Shared) else batch.take_apart(operand)
            for value, part in zip(values, parts, strict=True):
                _replace(value, part)


def _replace(value: ir.Value, part: ir.Value) -> None:
    part.type = part.type or value.type
    part.shape = part.shape or value.shape
    value.replace_all_uses_with(part)


def _node_count(model: ir.Model) -> int:
    return sum(1 for _ in model.graph.all_nodes())
