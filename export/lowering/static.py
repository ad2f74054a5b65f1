"""Fixed sizes: batch and, for texts, sequence; and with them the shapes computed in the graph folded into constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from monograph.errors import ConfigError, SourceError
from monograph.export.lowering.lowering import Lowering, LoweringJob
from monograph.export.parity import TOLERANCE
from monograph.models.contract import Contract, Dim, TensorSpec, TextPreprocessing
from monograph.models.onnx_file import LARGEST_INLINE_BYTES, OnnxFile, load_graph
from monograph.runtime.session import save_optimised

DEFAULT_SEQUENCE_LENGTH = 128


def fix_contract(contract: Contract, batch_size: int = 1, sizes: Mapping[str, int] | None = None) -> Contract:
    """Return ``contract`` with every named size a number: the first of each input ``batch_size``, the others by ``sizes``.

    For an input of text a name that is not in ``sizes`` becomes 128 tokens, or as many as its preprocessing allows.

    Raises:
        ConfigError: another input has a named size that ``sizes`` does not give.
    """
    known = dict(sizes or {})
    for spec in contract.inputs:
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str) and dim not in known:
                known[dim] = batch_size if axis == 0 else _sequence_length(spec, dim)
    return replace(
        contract,
        inputs=tuple(replace(spec, shape=_fixed(spec.shape, known)) for spec in contract.inputs),
        outputs=tuple(replace(spec, shape=_fixed(spec.shape, known)) for spec in contract.outputs),
    )


def _sequence_length(spec: TensorSpec, dim: str) -> int:
    if isinstance(spec.preprocessing, TextPreprocessing):
        return min(DEFAULT_SEQUENCE_LENGTH, spec.preprocessing.max_length)
    raise ConfigError(f"input {spec.describe()} has no fixed size for {dim!r}: give it one, --size {dim}=N")


def _fixed(shape: tuple[Dim, ...], sizes: Mapping[str, int]) -> tuple[Dim, ...]:
    return tuple(sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in shape)


def with_fixed_sizes(job: LoweringJob) -> Path:
    """Write the source with the sizes of the job's contract, constants folded by ONNX Runtime; return the file.

    Raises:
        SourceError: its weights are too large to be rewritten.
    """
    graph = in_memory(job.source)
    shapes = {spec.name: spec.shape for spec in (*job.contract.inputs, *job.contract.outputs)}
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        if value.name in shapes:
            value.shape = ir.Shape(shapes[value.name])
    for node in graph.graph.all_nodes():
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None  # the old sizes would contradict the new ones
    return fold_constants(graph, job.folder)


def fold_constants(graph: ir.Model, folder: Path) -> Path:
    """Write ``graph`` with constants, and BatchNormalization after a convolution, folded by ONNX Runtime; return the file."""
    plain, folded = folder / "plain.onnx", folder / "folded.onnx"
    ir.save(graph, plain)
    save_optimised(plain, folded)
    return folded


def in_memory(source: OnnxFile) -> ir.Model:
    """Return the graph of ``source`` with its weights.

    Raises:
        SourceError: they are too large for the tools that rewrite them.
    """
    if source.size_bytes > LARGEST_INLINE_BYTES:
        raise SourceError(
            f"{source.path} has {source.size_bytes / 1e9:.1f} GB of weights, and a lowering rewrites at most "
            f"{LARGEST_INLINE_BYTES / 1e9:.1f} GB: take a smaller model"
        )
    graph = load_graph(source.path)
    ir.external_data.load_to_model(graph)
    graph.metadata_props.clear()  # it speaks of the source, and a step of ONNX Runtime's stumbles over any
    return graph


STATIC_BATCH = Lowering(
    "static-batch", "batch, and the sequence of a text, of a fixed size", with_fixed_sizes, tolerance=TOLERANCE
)
