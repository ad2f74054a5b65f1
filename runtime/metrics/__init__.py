"""How right the outputs are, by what the model's numbers mean: one file a task, chosen in ``score``."""

from monograph.runtime.metrics.classification import as_probabilities, expected_calibration_error, score_classifier
from monograph.runtime.metrics.score import score

__all__ = ["as_probabilities", "expected_calibration_error", "score", "score_classifier"]
