"""Sharing: what several members compute alike is stored once and runs once."""

from monograph.export.fusion.sharing.share import Sharing, share_subgraphs

__all__ = ["Sharing", "share_subgraphs"]
