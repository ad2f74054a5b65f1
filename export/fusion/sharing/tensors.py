"""Equal weights stored once: constants lifted to initializers of the main graph, equal ones told by their contents."""

from __future__ import annotations

import hashlib

import onnx_ir as ir

from monograph.export.fusion.sharing.provenance import record_merge

_SINGLE_VALUES = {"value_float": ir.DataType.FLOAT, "value_floats": ir.DataType.FLOAT}
_SINGLE_VALUES |= {"value_int": ir.DataType.INT64, "value_ints": ir.DataType.INT64}


def lift_constants(model: ir.Model) -> None:
    """Make every Constant node, and every weight of a subgraph, an initializer of the main graph.

    One that is itself an output of a graph stays where it is, for outputs keep their names; so do strings and sparse ones.
    """
    main = model.graph
    taken = _value_names(main)
    for graph in (main, *main.subgraphs()):
        for node in list(graph):
            tensor = _constant(node)
            if tensor is not None and not node.outputs[0].is_graph_output():
                _lift(main, node.outputs[0], tensor, taken)
                graph.remove(node, safe=True)
        if graph is main:
            continue
        for value in list(graph.initializers.values()):
            if value.const_value is not None and not value.is_graph_output() and not value.is_graph_input():
                _lift(main, value, value.const_value, taken)
                graph.initializers.pop(value.name or "")


def _value_names(main: ir.Graph) -> dict[str, int]:
    """Count the values of each name: branches of one If may both use one."""
    counts: dict[str, int] = {}
    values = [value for node in main.all_nodes() for value in node.outputs]
    for graph in (main, *main.subgraphs()):
        values += [*graph.inputs, *graph.initializers.values()]
    for value in values:
        counts[value.name or ""] = counts.get(value.name or "", 0) + 1
    return counts


def _constant(node: ir.Node) -> ir.TensorProtocol | None:
    if node.op_type != "Constant" or node.domain != "" or len(node.attributes) != 1:
        return None
    ((name, attribute),) = node.attributes.items()
    if name == "value":
        return attribute.as_tensor()
    return ir.tensor(attribute.value, _SINGLE_VALUES[name]) if name in _SINGLE_VALUES else None


def _lift(main: ir.Graph, value: ir.Value, tensor: ir.TensorProtocol, taken: dict[str, int]) -> None:
    name = value.name or "constant"
    if taken.get(name, 0) > 1 or name in main.initializers:
        number = 2
        while f"{name}_{number}" in taken:
            number += 1
        taken[name] -= 1
        name = f"{name}_{number}"
        taken[name] = 1
    shape = ir.Shape(tensor.shape.numpy())
    lifted = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    value.replace_all_uses_with(lifted)
    main.register_initializer(lifted)


def deduplicate_weights(model: ir.Model) -> None:
    """Let all users of equal weights (dtype, shape and every byte) read the first of them."""
    main = model.graph
    first: dict[tuple[object, ...], ir.Value] = {}
    for value in list(main.initializers.values()):
        tensor = value.const_value
        if tensor is None or value.is_graph_output() or value.is_graph_input():
            continue
        kept = first.setdefault(tensor_key(tensor), value)
        if kept is not value:
            value.replace_all_uses_with(kept)
            record_merge(kept, value)
            main.initializers.pop(value.name or "")


def tensor_key(tensor: ir.TensorProtocol) -> tuple[object, ...]:
    """Return what equal tensors have in common: type, shape, and a digest of every byte."""
    return (tensor.dtype, tuple(tensor.shape.numpy()), _digest(tensor))


def _digest(tensor: ir.TensorProtocol) -> bytes:
    """Hash the contents; a tensor that lies in a file is read in chunks."""
    digest = hashlib.sha256()
    if tensor.dtype == ir.DataType.STRING:
        for text in tensor.numpy().reshape(-1):
            written = text if isinstance(text, bytes) else str(text).encode()
            digest.update(len(written).to_bytes(8, "little") + written)
    elif isinstance(tensor, ir.ExternalTensor):
        tensor.tofile(_Hash(digest))
    else:
        digest.update(tensor.tobytes())
    return digest.digest()


class _Hash:
    """A file that hashes what is written to it."""

    def __init__(self, digest: hashlib._Hash) -> None:
        self.write = digest.update


def weights_size(model: ir.Model) -> tuple[int, int]:
    """Return how many weights the graph and its subgraphs hold, constants among them, and their bytes."""
    tensors = [
        value.const_value
        for graph in (model.graph, *model.graph.subgraphs())
        for value in graph.initializers.values()
        if value.const_value is not None
    ]
    tensors += [tensor for node in model.graph.all_nodes() if (tensor := _constant(node)) is not None]
    return len(tensors), sum(tensor.nbytes for tensor in tensors)
