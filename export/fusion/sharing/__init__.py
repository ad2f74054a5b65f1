"""Sharing: what several members compute alike is stored once and runs once."""

from monograph.export.fusion.sharing.folding import fold_small_constants
from monograph.export.fusion.sharing.provenance import members_by_node, members_by_output, record_members
from monograph.export.fusion.sharing.shapes import unify_shapes
from monograph.export.fusion.sharing.share import Sharing, canonicalise, share_subgraphs
from monograph.export.fusion.sharing.tensors import lift_constants, tensor_key

__all__ = [
    "Sharing",
    "canonicalise",
    "fold_small_constants",
    "lift_constants",
    "members_by_node",
    "members_by_output",
    "record_members",
    "share_subgraphs",
    "tensor_key",
    "unify_shapes",
]
