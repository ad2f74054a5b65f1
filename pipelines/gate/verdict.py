"""What the gate found: every check, and what they come to together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monograph.pipelines.gate.check import Check, Outcome
from monograph.runtime.results import Interval, Measurement

VERDICT_VERSION = 1


@dataclass(frozen=True)
class Subject:
    """One of the two models."""

    path: str
    sha256: str
    size_bytes: int
    seen: Mapping[str, int]
    """What rows it says it has seen, and how many."""


@dataclass(frozen=True)
class Beside:
    """Both classifiers side by side on one target: told, and tested by nothing."""

    target: str
    top1: Interval
    reference_top1: Interval
    lost: int
    """Rows that the reference alone has right."""
    gained: int
    mcnemar_p: float
    """Of no difference at all. A large one is no evidence that there is none, and no check asks for it."""


@dataclass(frozen=True)
class Verdict:
    """May ``candidate`` take the place of ``reference``?"""

    outcome: Outcome
    """Fail where any check fails; else inconclusive where any is open, which blocks too; else pass."""
    candidate: Subject
    reference: Subject
    data: str | None
    row_count: int | None
    rows_sha256: str | None
    """Over the digests of the raw rows, and the labels."""
    evidence: Mapping[str, str]
    """What a figure is worth, by target."""
    policy: Mapping[str, Any]
    policy_sha256: str
    """Of the policy as canonical JSON: limits that were fixed beforehand are known again by it."""
    is_default_policy: bool
    checks: tuple[Check, ...]
    beside: tuple[Beside, ...]
    notes: tuple[str, ...]
    """What had to be assumed, and what makes a figure doubtful."""
    measurements: tuple[Measurement, ...]
    """Of the candidate, by target; raw times included."""
    created: str
    monograph: str
    """The version that judged."""
    version: int = VERDICT_VERSION

    def with_outcome(self, outcome: Outcome) -> list[Check]:
        """Return the checks that came to ``outcome``."""
        return [check for check in self.checks if check.outcome is outcome]

    def describe(self) -> str:
        """Return the verdict in one sentence."""
        failed, undecided = self.with_outcome(Outcome.FAIL), self.with_outcome(Outcome.INCONCLUSIVE)
        told = [f"{len(failed)} of {len(self.checks)} checks failed"] if failed else []
        told += [f"{len(undecided)} of {len(self.checks)} undecided, which blocks too"] if undecided else []
        return f"{self.outcome.value}: {', '.join(told) or f'all {len(self.checks)} checks passed'}"
