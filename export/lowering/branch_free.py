"""A cascade without branches, for targets that know no If, Compress, NonZero or ScatterND, such as CoreML and NNAPI.

Every member runs for every row, and each row takes the answer of the member that would have given it: the same outputs at
the worst case's cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from monograph.errors import FusionError
from monograph.export.lowering.lowering import Lowering, LoweringJob
from monograph.export.parity import TOLERANCE
from monograph.models.onnx_file import load_graph


def _convert(job: LoweringJob) -> Path:
    graph = load_graph(job.source.path)
    remove_branches(graph, job.source.path.name)
    path = job.folder / "branch_free.onnx"
    ir.save(graph, path, external_data="branch_free.onnx.data")
    return path


@dataclass(frozen=True)
class Boundary:
    """Where one stage of a cascade ends and the next begins, in the graph without branches."""

    hard: ir.Value
    """bool [b]: the rows that go on."""
    answer: ir.Value
    """What the rows that do not go on get."""
    later: ir.Value
    """What those that do get from the later stages."""
    carried: tuple[ir.Value, ...]
    """What the later stages take beside the model's inputs."""


def remove_branches(model: ir.Model, name: str) -> list[Boundary]:
    """Rewrite a cascade in place so that all rows go through all members; return where its stages meet, in order.

    ``Compress(x, hard)`` becomes x, and ``ScatterND(answer, positions of hard, later)`` becomes
    ``Where(hard, later, answer)``; what the branches held stands in the main graph.

    Raises:
        FusionError: there is no branch, or one that monograph's cascades do not have.
    """
    guards = [node for node in model.graph if node.op_type == "If" and node.domain == ""]
    if not guards:
        raise FusionError(f"{name} has no branch: only a cascade, made by `monograph fuse --cascade`, can be made branch-free")
    boundaries = []
    while guards:
        boundaries += [_inline(guard, model.graph, name) for guard in guards]
        guards = [node for node in model.graph if node.op_type == "If" and node.domain == ""]
    RemoveUnusedNodesPass()(model)
    return boundaries


def _inline(guard: ir.Node, graph: ir.Graph, name: str) -> Boundary:
    """Put the nodes of the branch of hard rows in the place of ``guard``."""
    hard_branch, easy_branch = (guard.attributes[key].as_graph() for key in ("then_branch", "else_branch"))
    scatter = hard_branch.outputs[0].producer()
    is_ours = (
        len(list(easy_branch)) == 1
        and easy_branch[0].op_type == "Identity"
        and scatter is not None
        and scatter.op_type == "ScatterND"
        and (hard := _condition(scatter)) is not None
    )
    if not is_ours or scatter is None:
        raise FusionError(
            f"{name}: the branches of node {guard.name!r} are not those of a cascade made by `monograph fuse --cascade`, which "
            "alone can be made branch-free"
        )
    for value in list(hard_branch.initializers.values()):
        hard_branch.initializers.pop(value.name or "")
        graph.register_initializer(value)
    hard_branch.outputs.clear()
    nodes = list(hard_branch)
    hard_branch.remove(nodes)
    graph.insert_before(guard, nodes)
    carried: dict[ir.Value, None] = {}
    for node in nodes:
        if node.op_type == "Compress" and node.inputs[1] is hard and node.inputs[0] is not None:
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            if not node.inputs[0].is_graph_input():
                carried[node.inputs[0]] = None
    answer, _, later = scatter.inputs
    assert hard is not None
    assert answer is not None
    assert later is not None
    chosen = _emit_choice(graph, guard, hard, later, answer)
    out = guard.outputs[0]
    chosen.type, chosen.shape, label = out.type, out.shape, out.name
    out.replace_all_uses_with(chosen, replace_graph_outputs=True)
    graph.remove(guard, safe=True)
    chosen.name = label
    return Boundary(hard, answer, later, tuple(carried))


def _condition(scatter: ir.Node) -> ir.Value | None:
    """Return ``hard`` of ``ScatterND(answer, Transpose(NonZero(hard)), later)``."""
    value: ir.Value | None = scatter.inputs[1]
    for op_type in ("Transpose", "NonZero"):
        node = None if value is None else value.producer()
        if node is None or node.op_type != op_type:
            return None
        value = node.inputs[0]
    return value


def _emit_choice(graph: ir.Graph, guard: ir.Node, hard: ir.Value, later: ir.Value, answer: ir.Value) -> ir.Value:
    prefix = f"{guard.name}/choice"
    axes = ir.tensor(np.array([1], np.int64), name=f"{prefix}/axes")
    axes_value = ir.Value(name=axes.name, const_value=axes, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
    graph.register_initializer(axes_value)
    column = ir.node("Unsqueeze", [hard, axes_value], name=f"{prefix}/column")
    choice = ir.node("Where", [column.outputs[0], later, answer], name=prefix)
    column.outputs[0].name = f"{prefix}/column_output"
    graph.insert_before(guard, [column, choice])
    return choice.outputs[0]


BRANCH_FREE = Lowering(
    "branch-free",
    "a cascade whose rows all go through all members, for targets that know no If",
    _convert,
    fixes_sizes=False,
    tolerance=TOLERANCE,
)
