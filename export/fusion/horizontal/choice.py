"""Whether members of one architecture run as one batch, and on what grounds."""

from __future__ import annotations

from dataclasses import dataclass

from monograph.runtime.results import Interval


@dataclass(frozen=True)
class HorizontalChoice:
    """Batched or apart, and why."""

    batched: bool
    reason: str
    """A clause for people."""
    target: str | None = None
    """Where both were timed; None where they were not."""
    ratio: Interval | None = None
    """Latency of the batched graph over that of the members apart at batch 1: median of blocks with its 95% interval."""

    def describe(self) -> str:
        """Return one line for people."""
        return f"horizontal: {'batched' if self.batched else 'apart'}, {self.reason}"


ASKED = HorizontalChoice(True, "as asked for")
"""``--horizontal on``."""


def choose_by(ratio: Interval, target: str) -> HorizontalChoice:
    """Choose the batched graph only where its whole interval lies below that of the members apart."""
    written = f"batched / apart {ratio.estimate:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] of latency at batch 1 on {target}"
    return HorizontalChoice(ratio.high < 1, f"measured: {written}", target, ratio)
