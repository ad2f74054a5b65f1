"""What a report tells: the contenders, the proofs, the fusion, the training and the way to do it again.

Nothing here is computed from a model; a pipeline run fills these in and ``write_report`` renders them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from monograph.export.parity import ParityProof
from monograph.pipelines.report.grid import Grid
from monograph.runtime.results import Interval, Latency, Measurement, Score, Throughput

Role = Literal["member", "fused", "baseline", "teacher", "student", "adapted"]
MAIN_ROLES: tuple[Role, ...] = ("fused", "student", "adapted")
"""What a page is about: it stands out."""


@dataclass(frozen=True)
class Contender:
    """One measured thing on one target: a member, the fused graph, or another way to compute the same outputs."""

    name: str
    role: Role
    measurement: Measurement
    note: str = ""

    @property
    def is_timed(self) -> bool:
        """False where the hardware was simulated or predicted: what took that long was not the target."""
        return self.measurement.evidence.gives_latency

    @property
    def latency(self) -> Latency | None:
        """The measured latency; None where there is none or where the hardware was not real."""
        return self.measurement.latency if self.is_timed else None

    @property
    def throughput(self) -> tuple[Throughput, ...]:
        """The measured throughput by batch size; empty where the hardware was not real."""
        return self.measurement.throughput if self.is_timed else ()

    @property
    def best_throughput(self) -> Throughput | None:
        """The batch size that passes the most rows a second."""
        return max(self.throughput, key=lambda one: one.rows_per_s.estimate, default=None)


@dataclass(frozen=True)
class Proof:
    """A parity proof with the names that people know the two sides by."""

    subject: str
    reference: str
    parity: ParityProof


@dataclass(frozen=True)
class MemberWeight:
    """A member of the fusion and its weight α (of any sign; usually they sum to 1)."""

    name: str
    weight: float


@dataclass(frozen=True)
class FusionSummary:
    """How the members became one graph."""

    form: str
    """What is combined: ``logits``, ``probs``, ``geometric`` …"""
    formula: str
    members: tuple[MemberWeight, ...]
    fitted: bool
    """True where the weights were fitted to data, False where they were given."""
    note: str
    node_count: int
    size_bytes: int


@dataclass(frozen=True)
class TrainingCurve:
    """One value per epoch: losses in nats, top-1 as a share of 1. A tuple may be empty where nothing was recorded."""

    name: str
    train_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    validation_top1: tuple[float, ...]
    kept_epoch: int | None = None
    """Whose weights were kept, counted from 0; None where that is not told."""
    minimised: str = ""
    """What was minimised, where that is another loss than the one on validation rows: the two are drawn apart."""
    validation_unit: str = "nats"
    """Of the loss on validation rows."""


@dataclass(frozen=True)
class Ratio:
    """The ratio of two times that were measured in turns; below 1 the first of the two is the faster."""

    name: str
    estimate: float
    low: float
    high: float
    note: str


@dataclass(frozen=True)
class AdaptationSummary:
    """How a pretrained member learned what the rows are labelled with."""

    member: str
    method: str
    told: str
    """Whether it was worth it, in one sentence."""
    grids: tuple[Grid, ...]
    """It beside simple models on features of the frozen trunk, and what else was tried."""
    notes: tuple[str, ...]
    page: str = ""
    """Its own report, beside this one."""


@dataclass(frozen=True)
class StudentSummary:
    """What the student keeps of the fused graph, and at what cost."""

    name: str
    """What it is, such as ``separable_conv``."""
    sentence: str
    loss: str
    retention: float | None
    """Its share of the fused graph's top-1."""
    macs: int | None
    teacher_macs: int | None
    parameter_count: int | None
    grids: tuple[Grid, ...]
    notes: tuple[str, ...]
    page: str = ""
    """Its own report, beside this one."""


@dataclass(frozen=True)
class RankingGain:
    """One metric of a ranking, the mean over groups: of each member and of the fused graph, and what fusing gained."""

    metric: str
    group_count: int
    fused: Score
    members: dict[str, Score]
    best_member: str
    gain: Interval
    """Over the best member, paired by group."""


@dataclass(frozen=True)
class VerdictSummary:
    """What the gate found of the student; all of it stands in ``verdict.json`` beside the report."""

    outcome: Literal["pass", "fail", "inconclusive"]
    told: str
    """In one sentence, such as ``pass: all 4 checks passed``."""
    check_count: int
    passed_count: int
    row_count: int | None
    policy_sha256: str
    is_default_policy: bool
    grids: tuple[Grid, ...]
    """The checks, and both classifiers side by side."""
    blocking: tuple[str, ...]
    """Each check that did not pass, in words, with what would decide."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class BundleSummary:
    """The folder that ships, or why there is none."""

    path: str | None
    """Beside the report."""
    told: str
    manifest_sha256: str = ""
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """All that one pipeline run found out."""

    title: str
    created: str
    """ISO 8601."""
    version: str
    data: str
    """Which rows were used, in words."""
    contenders: tuple[Contender, ...]
    proofs: tuple[Proof, ...]
    fusion: FusionSummary | None
    curves: tuple[TrainingCurve, ...]
    ratios: tuple[Ratio, ...]
    commands: tuple[str, ...]
    """What to type to get this report again."""
    pipeline_yaml: str
    duration_s: float
    notes: tuple[str, ...]
    adaptations: tuple[AdaptationSummary, ...] = ()
    student: StudentSummary | None = None
    ranking: tuple[RankingGain, ...] = ()
    verdict: VerdictSummary | None = None
    bundle: BundleSummary | None = None


def by_target(contenders: Iterable[Contender]) -> dict[str, tuple[Contender, ...]]:
    """Group by target, both in order of appearance: times on two targets do not belong on one axis."""
    groups: dict[str, list[Contender]] = {}
    for contender in contenders:
        groups.setdefault(contender.measurement.target, []).append(contender)
    return {target: tuple(group) for target, group in groups.items()}
