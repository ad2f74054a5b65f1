"""From a plan to one graph.

onnx-ir's graphs are made of objects, not names, so a merge is a matter of moving nodes and making names distinct.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import Sequential
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass
from onnx_ir.tape import Tape

from monograph.errors import FusionError
from monograph.export.fusion.forms import FORMS, Form, emit_weighted_sum
from monograph.export.fusion.members import detach, free_prefix, ir_dtype, load_member, take_apart
from monograph.export.fusion.plan import FusionPlan, Member
from monograph.models.contract import TensorSpec

_OLDEST_IR_VERSION = 8


def build_graph(plan: FusionPlan) -> ir.Model:
    """Build the fused graph of ``plan``; weights of members stay on disk until the graph is saved.

    Raises:
        FusionError: a member cannot be brought to the plan's opset, or members need two versions of one custom domain.
    """
    form = FORMS[plan.form]
    shared = {spec.name: _graph_input(spec) for spec in plan.contract.inputs}
    tape = Tape()
    nodes: list[ir.Node] = []
    initializers: list[ir.Value] = []
    opsets: dict[str, int] = {"": plan.opset}
    ir_version = _OLDEST_IR_VERSION
    converted: list[ir.Value] = []
    for member in plan.running:
        model = load_member(member, plan.opset)
        ir_version = max(ir_version, model.ir_version)
        _merge_opsets(opsets, model, member)
        output = detach(model, member, shared, tape, prefix=free_prefix(member, plan.contract))
        nodes += list(model.graph)
        initializers += list(model.graph.initializers.values())
        take_apart(model.graph)
        converted.append(_emit_member(tape, output, member, form))
    fused = emit_weighted_sum(tape, converted, [m.weight for m in plan.running], [m.name for m in plan.running])
    fused = _emit_output(tape, fused, plan)
    _name_new_nodes(tape)
    graph = ir.Graph(
        inputs=list(shared.values()),
        outputs=[fused],
        nodes=[*nodes, *tape.nodes],
        initializers=[*initializers, *tape.initializers],
        opset_imports=opsets,
        name="monograph",
    )
    # Casts of shared inputs are on the tape, behind the members that read them.
    graph.sort()
    fused_model = ir.Model(graph, ir_version=ir_version, producer_name="monograph")
    Sequential(RemoveUnusedNodesPass(), RemoveUnusedOpsetsPass())(fused_model)
    return fused_model


def _graph_input(spec: TensorSpec) -> ir.Value:
    return ir.val(spec.name, dtype=ir_dtype(spec.dtype), shape=ir.Shape(spec.shape))


def _merge_opsets(opsets: dict[str, int], model: ir.Model, member: Member) -> None:
    for domain, version in model.opset_imports.items():
        if opsets.setdefault(domain, version) != version:
            raise FusionError(
                f"{member.name} needs version {version} of the operators {domain!r}, another member version {opsets[domain]}: "
                "export them again with one version"
            )


def _emit_member(tape: Tape, output: ir.Value, member: Member, form: Form) -> ir.Value:
    """Bring one member's output to float32, to the fused class order and into the form's space."""
    if output.dtype is not ir.DataType.FLOAT:
        output = tape.op("Cast", [output], {"to": ir.DataType.FLOAT})
    if member.class_positions is not None:
        positions = tape.initializer(
            ir.tensor(list(member.class_positions), ir.DataType.INT64, name=f"fusion/classes/{member.name}")
        )
        output = tape.op("Gather", [output, positions], {"axis": -1})
    return form.emit_conversion(tape, output, member.kind)


def _emit_output(tape: Tape, fused: ir.Value, plan: FusionPlan) -> ir.Value:
    """Name the output as the contract does; a value that already has a role keeps it and is copied."""
    if fused.producer() is None or fused.producer() not in tape.nodes:
        fused = tape.op("Identity", [fused])
    spec = plan.contract.output
    fused.name, fused.type, fused.shape = spec.name, ir.TensorType(ir_dtype(spec.dtype)), ir.Shape(spec.shape)
    return fused


def _name_new_nodes(tape: Tape) -> None:
    for position, node in enumerate(tape.nodes):
        node.name = f"fusion/{node.op_type}_{position}"
        for value in node.outputs:
            value.name = value.name or f"fusion/{node.op_type}_{position}_output"
