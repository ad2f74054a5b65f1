"""Whether ONNX files look like one architecture with different weights: told from the files alone, before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monograph.models.onnx_lazy import load_proto


def look_alike(paths: Sequence[Path]) -> bool:
    """Return whether all files have the same operators in one order and weights of the same shapes; no weight is read.

    The last word has :func:`~monograph.export.fusion.horizontal.find.find_counterparts`, which follows the graphs.
    """
    first, *others = (_outline(path) for path in paths)
    return all(other == first for other in others)


def _outline(path: Path) -> tuple[list[str], list[tuple[int, tuple[int, ...]]]]:
    graph = load_proto(path).graph
    weights = sorted((tensor.data_type, tuple(tensor.dims)) for tensor in graph.initializer)
    return [node.op_type for node in graph.node], weights
