"""The fusion compiler: many ONNX graphs to one, planned, built and proven."""

from monograph.export.fusion.cost import Cost, estimate_cost
from monograph.export.fusion.fit import fit_fusion
from monograph.export.fusion.fuse import FUSION_BATCH_SIZES, FUSION_KEY, Fused, MembersApart, fuse
from monograph.export.fusion.plan import FusionPlan, Member, plan_fusion

__all__ = [
    "FUSION_BATCH_SIZES",
    "FUSION_KEY",
    "Cost",
    "Fused",
    "FusionPlan",
    "Member",
    "MembersApart",
    "estimate_cost",
    "fit_fusion",
    "fuse",
    "plan_fusion",
]
