"""Full fine-tuning: every weight is trained from where it was pretrained, the head from where it is.

Source: Yosinski et al. 2014, arXiv 1411.1792; for transformers Devlin et al. 2019, arXiv 1810.04805.
"""

from __future__ import annotations

from monograph.pipelines.adapt.methods.method import Adaptation, Outcome, fine_tuning_settings, fit_all


def full(adaptation: Adaptation) -> Outcome:
    """Train everything at once."""
    return Outcome((fit_all(adaptation, "full", fine_tuning_settings(adaptation)),))
