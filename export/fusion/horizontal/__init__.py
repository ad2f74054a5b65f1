"""Horizontal fusion: members of one architecture with different weights, run as one batch."""

from monograph.export.fusion.horizontal.rewrite import Batching, Tap, batch_members, batching_of

__all__ = ["Batching", "Tap", "batch_members", "batching_of"]
