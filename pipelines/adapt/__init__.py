"""Adaptation: a pretrained model for a task, chosen on validation rows, exported with a proof."""

from monograph.pipelines.adapt.methods import METHODS
from monograph.pipelines.adapt.standing import Adapted, Standing
from monograph.pipelines.adapt.verb import adapt_model

__all__ = ["METHODS", "Adapted", "Standing", "adapt_model"]
