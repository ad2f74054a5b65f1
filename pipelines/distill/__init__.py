"""The verb ``distill``: a student learns what one or several teachers know, is exported, proven, and set beside them."""

from monograph.pipelines.distill.answers import KeptAnswers, LiveAnswers, find_answers
from monograph.pipelines.distill.hints import Hints
from monograph.pipelines.distill.recipe import CONFIDENCE, Recipe, teaching_objective
from monograph.pipelines.distill.standing import Distilled, Standing
from monograph.pipelines.distill.verb import distill_model

__all__ = [
    "CONFIDENCE",
    "Distilled",
    "Hints",
    "KeptAnswers",
    "LiveAnswers",
    "Recipe",
    "Standing",
    "distill_model",
    "find_answers",
    "teaching_objective",
]
