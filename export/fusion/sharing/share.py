"""Run equal subgraphs once, store equal weights once, make one layer of linear heads on one trunk."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from monograph.export.fusion.sharing.canonical import remove_copies, remove_default_attributes, remove_zero_biases
from monograph.export.fusion.sharing.folding import fold_small_constants, fuse_padding, remove_useless_casts, widen_axes
from monograph.export.fusion.sharing.heads import fold_linear_heads
from monograph.export.fusion.sharing.numbering import merge_equal_nodes
from monograph.export.fusion.sharing.shapes import unify_shapes
from monograph.export.fusion.sharing.tensors import deduplicate_weights, lift_constants, weights_size


@dataclass(frozen=True)
class Sharing:
    """What sharing saved: nodes, weights (how many) and their bytes, before and after."""

    nodes_before: int
    nodes_after: int
    weights_before: int
    weights_after: int
    bytes_before: int
    bytes_after: int
    heads_folded: int
    """Linear heads that became one layer."""

    def describe(self) -> str:
        """Return one line for people."""
        saved = self.bytes_before - self.bytes_after
        folded = f", {self.heads_folded} linear heads folded into one" if self.heads_folded else ""
        return (
            f"shared: {self.nodes_before} to {self.nodes_after} nodes, {self.weights_before} to {self.weights_after} weights, "
            f"{saved / 1e6:.1f} of {self.bytes_before / 1e6:.1f} MB saved{folded}"
        )


def canonicalise(model: ir.Model) -> None:
    """Rewrite ``model`` in place so that equal things are written alike; numbers stay equal bit for bit.

    Only a mean over the axes of a picture, which becomes GlobalAveragePool, may round differently.
    """
    lift_constants(model)
    remove_copies(model)
    remove_useless_casts(model)
    widen_axes(model)
    remove_zero_biases(model)
    unify_shapes(model)
    fold_small_constants(model)
    fuse_padding(model)
    remove_default_attributes(model)


def share_subgraphs(model: ir.Model) -> Sharing:
    """Rewrite ``model`` in place so that what it computes twice is computed once, as :func:`canonicalise` and beyond.

    Folded heads round differently too: their weights are summed in float64 and cast to float32.
    """
    nodes_before = _node_count(model)
    weights_before, bytes_before = weights_size(model)
    canonicalise(model)
    deduplicate_weights(model)
    merge_equal_nodes(model.graph)
    heads_folded = fold_linear_heads(model)
    RemoveUnusedNodesPass()(model)
    weights_after, bytes_after = weights_size(model)
    return Sharing(nodes_before, _node_count(model), weights_before, weights_after, bytes_before, bytes_after, heads_folded)


def _node_count(model: ir.Model) -> int:
    return sum(1 for _ in model.graph.all_nodes())
