"""Sharing: what several members compute alike is stored once and runs once."""

from monograph.export.fusion.sharing.shapes import unify_shapes
from monograph.export.fusion.sharing.share import Sharing, canonicalise, share_subgraphs
from monograph.export.fusion.sharing.tensors import lift_constants, tensor_key

__all__ = ["Sharing", "canonicalise", "lift_constants", "share_subgraphs", "tensor_key", "unify_shapes"]
