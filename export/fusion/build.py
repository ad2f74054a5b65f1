"""From a plan to one graph.

onnx-ir's graphs are made of objects, not names, so a merge is a matter of moving nodes and making names distinct.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import Sequential
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass
from onnx_ir.tape import Tape

from monograph.errors import FusionError
from monograph.export.fusion.align import MISSING, missing_output, missing_value
from monograph.export.fusion.forms import FORMS, Form
from monograph.export.fusion.horizontal import Tap, batch_members
from monograph.export.fusion.members import Prepared, detach, free_prefix, ir_dtype, keep_caches, load_member, take_apart
from monograph.export.fusion.plan import FusionPlan, Member
from monograph.export.fusion.sharing import Sharing, record_members, share_subgraphs
from monograph.models.contract import TensorSpec

_OLDEST_IR_VERSION = 8


def build_graph(plan: FusionPlan) -> tuple[ir.Model, Sharing | None]:
    """Build the fused graph of ``plan``, and say what sharing saved; weights of members stay on disk until it is saved.

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
    outputs: list[ir.Value] = []
    prepared: Prepared = {}
    for member in plan.running:
        model = load_member(member, plan.opset)
        ir_version = max(ir_version, model.ir_version)
        _merge_opsets(opsets, model, member)
        output = detach(model, member, shared, tape, prefix=free_prefix(member, plan.contract), prepared=prepared)
        nodes += list(model.graph)
        initializers += list(model.graph.initializers.values())
        take_apart(model.graph)
        outputs.append(output)
        converted.append(_emit_member(tape, output, member, form, rank=len(plan.contract.output.shape)))
    own = [_emit_own(tape, *each) for each in zip(outputs, plan.running, plan.member_specs, strict=False)]
    fused = _emit_output(tape, form.emit_combination(tape, converted, plan.mixing), plan)
    _name_new_nodes(tape)
    graph = ir.Graph(
        inputs=list(shared.values()),
        outputs=[fused, *own],
        nodes=[*nodes, *tape.nodes],
        initializers=[*initializers, *tape.initializers],
        opset_imports=opsets,
        name="monograph",
    )
    # Casts of shared inputs are on the tape, behind the members that read them.
    graph.sort()
    fused_model = ir.Model(graph, ir_version=ir_version, producer_name="monograph")
    Sequential(RemoveUnusedNodesPass(), RemoveUnusedOpsetsPass())(fused_model)
    taps = _taps(outputs, tape) if plan.batches else []
    sharing = share_subgraphs(fused_model) if plan.share else None
    if plan.batches:
        batch_members(fused_model, taps, [member.name for member in plan.running])
    keep_caches(fused_model.graph)
    _add_in_turn(fused_model.graph)
    record_members(fused_model, [member.name for member in plan.running])
    return fused_model, sharing


def _add_in_turn(graph: ir.Graph) -> None:
    """Write the fusion's sums as additions of two, which CoreML and NNAPI take and a Sum they do not."""
    for node in [node for node in graph if node.op_type == "Sum" and (node.name or "").startswith("fusion/")]:
        total, *others = node.inputs
        for position, value in enumerate(others, 1):
            added = ir.node("Add", [total, value])
            added.name = (node.name or "").replace("Sum", "Add") + (f"_{position}" if len(others) > 1 else "")
            graph.insert_before(node, added)
            total = added.outputs[0]
            total.name = f"{added.name}_output"
        assert total is not None
        old = node.outputs[0]
        total.type, total.shape, name = old.type, old.shape, old.name
        old.replace_all_uses_with(total, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        if total.is_graph_output():
            total.name = name


def _graph_input(spec: TensorSpec) -> ir.Value:
    return ir.val(spec.name, dtype=ir_dtype(spec.dtype), shape=ir.Shape(spec.shape))


def _merge_opsets(opsets: dict[str, int], model: ir.Model, member: Member) -> None:
    for domain, version in model.opset_imports.items():
        if opsets.setdefault(domain, version) != version:
            raise FusionError(
                f"{member.name} needs version {version} of the operators {domain!r}, another member version {opsets[domain]}: "
                "export them again with one version"
            )


def _emit_member(tape: Tape, output: ir.Value, member: Member, form: Form, rank: int) -> ir.Value:
    """Bring one member's output to float32, to its temperature, to the fused class order and into the form's space."""
    output = _emit_float32(tape, output)
    if member.temperature != 1:
        divisor = ir.tensor(np.array(member.temperature, np.float32), name=f"fusion/temperature/{member.name}")
        output = tape.op("Div", [output, tape.initializer(divisor)])
    if member.class_positions is not None:
        output = _emit_class_order(tape, output, member.class_positions, member.name, missing_value(member.kind), rank)
    return form.emit_conversion(tape, output, member.kind)


def _emit_own(tape: Tape, output: ir.Value, member: Member, spec: TensorSpec) -> ir.Value:
    """Give what one member says by itself, in float32 and the fused class order, as the output ``spec`` of a teaching graph.

    It is a copy, so that two equal members have an output each; linear heads that are read here cannot be folded into one.
    """
    output = _emit_float32(tape, output)
    if member.class_positions is not None:
        label, missing = f"{member.name}/own", missing_output(member.kind)
        output = _emit_class_order(tape, output, member.class_positions, label, missing, rank=len(spec.shape))
    return _as_output(tape.op("Identity", [output]), spec)


def _emit_float32(tape: Tape, value: ir.Value) -> ir.Value:
    return value if value.dtype is ir.DataType.FLOAT else tape.op("Cast", [value], {"to": ir.DataType.FLOAT})


def _emit_class_order(
    tape: Tape, output: ir.Value, class_positions: Sequence[int], label: str, missing: float, rank: int
) -> ir.Value:
    """Bring ``[..., c]`` into the fused class order; classes that the member lacks are read from one more column.

    ``label`` ends the names of the weights that this takes.
    """
    known_count = sum(position != MISSING for position in class_positions)
    if known_count < len(class_positions):
        widths = np.array([0] * (2 * rank - 1) + [1], np.int64)
        pads = tape.initializer(ir.tensor(widths, name=f"fusion/class_padding/{label}"))
        value = ir.tensor(np.array(missing, np.float32), name=f"fusion/class_missing/{label}")
        output = tape.op("Pad", [output, pads, tape.initializer(value)])
    columns = [known_count if position == MISSING else position for position in class_positions]
    positions = tape.initializer(ir.tensor(columns, ir.DataType.INT64, name=f"fusion/classes/{label}"))
    return tape.op("Gather", [output, positions], {"axis": -1})


def _emit_output(tape: Tape, fused: ir.Value, plan: FusionPlan) -> ir.Value:
    """Name the output as the contract does; a value that already has a role keeps it and is copied."""
    if fused.producer() is None or fused.producer() not in tape.nodes:
        fused = tape.op("Identity", [fused])
    return _as_output(fused, plan.contract.output)


def _as_output(value: ir.Value, spec: TensorSpec) -> ir.Value:
    value.name, value.type, value.shape = spec.name, ir.TensorType(ir_dtype(spec.dtype)), ir.Shape(spec.shape)
    return value


def _taps(outputs: Sequence[ir.Value], tape: Tape) -> list[Tap]:
    """Return where the fusion's own nodes read each member's output."""
    own = set(tape.nodes)
    return [next((use.node, use.idx) for use in output.uses() if use.node in own) for output in outputs]


def _name_new_nodes(tape: Tape) -> None:
    for position, node in enumerate(tape.nodes):
        node.name = f"fusion/{node.op_type}_{position}"
        for value in node.outputs:
            value.name = value.name or f"fusion/{node.op_type}_{position}_output"
