"""Training: one loop, what it minimises, and checkpoints that it goes on from exactly."""

from monograph.models.data.rows import UNLABELLED
from monograph.pipelines.training.augment import OPERATIONS, Augmentation, check_augmentable
from monograph.pipelines.training.batches import Batch
from monograph.pipelines.training.loop import Epoch, Training, TrainingSettings, train
from monograph.pipelines.training.objectives import Objective, own_objective

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
    "own_objective",
    "train",
]
