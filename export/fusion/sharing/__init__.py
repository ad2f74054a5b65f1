"""Sharing: what several members compute alike is stored once and runs once."""

from monograph.export.fusion.sharing.provenance import members_by_node, members_by_output, record_members
from monograph.export.fusion.sharing.share import Sharing, share_subgraphs

__all__ = ["Sharing", "members_by_node", "members_by_output", "record_members", "share_subgraphs"]
