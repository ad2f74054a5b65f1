"""From a cascade's plan to one graph of plain ONNX operators.

Each member but the first stands in a branch of an If, which runs where at least one row is hard. That guard is not a
matter of speed alone: on zero rows LSTM, GRU and Einsum end the process, and other operators fail.

Shape letters: ``b`` batch, ``h`` hard rows, ``c`` classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import Sequential
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass
from onnx_ir.tape import Tape

from monograph.errors import FusionError
from monograph.export.fusion.cascade.gates import GATES, emit_calibrated, emit_scalar
from monograph.export.fusion.cascade.plan import CascadePlan
from monograph.export.fusion.cascade.reuse import Stage, reuse_rows, rows_of
from monograph.export.fusion.members import detach, free_prefix, ir_dtype, load_member, take_apart
from monograph.export.fusion.plan import Member
from monograph.export.fusion.sharing import canonicalise, record_members
from monograph.models.contract import Kind

_OLDEST_IR_VERSION = 8


@dataclass
class _Collected:
    """What the members ask of the model as a whole."""

    opsets: dict[str, int]
    ir_version: int = _OLDEST_IR_VERSION


def build_cascade(plan: CascadePlan) -> ir.Model:
    """Build the graph of ``plan``; weights of members stay on disk until the graph is saved.

    Raises:
        FusionError: a member cannot be brought to the plan's opset, or members need two versions of one custom domain.
    """
    inputs = {
        spec.name: ir.val(spec.name, dtype=ir_dtype(spec.dtype), shape=ir.Shape(spec.shape)) for spec in plan.contract.inputs
    }
    collected = _Collected({"": plan.opset})
    nodes, initializers, output, _ = _build_stage(plan, 0, inputs, collected)
    spec = plan.contract.output
    output.name, output.shape = spec.name, ir.Shape(spec.shape)
    graph = ir.Graph(
        inputs=list(inputs.values()),
        outputs=[output],
        nodes=nodes,
        initializers=initializers,
        opset_imports=collected.opsets,
        name="monograph",
    )
    model = ir.Model(graph, ir_version=collected.ir_version, producer_name="monograph")
    Sequential(RemoveUnusedNodesPass(), RemoveUnusedOpsetsPass())(model)
    _remove_unused_initializers(model)
    record_members(model, [member.name for member in plan.members])
    return model


def _remove_unused_initializers(model: ir.Model) -> None:
    """In branches too, where the pass leaves them."""
    for graph in model.graphs():
        for value in list(graph.initializers.values()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del graph.initializers[value.name or ""]


def _build_stage(
    plan: CascadePlan, stage: int, inputs: Mapping[str, ir.Value], collected: _Collected
) -> tuple[list[ir.Node], list[ir.Value], ir.Value, Stage]:
    """Return what answers the rows of ``inputs``: nodes in order, initializers, the answer ``float32 [b, c]``, the member."""
    member = plan.members[stage]
    model = load_member(member, plan.opset)
    _collect(collected, model, member)
    if plan.share:
        canonicalise(model)
    rows = rows_of(model) if plan.share else {}
    before, after = Tape(), Tape()
    output = detach(model, member, inputs, before, prefix=free_prefix(member, plan.contract))
    nodes, initializers = list(model.graph), list(model.graph.initializers.values())
    take_apart(model.graph)
    prepared = [*inputs.values(), *(value for node in before.nodes for value in node.outputs)]
    own = Stage([*before.nodes, *nodes], rows | {value: len(value.shape or ()) or None for value in prepared})
    output = _emit_aligned(after, output, member)
    calibrated, probabilities = emit_calibrated(after, output, member.kind, plan.temperatures[stage])
    answer = calibrated if plan.contract.kind is Kind.LOGITS else probabilities
    if stage < len(plan.members) - 1:
        score = GATES[plan.gate].emit(after, probabilities, plan.class_count)
        sure = after.op("GreaterOrEqual", [score, emit_scalar(after, plan.thresholds[stage])])
        # A score that is not a number is hard too, which Less would not say.
        answer = _emit_guarded(plan, stage, inputs, answer, after.op("Not", [sure]), after, collected, own)
    _name(before.nodes, f"fusion/{stage}/input")
    _name(after.nodes, f"fusion/{stage}")
    return [*before.nodes, *nodes, *after.nodes], initializers, answer, own


def _collect(collected: _Collected, model: ir.Model, member: Member) -> None:
    collected.ir_version = max(collected.ir_version, model.ir_version)
    for domain, version in model.opset_imports.items():
        if collected.opsets.setdefault(domain, version) != version:
            raise FusionError(
                f"{member.name} needs version {version} of the operators {domain!r}, another member version "
                f"{collected.opsets[domain]}: export them again with one version"
            )


def _emit_aligned(tape: Tape, output: ir.Value, member: Member) -> ir.Value:
    if output.dtype is not ir.DataType.FLOAT:
        output = tape.op("Cast", [output], {"to": ir.DataType.FLOAT})
    if member.class_positions is not None:
        positions = tape.op("Constant", [], {"value_ints": list(member.class_positions)})
        output = tape.op("Gather", [output, positions], {"axis": -1})
    return output


def _emit_guarded(
    plan: CascadePlan,
    stage: int,
    inputs: Mapping[str, ir.Value],
    answer: ir.Value,
    hard: ir.Value,
    tape: Tape,
    collected: _Collected,
    own: Stage,
) -> ir.Value:
    """Emit If any row is hard: the later members' answer to the hard rows, written over this one's; else this one's."""
    gathering, scattering, easy = Tape(), Tape(), Tape()
    hard_inputs = {}
    for name, value in inputs.items():
        rows = gathering.op("Compress", [value, hard], {"axis": 0})
        shape = ir.Shape(value.shape or ())
        shape[0] = f"fusion/{stage}/hard_rows" if plan.contract.batch_is_dynamic else 1
        rows.type, rows.shape = value.type, shape
        hard_inputs[name] = rows
    nodes, initializers, later, member = _build_stage(plan, stage + 1, hard_inputs, collected)
    taken: list[ir.Node] = []
    if plan.share:
        gathered = {inputs[name]: rows for name, rows in hard_inputs.items()}
        taken, nodes, later = reuse_rows(own, member, nodes, gathered, hard, later)
    positions = scattering.op("Transpose", [scattering.op("NonZero", [hard])], {"perm": [1, 0]})  # [h, 1]
    mixed = scattering.op("ScatterND", [answer, positions, later])
    kept = easy.op("Identity", [answer])
    _name([*gathering.nodes, *taken], f"fusion/{stage}/gather")
    _name(scattering.nodes, f"fusion/{stage}/scatter")
    _name(easy.nodes, f"fusion/{stage}/easy")
    some_hard = tape.op(
        "Cast",
        [tape.op("ReduceSum", [tape.op("Cast", [hard], {"to": ir.DataType.INT64})], {"keepdims": 0})],
        {"to": ir.DataType.BOOL},
    )
    for value in (mixed, kept):
        _set_answer_type(value, plan)
    # Weights stand in the branch: ONNX Runtime does not optimise a branch by weights of the graph around it.
    hard_nodes = [*gathering.nodes, *taken, *nodes, *scattering.nodes]
    then_branch = ir.Graph([], [mixed], nodes=hard_nodes, initializers=initializers, name=f"hard_{stage}")
    else_branch = ir.Graph([], [kept], nodes=list(easy.nodes), name=f"easy_{stage}")
    answered = tape.op("If", [some_hard], {"then_branch": then_branch, "else_branch": else_branch})
    _set_answer_type(answered, plan)
    return answered


def _set_answer_type(value: ir.Value, plan: CascadePlan) -> None:
    rows = None if plan.contract.batch_is_dynamic else 1
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([rows, plan.class_count])


def _name(nodes: Iterable[ir.Node], prefix: str) -> None:
    for position, node in enumerate(nodes):
        node.name = f"{prefix}/{node.op_type}_{position}"
        for value in node.outputs:
            value.name = f"{node.name}_output_{value.index()}"
