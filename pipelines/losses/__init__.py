"""Losses that a student is distilled with. A new one is a short file beside these and an entry here.

`Hint` is not among them, because it holds weights that are learned.
"""

from __future__ import annotations

from monograph.models.data.rows import UNLABELLED
from monograph.pipelines.losses.cosine import COSINE
from monograph.pipelines.losses.dist import DIST
from monograph.pipelines.losses.dkd import DKD
from monograph.pipelines.losses.features import ATTENTION, Hint
from monograph.pipelines.losses.kd import KD
from monograph.pipelines.losses.loss import DistillationLoss, LossOptions, mixed, options_for
from monograph.pipelines.losses.multi_teacher import combine_teachers, confidence_weights, fixed_weights
from monograph.pipelines.losses.regression import MSE
from monograph.pipelines.losses.relational import RKD
from monograph.pipelines.losses.soft_labels import SOFT_LABELS
from monograph.pipelines.losses.standardised import STANDARDISED_KD

LOSSES: dict[str, DistillationLoss] = {
    "soft-labels": SOFT_LABELS,
    "kd": KD,
    "dkd": DKD,
    "dist": DIST,
    "standardised-kd": STANDARDISED_KD,
    "mse": MSE,
    "cosine": COSINE,
    "rkd": RKD,
    "attention": ATTENTION,
}

__all__ = [
    "LOSSES",
    "UNLABELLED",
    "DistillationLoss",
    "Hint",
    "LossOptions",
    "combine_teachers",
    "confidence_weights",
    "fixed_weights",
    "mixed",
    "options_for",
]
