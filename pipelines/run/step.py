"""What every step of a run is given."""

from __future__ import annotations

from dataclasses import dataclass

from monograph.pipelines.config import PipelineConfig
from monograph.pipelines.steps import Workspace

TRAIN, VALIDATION, TEST = "train.npz", "validation.npz", "test.npz"
"""The parts of the data in the folder of its step; each is DATA."""


@dataclass(frozen=True)
class Run:
    """A pipeline, and where its steps are done."""

    config: PipelineConfig
    workspace: Workspace

    def tell(self, detail: str) -> None:
        """Show what came of a step beside its name."""
        self.workspace.progress.update(1, 1, detail)
