"""The one figure by which a model is judged first: top-1 of a classifier, and what fits of the others."""

from __future__ import annotations

from dataclasses import dataclass

from monograph.pipelines.report.formats import percent, significant
from monograph.runtime.results import Accuracy, Interval, Measurement

_LABELS = {
    "ndcg@10": "NDCG@10",
    "auc": "AUC",
    "map": "mAP",
    "mae": "mean absolute error",
    "cosine": "cosine",
}
"""The first that was scored is the one, in this order: of a ranking within groups, of scores, labels, numbers and vectors."""
_ERRORS = ("mae",)
TOP1 = "top-1"


@dataclass(frozen=True)
class Merit:
    """A metric's value with its interval, which has no room where none is known."""

    label: str
    interval: Interval
    row_count: int
    is_error: bool = False
    """Whether less is better."""

    @property
    def is_share(self) -> bool:
        """Whether people read it in percent, and differences in points."""
        return self.label == TOP1

    @property
    def heading(self) -> str:
        """Of an axis, with its unit."""
        return "Top-1, %" if self.is_share else f"{self.label[0].upper()}{self.label[1:]}"

    @property
    def drawn(self) -> Interval:
        """The value and its interval in the unit of that axis."""
        scale = 100 if self.is_share else 1
        return Interval(*(scale * value for value in (self.interval.estimate, self.interval.low, self.interval.high)))

    def value(self) -> str:
        """Return the figure with its interval: ``97.9% [97.2, 98.5]``, ``0.412 [0.402, 0.421]``."""
        if self.is_share:
            shown = percent(self.interval)
            return f"{shown.value}% {shown.bounds}"
        bounds = f" [{significant(self.interval.low)}, {significant(self.interval.high)}]" if self.has_interval else ""
        return f"{significant(self.interval.estimate)}{bounds}"

    @property
    def has_interval(self) -> bool:
        """Whether the rows gave one."""
        return self.interval.low < self.interval.high

    def describe(self) -> str:
        """Return the figure with its name, for people."""
        return f"{self.value()} {TOP1}" if self.is_share else f"{self.label} {self.value()}"

    def lead(self, other: Merit) -> float:
        """Return by how much it is better than ``other``: in points of a share, else as the metric counts."""
        difference = self.interval.estimate - other.interval.estimate
        if self.is_share:
            return round(100 * difference, 1)
        return -difference if self.is_error else difference


def top1_of(accuracy: Accuracy) -> Merit:
    """Return the merit of a classifier."""
    return Merit(TOP1, accuracy.top1, accuracy.row_count)


def merit_of(measurement: Measurement) -> Merit | None:
    """Return the figure by which what was measured is judged; None where nothing was scored."""
    if measurement.accuracy is not None:
        return top1_of(measurement.accuracy)
    card = measurement.scorecard
    for name, label in _LABELS.items():
        score = card.scores.get(name) if card is not None else None
        if card is not None and score is not None and score.estimate is not None:
            low = score.estimate if score.low is None else score.low
            high = score.estimate if score.high is None else score.high
            return Merit(label, Interval(score.estimate, low, high, score.confidence), card.row_count, name in _ERRORS)
    return None
