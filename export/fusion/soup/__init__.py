"""Soups: a fusion in weight space, one network whose weights are the mean of its members' (Wortsman et al. 2022)."""

from monograph.export.fusion.soup.connection import MAX_BARRIER_POINTS
from monograph.export.fusion.soup.fuse import Souped, fuse_soup
from monograph.export.fusion.soup.plan import SoupPlan, plan_soup

__all__ = ["MAX_BARRIER_POINTS", "SoupPlan", "Souped", "fuse_soup", "plan_soup"]
