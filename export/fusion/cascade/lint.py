"""Which operators of a member keep it from being run on a part of the rows of a batch.

A heuristic that names suspects: what decides is the proof, which runs the cascade on all, on some and on none of the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from monograph.models.onnx_file import load_graph


@dataclass(frozen=True)
class RowFinding:
    """One operator that does, or may, treat the rows of a batch together."""

    node: str
    op_type: str
    reason: str
    certain: bool

    def describe(self) -> str:
        """Return one clause for people."""
        return f"{self.op_type} {self.node!r} {self.reason}"


_Check = Callable[[ir.Node], str | None]


def lint_rows(path: Path) -> tuple[RowFinding, ...]:
    """Return the operators of the model at ``path`` that mix the rows of a batch, or hold its size."""
    model = load_graph(path)
    InlinePass()(model)
    graph = model.graph
    carrying = set(graph.inputs)
    findings = []
    for node in graph.all_nodes():
        if not any(value in carrying for value in node.inputs if value is not None):
            continue
        # The size of a batch is no row; what is made of it follows the rows that are there.
        if node.op_type not in ("Shape", "Size"):
            carrying.update(node.outputs)
        check = _CHECKS.get(node.op_type)
        reason = check(node) if check and node.domain in ("", "ai.onnx") and node.inputs[0] in carrying else None
        if reason is not None:
            findings.append(RowFinding(node.name or node.outputs[0].name or "", node.op_type, reason, reason is _TRAINING))
    return tuple(findings)


_TRAINING = "normalises by the rows of the batch, in training mode"


def _training_batch_norm(node: ir.Node) -> str | None:
    return _TRAINING if node.attributes.get_int("training_mode", 0) else None


def _axis(node: ir.Node) -> str | None:
    rank = None if node.inputs[0] is None or node.inputs[0].shape is None else len(node.inputs[0].shape)
    axis = node.attributes.get_int("axis", -1)
    works_over_rows = axis == 0 or (rank is not None and axis == -rank)
    return "works over axis 0, across the rows of the batch" if works_over_rows else None


def _reduction(node: ir.Node) -> str | None:
    value = node.inputs[0]
    rank = None if value is None or value.shape is None else len(value.shape)
    axes = _constant(node, 1)
    if axes is None and "axes" in node.attributes:
        axes = tuple(node.attributes["axes"].as_ints())
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        return None  # computed while it runs
    if not axes:
        return None if node.attributes.get_int("noop_with_empty_axes", 0) else "reduces all axes, the rows of the batch too"
    return "reduces axis 0, the rows of the batch" if 0 in axes or (rank is not None and -rank in axes) else None


def _transpose(node: ir.Node) -> str | None:
    perm = tuple(node.attributes["perm"].as_ints()) if "perm" in node.attributes else (-1,)
    return None if perm[0] == 0 else "moves axis 0, the rows of the batch, elsewhere"


def _fixed_first_size(node: ir.Node) -> str | None:
    shape = _constant(node, 1)
    smallest = 2 if node.op_type == "Expand" else 1  # Expand to 1 keeps the rows that are there
    return f"has the batch size {shape[0]} baked in" if shape and shape[0] >= smallest else None


def _constant(node: ir.Node, position: int) -> tuple[int, ...] | None:
    value = node.inputs[position] if len(node.inputs) > position else None
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tuple(int(number) for number in tensor.numpy().ravel())


_REDUCTIONS = ("Max", "Min", "Mean", "Sum", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
_CHECKS: dict[str, _Check] = {
    "BatchNormalization": _training_batch_norm,
    "Softmax": _axis,
    "LogSoftmax": _axis,
    "Hardmax": _axis,
    "Concat": _axis,
    "TopK": _axis,
    "Transpose": _transpose,
    "Reshape": _fixed_first_size,
    "Expand": _fixed_first_size,
    **{f"Reduce{name}": _reduction for name in _REDUCTIONS},
}
