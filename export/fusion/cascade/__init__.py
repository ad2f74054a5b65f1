"""Cascades: the large member runs only for the rows of which the small one is unsure, inside one graph."""

from monograph.export.fusion.cascade.fit import MAX_DROP_POINTS, CascadeFit, fit_cascade
from monograph.export.fusion.cascade.fuse import CascadeApart, Cascaded, CascadeProof, draw_cases, fuse_cascade
from monograph.export.fusion.cascade.gates import GATES, Gate
from monograph.export.fusion.cascade.lint import RowFinding, lint_rows
from monograph.export.fusion.cascade.plan import CascadeCost, CascadePlan, plan_cascade

__all__ = [
    "GATES",
    "MAX_DROP_POINTS",
    "CascadeApart",
    "CascadeCost",
    "CascadeFit",
    "CascadePlan",
    "CascadeProof",
    "Cascaded",
    "Gate",
    "RowFinding",
    "draw_cases",
    "fit_cascade",
    "fuse_cascade",
    "lint_rows",
    "plan_cascade",
]
