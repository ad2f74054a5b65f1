"""LP-FT: the head first, then everything, so that a head of fresh weights does not pull the trunk out of shape.

Source: Kumar et al. 2022, arXiv 2202.10054.
"""

from __future__ import annotations

from monograph.pipelines.adapt.methods.head import fit_head
from monograph.pipelines.adapt.methods.method import Adaptation, Outcome, fine_tuning_settings, fit_all


def lp_ft(adaptation: Adaptation) -> Outcome:
    """Train the head on features, then everything."""
    return Outcome((fit_head(adaptation), fit_all(adaptation, "full", fine_tuning_settings(adaptation))))
