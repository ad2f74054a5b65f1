"""From a plan to one graph.

onnx-ir's graphs are made of objects, not names, so a merge is a matter of moving nodes and making names distinct.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping

import onnx_ir as ir
from onnx_ir.passes import Sequential
from onnx_ir.passes.common import InlinePass, RemoveInitializersFromInputsPass, RemoveUnusedNodesPass, RemoveUnusedOpsetsPass
from onnx_ir.tape import Tape
from onnxscript.version_converter import ConvertVersionPass

from monograph.errors import FusionError
from monograph.export.fusion.forms import FORMS, Form, emit_weighted_sum
from monograph.export.fusion.plan import FusionPlan, Member
from monograph.models.contract import Contract, TensorSpec
from monograph.models.onnx_file import load_graph

_OLDEST_IR_VERSION = 8
_DEFAULT_DOMAIN = "ai.onnx"
"""The long name of the domain whose nodes onnx-ir writes without one."""


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
        model = _load_member(member, plan.opset)
        ir_version = max(ir_version, model.ir_version)
        _merge_opsets(opsets, model, member)
        output = _detach(model, member, shared, tape, prefix=_free_prefix(member, plan.contract))
        nodes += list(model.graph)
        initializers += list(model.graph.initializers.values())
        _take_apart(model.graph)
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
    return ir.val(spec.name, dtype=_ir_dtype(spec.dtype), shape=ir.Shape(spec.shape))


def _ir_dtype(dtype: str) -> ir.DataType:
    return ir.DataType[{"float32": "FLOAT", "float64": "DOUBLE", "str": "STRING"}.get(dtype, dtype.upper())]


def _load_member(member: Member, opset: int) -> ir.Model:
    try:
        model = load_graph(member.path)
        if (version := model.opset_imports.pop(_DEFAULT_DOMAIN, None)) is not None:
            model.opset_imports[""] = version
        Sequential(InlinePass(), RemoveInitializersFromInputsPass(), RemoveUnusedOpsetsPass())(model)
        if model.opset_imports.get("", opset) != opset:
            with _quiet_converter():
                ConvertVersionPass(opset, fallback=True)(model)
    except (ir.serde.SerdeError, RuntimeError) as error:  # passes raise RuntimeErrors of their own
        raise FusionError(
            f"{member.name} cannot be taken into another graph: {_root_cause(error)}; export it again, for opset {opset}"
        ) from error
    reached = model.opset_imports.get("", opset)
    if reached != opset:
        raise FusionError(
            f"{member.name} has opset {reached} and cannot be converted to {opset}: export it again with opset {opset}"
        )
    return model


@contextlib.contextmanager
def _quiet_converter() -> Iterator[None]:
    """The converter logs each fallback and failure; what it reached is checked, and the proof checks what that computes."""
    logger = logging.getLogger("onnxscript.version_converter")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _merge_opsets(opsets: dict[str, int], model: ir.Model, member: Member) -> None:
    for domain, version in model.opset_imports.items():
        if opsets.setdefault(domain, version) != version:
            raise FusionError(
                f"{member.name} needs version {version} of the operators {domain!r}, another member version {opsets[domain]}: "
                "export them again with one version"
            )


def _detach(model: ir.Model, member: Member, shared: Mapping[str, ir.Value], tape: Tape, prefix: str) -> ir.Value:
    """Give the member names of its own, connect it to the shared inputs, and return its primary output."""
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    output = next(value for value in graph.outputs if value.name == member.output)
    symbols = _shared_symbols(inputs.values(), member, shared)
    _prefix_names(graph, prefix, symbols)
    for link in member.input_links:
        source = shared[link.shared_input]
        wanted = _ir_dtype(link.dtype)
        if source.dtype != wanted:
            source = tape.op("Cast", [source], {"to": wanted})
            source.shape, source.type = shared[link.shared_input].shape, ir.TensorType(wanted)
        own = inputs[link.member_input]
        own.replace_all_uses_with(source, replace_graph_outputs=True)
        output = source if output is own else output
    return output


def _free_prefix(member: Member, contract: Contract) -> str:
    """Return ``member/``, with as many strokes as it takes for no input or output of the fused graph to begin so."""
    prefix = f"{member.name}/"
    while any(spec.name.startswith(prefix) for spec in (*contract.inputs, *contract.outputs)):
        prefix += "/"
    return prefix


def _shared_symbols(inputs: Iterable[ir.Value], member: Member, shared: Mapping[str, ir.Value]) -> dict[str, str]:
    """Map the member's names of input dimensions to the fused graph's, so that equal dimensions are seen as equal."""
    links = {link.member_input: link.shared_input for link in member.input_links}
    symbols: dict[str, str] = {}
    for value in inputs:
        target = shared[links[value.name or ""]]
        for own, other in zip(value.shape or (), target.shape or (), strict=True):
            if isinstance(own, ir.SymbolicDim) and own.value and isinstance(other, ir.SymbolicDim) and other.value:
                symbols[own.value] = other.value
    return symbols


def _prefix_names(graph: ir.Graph, prefix: str, symbols: Mapping[str, str]) -> None:
    """Rename every node, value and dimension of ``graph`` and its subgraphs; node names then tell the member."""
    for position, node in enumerate(graph.all_nodes()):
        node.name = f"{prefix}{node.name or f'{node.op_type}_{position}'}"
        for value in node.outputs:
            _rename(value, prefix, symbols)
    for part in (graph, *graph.subgraphs()):
        initializers = list(part.initializers.values())
        part.initializers.clear()  # kept under their names, so that one could not take a name that another still has
        for value in (*part.inputs, *initializers):
            _rename(value, prefix, symbols)
        for value in initializers:
            part.register_initializer(value)


def _rename(value: ir.Value, prefix: str, symbols: Mapping[str, str]) -> None:
    if value.name:
        value.name = f"{prefix}{value.name}"
    if value.shape is not None and not value.shape.is_static():
        shape = value.shape.copy()
        for axis, dim in enumerate(shape):
            if isinstance(dim, ir.SymbolicDim) and dim.value:
                shape[axis] = symbols.get(dim.value, f"{prefix}{dim.value}")
        value.shape = shape


def _take_apart(graph: ir.Graph) -> None:
    """Release nodes and weights, so that another graph may own them."""
    graph.outputs.clear()
    graph.remove(list(graph))
    graph.initializers.clear()


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
    fused.name, fused.type, fused.shape = spec.name, ir.TensorType(_ir_dtype(spec.dtype)), ir.Shape(spec.shape)
    return fused


def _name_new_nodes(tape: Tape) -> None:
    for position, node in enumerate(tape.nodes):
        node.name = f"fusion/{node.op_type}_{position}"
        for value in node.outputs:
            value.name = value.name or f"fusion/{node.op_type}_{position}_output"
