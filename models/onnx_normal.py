"""One way to write what a file may write in several: sparse tensors made dense, each domain imported once.

onnx-ir knows no sparse tensors, and what it does not know it leaves out. The two ways to write indices:
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto (SparseTensorProto).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from monograph.errors import SourceError

_LARGEST_DENSE_BYTES = 1 << 31


def densify(proto: onnx.ModelProto, model: str) -> None:
    """Make every sparse initializer and every sparse Constant of ``proto``, the model file called ``model``, a dense one.

    Raises:
        SourceError: a sparse tensor's indices or sizes do not fit, it holds strings, or it would be too large.
    """
    for graph in _graphs(proto):
        if isinstance(graph, onnx.GraphProto):
            graph.initializer.extend(_dense(sparse, model) for sparse in graph.sparse_initializer)
            del graph.sparse_initializer[:]
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "sparse_value":
                    dense = _dense(attribute.sparse_tensor, model)
                    attribute.CopyFrom(onnx.helper.make_attribute("value", dense))


def unify_domains(proto: onnx.ModelProto) -> None:
    """Import each domain of operators once, and call the default one '' wherever it is called 'ai.onnx'."""
    importers: list[onnx.ModelProto | onnx.FunctionProto] = [proto, *proto.functions]
    for importer in importers:
        versions = {default_domain(entry.domain): entry.version for entry in importer.opset_import}
        del importer.opset_import[:]
        importer.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in versions.items())
    for graph in _graphs(proto):
        for node in graph.node:
            if node.domain:
                node.domain = default_domain(node.domain)


def default_domain(name: str) -> str:
    """Return the name of a domain, '' for both names of the default one."""
    return "" if name == "ai.onnx" else name


def uses_long_name(proto: onnx.ModelProto) -> bool:
    """True where a node calls the default domain 'ai.onnx', which ONNX Runtime takes and ONNX's checker does not."""
    return any(node.domain == "ai.onnx" for graph in _graphs(proto) for node in graph.node)


def sparse_tensors(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.TensorProto]:
    """Yield what the sparse tensors of ``graph``, not of its subgraphs, are made of."""
    sparse = list(graph.sparse_initializer) if isinstance(graph, onnx.GraphProto) else []
    for node in graph.node:
        for attribute in node.attribute:
            sparse += [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else attribute.sparse_tensors
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    waiting: list[onnx.GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else attribute.graphs


def _dense(sparse: onnx.SparseTensorProto, model: str) -> onnx.TensorProto:
    name = sparse.values.name
    shape = tuple(sparse.dims)
    if sparse.values.data_type == onnx.TensorProto.STRING or min(shape, default=1) < 1:
        raise SourceError(f"{model}: sparse tensor {name!r} has shape {list(shape)}, expected numbers in sizes above 0")
    values, indices = numpy_helper.to_array(sparse.values).reshape(-1), numpy_helper.to_array(sparse.indices)
    if math.prod(shape) * values.itemsize > _LARGEST_DENSE_BYTES:
        raise SourceError(f"{model}: sparse tensor {name!r} of shape {list(shape)} is too large to be made dense")
    places = indices if indices.ndim == 1 else _linear(indices, shape)
    if places is None or places.shape != values.shape or np.any((places < 0) | (places >= math.prod(shape))):
        raise SourceError(
            f"{model}: sparse tensor {name!r} has {values.size} values and indices of shape {list(indices.shape)} "
            f"that do not lie in its shape {list(shape)}: export it again, dense"
        )
    dense = np.zeros(math.prod(shape), values.dtype)
    dense[places] = values
    tensor = numpy_helper.from_array(dense.reshape(shape), name)
    tensor.data_type = sparse.values.data_type
    return tensor


def _linear(indices: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Turn ``[n, rank]`` into positions ``[n]`` in the flattened tensor; None where they do not fit ``shape``."""
    if indices.ndim != 2 or indices.shape[1] != len(shape) or np.any((indices < 0) | (indices >= np.array(shape))):
        return None
    return np.asarray(np.ravel_multi_index(tuple(indices.T), shape), np.int64)
