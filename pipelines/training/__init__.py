"""Training: one loop, what it minimises, and checkpoints that it goes on from exactly."""

from monograph.models.data.rows import UNLABELLED
from monograph.pipelines.training.augment import OPERATIONS, Augmentation, check_augmentable
from monograph.pipelines.training.batches import Batch
from monograph.pipelines.training.loop import Epoch, Objective, Training, TrainingSettings, train

__all__ = [
    "OPERATIONS",
    "UNLABELLED",
    "Augmentation",
    "Batch",
    "Epoch",
    "Objective",
    "Training",
    "TrainingSettings",
    "check_augmentable",
    "train",
]
