"""The work of nodes as a provider is shown them, and how it is spread over the providers that ran them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import onnx
import onnx_ir as ir

from monograph.errors import SourceError
from monograph.export.fusion.macs import SEQUENCE_LENGTH, macs_by_node
from monograph.export.predict.graph import Node, show
from monograph.export.predict.partitions import partition
from monograph.models.onnx_file import LARGEST_INLINE_BYTES, OnnxFile
from monograph.runtime.placement import original_name
from monograph.runtime.results import Placed
from monograph.runtime.session_spec import CPU_PROVIDER


def work_of_nodes(proto: onnx.ModelProto, sequence_length: int = SEQUENCE_LENGTH) -> dict[str, int | None] | None:
    """Return the multiply-accumulates of one row by the name of the node; None where shapes cannot be inferred."""
    return macs_by_node(ir.serde.deserialize_model(_keep_all_rows(proto)), sequence_length=sequence_length)


def with_work(placement: Sequence[Placed], file: OnnxFile) -> tuple[Placed, ...]:
    """Return what each provider ran with its multiply-accumulates, where the nodes that have any can be told by their names."""
    if file.size_bytes > LARGEST_INLINE_BYTES or file.path.is_dir():  # counting would load it once more
        return tuple(placement)
    shown = _shown(file.path, file.sha256)
    if shown is None:
        return tuple(placement)
    nodes, work = shown
    if len(placement) == 1:  # also where it does not tell which nodes
        return (replace(placement[0], macs=sum(work.values())),)
    names = [{name for node in placed.nodes for name in (node, original_name(node))} for placed in placement]
    if any(count and not any(name in own for own in names) for name, count in work.items()):
        return tuple(placement)
    return tuple(
        replace(placed, macs=sum(work[name] for name in own & work.keys()), partition_count=_part_count(placed, own, nodes))
        for placed, own in zip(placement, names, strict=True)
    )


def _part_count(placed: Placed, own: Set[str], nodes: Sequence[Node]) -> int:
    """Count the parts of a provider that takes node by node; the processor's are what is left."""
    if placed.provider == CPU_PROVIDER or placed.partition_count > 1:
        return placed.partition_count
    outermost = [node for node in nodes if not node.scope]
    return max(1, len(partition(outermost, {node.name: node.name in own for node in outermost})))


@lru_cache(maxsize=16)
def _shown(path: Path, sha256: str) -> tuple[tuple[Node, ...], Mapping[str, int]] | None:
    """Return the nodes and their work, counted once for all targets; ``sha256`` tells files of one name apart."""
    try:
        shown = show(path, {})
    except SourceError:  # only its own provider loads it
        return None
    work = work_of_nodes(shown.proto)
    if work is None or None in work.values():
        return None
    return shown.nodes, {name: count for name, count in work.items() if count is not None}


def _keep_all_rows(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which Compress, by which a cascade picks its hard rows, picks all: so the work has a size."""
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    graphs = [copied.graph]
    for graph in graphs:
        for node in graph.node:
            if node.op_type == "Compress" and any(entry.name == "axis" for entry in node.attribute):
                node.op_type = "Identity"
                del node.input[1:], node.attribute[:]
            graphs += [entry.g for entry in node.attribute if entry.HasField("g")]
    return copied
