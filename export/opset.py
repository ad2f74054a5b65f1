"""A graph brought to another version of ONNX's operators, which says so where it cannot be."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import onnx
import onnx.version_converter
import onnx_ir as ir
from onnxscript.version_converter import ConvertVersionPass

from monograph.errors import ExportError


def convert_opset(model: ir.Model, name: str, opset: int) -> None:
    """Convert ``model``, called ``name``, in place; where that fails, find the node that cannot be converted.

    Raises:
        ExportError: it cannot be converted, or would take or give other shapes.
    """
    before, ranks = model.opset_imports[""], _ranks(model.graph)
    remedy = f"export it again with opset {opset}"
    with _quiet_converter():
        ConvertVersionPass(opset, fallback=True)(model)
    reached = model.opset_imports.get("", opset)
    if reached != opset:
        culprit = _unconvertible(model, opset)
        raise ExportError(f"{name} has opset {reached} and cannot be converted to {opset}{culprit}: {remedy}")
    if changed := [output for output, rank in _ranks(model.graph).items() if ranks.get(output, rank) != rank]:
        raise ExportError(
            f"{name} has opset {before} and cannot be converted to {opset}: {changed[0]!r} would get another number of "
            f"dimensions: {remedy}"
        )


def _ranks(graph: ir.Graph) -> dict[str, int]:
    return {value.name or "": len(value.shape) for value in (*graph.inputs, *graph.outputs) if value.shape is not None}


def _unconvertible(model: ir.Model, opset: int) -> str:
    """Return the first node that cannot be converted alone, with the converter's reason; nothing where each can."""
    for node in model.graph.all_nodes():
        proto = ir.to_proto(node)
        inputs, outputs = ([onnx.ValueInfoProto(name=name) for name in names if name] for names in (proto.input, proto.output))
        graph = onnx.helper.make_graph([proto], "alone", inputs, outputs)
        try:
            opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
            onnx.version_converter.convert_version(onnx.helper.make_model(graph, opset_imports=opsets), opset)
        except RuntimeError as error:
            reason = root_cause(error).rsplit(": ", 1)[-1]
            return f", because of its node {node.name or node.outputs[0].name!r} ({node.op_type}): {reason}"
    return ""


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


def root_cause(error: BaseException) -> str:
    """Return the first line of what went wrong at the bottom of a chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
