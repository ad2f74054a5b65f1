"""Where the adapted model stands beside its baselines, on test rows.

Shape letters: ``c`` width of the output, ``n`` rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from monograph.models.contract import Contract
from monograph.models.data.rows import Array, Rows
from monograph.pipelines.adapt.methods import Mix, Stage
from monograph.pipelines.adapt.quality import quality_name, row_quality
from monograph.pipelines.adapt.task import Task
from monograph.runtime.metrics import score
from monograph.runtime.metrics.paired import mean_change
from monograph.runtime.results import Accuracy, Interval, Measurement, Scorecard

ONNX_FILE, WEIGHTS_FILE, RESULT_FILE, REPORT_FILE = "adapted.onnx", "adapted.safetensors", "adaptation.json", "report.html"
_SEED = 0


@dataclass(frozen=True)
class Standing:
    """A model or a baseline on the test rows."""

    name: str
    scorecard: Scorecard
    accuracy: Accuracy | None
    """Of classes."""
    quality: float
    """The mean over rows of what the comparison goes by; more is better."""


@dataclass(frozen=True)
class Trial:
    """One candidate of ``--method auto``."""

    method: str
    settings: Mapping[str, float]
    validation: float | None
    """Quality on validation rows; None where it was stopped before its first epoch ended."""
    epochs: int
    state: str
    """``finished``, ``stopped`` (by successive halving), ``out of time`` or ``failed``, with its reason."""
    seconds: float


@dataclass(frozen=True)
class Adapted:
    """What came of it."""

    onnx: Path
    weights: Path | None
    """Of the network in safetensors; None where the trunk is an ONNX file."""
    method: str
    task: str
    class_names: tuple[str, ...] | None
    model: Standing
    baselines: tuple[Standing, ...]
    quality: str
    """What the comparison goes by."""
    best_baseline: str
    gain: Interval
    """Over the best baseline, in the unit of the quality, on the same rows."""
    beats_baselines: bool
    """Whether the whole interval of the gain lies above 0."""
    row_counts: Mapping[str, int]
    stages: tuple[Stage, ...]
    mixes: tuple[Mix, ...]
    trials: tuple[Trial, ...]
    temperature: float | None
    """By which logits were divided, fitted on validation rows; it stands in the head's weights."""
    proof: str
    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...]

    def verdict(self) -> str:
        """Return in a sentence whether it was worth it."""
        unit, factor = ("points", 100) if self.quality.startswith(("top-1", "share")) else ("", 1)
        figures = f"{factor * self.gain.estimate:+.3g} [{factor * self.gain.low:+.3g}, {factor * self.gain.high:+.3g}] {unit}"
        if self.beats_baselines:
            return f"better than {self.best_baseline}, the best baseline, by {figures.strip()} of {self.quality}"
        return (
            f"NOT shown to be better than {self.best_baseline}, the best baseline: {figures.strip()} of {self.quality}; "
            "take that instead, or give more rows or another method"
        )


def standing(name: str, outputs: Array, rows: Rows, task: Task, contract: Contract) -> Standing:
    """Score outputs ``[n, c]`` as they leave a model."""
    labels = rows.required_labels()
    shaped = outputs if contract.kind.has_classes or task.width > 1 else outputs.reshape(labels.shape)
    card, accuracy = score(shaped, labels, contract)
    return Standing(name, card, accuracy, float(row_quality(outputs, labels, task).mean()))


def gain_over(outputs: Array, others: Mapping[str, Array], rows: Rows, task: Task) -> tuple[str, Interval]:
    """Return the best of ``others`` by name, and how much better ``outputs`` is on the same rows, with its interval.

    The best is chosen on the rows on which it is compared, which is to its favour.
    """
    labels = rows.required_labels()
    qualities = {name: row_quality(given, labels, task) for name, given in others.items()}
    best = max(qualities, key=lambda name: float(qualities[name].mean()))
    return best, mean_change(row_quality(outputs, labels, task), qualities[best], seed=_SEED)


def compared(
    name: str, outputs: Array, baselines: Mapping[str, Array], rows: Rows, task: Task, contract: Contract
) -> tuple[Standing, tuple[Standing, ...], str, Interval, str]:
    """Return the model's standing, the baselines', the best of those, the gain over it, and what it is measured in."""
    own = standing(name, outputs, rows, task, contract)
    others = tuple(standing(one, given, rows, task, contract) for one, given in baselines.items())
    best, gain = gain_over(outputs, baselines, rows, task)
    return own, others, best, gain, quality_name(task)
