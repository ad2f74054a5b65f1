"""A member's graph, made ready to be moved into another: loaded, brought to one opset, renamed, connected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir
from onnx_ir.passes import Sequential
from onnx_ir.passes.common import InlinePass, RemoveInitializersFromInputsPass, RemoveUnusedOpsetsPass
from onnx_ir.tape import Tape

from monograph.errors import ExportError, FusionError
from monograph.export.fusion.adapters import Step
from monograph.export.fusion.align import InputLink
from monograph.export.fusion.plan import Member
from monograph.export.opset import convert_opset, root_cause
from monograph.models.contract import Contract
from monograph.models.onnx_file import load_graph

_PAST_VALUE, _PRESENT_VALUE = 5, 2
"""Where Attention of opset 23 takes and gives them: https://onnx.ai/onnx/operators/onnx__Attention.html"""


def ir_dtype(dtype: str) -> ir.DataType:
    """Return onnx-ir's data type for a numpy dtype name."""
    return ir.DataType[{"float32": "FLOAT", "float64": "DOUBLE", "str": "STRING"}.get(dtype, dtype.upper())]


def load_member(member: Member, opset: int) -> ir.Model:
    """Load a member's graph, functions inlined, at ``opset``; its weights stay on disk.

    Raises:
        FusionError: it cannot be brought to that opset.
    """
    try:
        model = load_graph(member.path)
        Sequential(InlinePass(), RemoveInitializersFromInputsPass(), RemoveUnusedOpsetsPass())(model)
        if model.opset_imports.get("", opset) != opset:
            convert_opset(model, member.name, opset)
    except ExportError as error:
        raise FusionError(str(error)) from error
    except (ir.serde.SerdeError, RuntimeError) as error:  # passes raise RuntimeErrors of their own
        raise FusionError(
            f"{member.name} cannot be taken into another graph: {root_cause(error)}; export it again, for opset {opset}"
        ) from error
    return model


Prepared = dict[tuple[str, tuple[Step, ...]], ir.Value]
"""What has been made of the shared inputs so far: by the name of the input and the steps that it went through."""


def detach(
    model: ir.Model,
    member: Member,
    shared: Mapping[str, ir.Value],
    tape: Tape,
    prefix: str,
    prepared: Prepared | None = None,
) -> ir.Value:
    """Give the member names of its own, connect it to the shared inputs, and return its primary output.

    Steps that stand in ``prepared`` already are not emitted again; those that are emitted are added to it.
    """
    prepared = {} if prepared is None else prepared
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    output = next(value for value in graph.outputs if value.name == member.output)
    fed = {link.member_input: _feed(link, shared, tape, prepared) for link in member.input_links}
    _prefix_names(graph, prefix, _shared_symbols(inputs.values(), fed))
    for link in member.input_links:
        source = fed[link.member_input]
        own = inputs[link.member_input]
        own.replace_all_uses_with(source, replace_graph_outputs=True)
        output = source if output is own else output
    return output


def free_prefix(member: Member, contract: Contract) -> str:
    """Return ``member/``, with as many strokes as it takes for no input or output of the fused graph to begin so."""
    prefix = f"{member.name}/"
    while any(spec.name.startswith(prefix) for spec in (*contract.inputs, *contract.outputs)):
        prefix += "/"
    return prefix


def _feed(link: InputLink, shared: Mapping[str, ir.Value], tape: Tape, prepared: Prepared) -> ir.Value:
    """Return what the member is fed for one of its inputs."""
    value = shared[link.shared_input]
    for position, step in enumerate(link.steps):
        key = (link.shared_input, link.steps[: position + 1])
        if key not in prepared:
            prepared[key] = step.emit(tape, value)
        value = prepared[key]
    return value


def _shared_symbols(inputs: Iterable[ir.Value], fed: Mapping[str, ir.Value]) -> dict[str, str]:
    """Map the member's names of input dimensions to those of what it is fed, so that equal dimensions are seen as equal."""
    symbols: dict[str, str] = {}
    for value in inputs:
        target = fed[value.name or ""]
        for own, other in zip(value.shape or (), target.shape or (), strict=True):
            if isinstance(own, ir.SymbolicDim) and own.value and isinstance(other, ir.SymbolicDim) and other.value:
                symbols[own.value] = other.value
    return symbols


def _prefix_names(graph: ir.Graph, prefix: str, symbols: Mapping[str, str]) -> None:
    """Rename every node, value and dimension of ``graph`` and its subgraphs; node names then tell the member, and are unique."""
    taken: set[str] = set()
    for position, node in enumerate(graph.all_nodes()):
        name = f"{prefix}{node.name or f'{node.op_type}_{position}'}"
        while name in taken:  # two exporters' habits may meet in one file: names that count, and nodes without any
            name = f"{name}_{position}"
        taken.add(name)
        node.name = name
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


def keep_caches(graph: ir.Graph) -> None:
    """Give every Attention that reads a cache the outputs that hold the next one, though nothing reads them.

    They are optional, but ONNX Runtime runs no Attention that takes a cache and gives none.
    """
    for node in graph.all_nodes():
        cached = len(node.inputs) > _PAST_VALUE and node.inputs[_PAST_VALUE] is not None
        if node.op_type == "Attention" and node.domain == "" and cached:
            node.resize_outputs(max(len(node.outputs), _PRESENT_VALUE + 1))
            for value, part in zip(node.outputs[1:], ("present_key", "present_value"), strict=False):
                value.name = value.name or f"{node.name}/{part}"


def take_apart(graph: ir.Graph) -> None:
    """Release nodes and weights, so that another graph may own them."""
    graph.outputs.clear()
    graph.remove(list(graph))
    graph.initializers.clear()
