"""The fusion compiler: many ONNX graphs to one, planned, built and proven."""

from monograph.export.fusion.cost import Cost, estimate_cost
from monograph.export.fusion.fit import fit_fusion
from monograph.export.fusion.fuse import FUSION_KEY, Fused, fuse
from monograph.export.fusion.plan import FusionPlan, Member, plan_fusion

__all__ = ["FUSION_KEY", "Cost", "Fused", "FusionPlan", "Member", "estimate_cost", "fit_fusion", "fuse", "plan_fusion"]
