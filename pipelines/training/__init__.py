"""Training: one loop, what it minimises, and checkpoints that it goes on from exactly."""

from monograph.pipelines.training.batches import UNLABELLED, Batch
from monograph.pipelines.training.loop import Epoch, Objective, Training, TrainingSettings, train

__all__ = ["UNLABELLED", "Batch", "Epoch", "Objective", "Training", "TrainingSettings", "train"]
