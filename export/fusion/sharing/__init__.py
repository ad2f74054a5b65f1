"""Sharing: what several members compute alike is stored once and runs once."""

from monograph.export.fusion.sharing.shapes import unify_shapes
from monograph.export.fusion.sharing.share import Sharing, share_subgraphs
from monograph.export.fusion.sharing.tensors import lift_constants

__all__ = ["Sharing", "lift_constants", "share_subgraphs", "unify_shapes"]
