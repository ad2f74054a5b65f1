"""The one schema of results: what was measured, on what, and how it was come by.

Plain frozen dataclasses, written and read as JSON. Units stand in the names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from monograph.runtime.instruction_sets import InstructionSet

SCHEMA_VERSION = "1.2"
"""Of a measurement's record. The second number grows when fields are added, the first when one is taken away or changed."""


class Evidence(StrEnum):
    """How a figure was come by."""

    EXECUTED = "executed"
    DEVICE = "device"
    SIMULATED = "simulated"
    PREDICTED = "predicted"

    @property
    def gives_latency(self) -> bool:
        """True where the time of a call is the time that the hardware takes."""
        return self in (Evidence.EXECUTED, Evidence.DEVICE)


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided confidence interval."""

    estimate: float
    low: float
    high: float
    confidence: float = 0.95


@dataclass(frozen=True)
class Accuracy:
    """How right the outputs are on labelled rows."""

    row_count: int
    top1: Interval
    macro_f1: float
    nll: float
    """Negative log-likelihood in nats, the mean over rows."""
    ece: float
    """Expected calibration error, 15 bins of equal width."""


@dataclass(frozen=True)
class Score:
    """One metric with its two-sided confidence interval, or the reason why these rows have none."""

    estimate: float | None
    low: float | None = None
    high: float | None = None
    confidence: float = 0.95
    note: str | None = None
    """Why there is no figure, or no interval, or on which part of the rows the figure rests."""


@dataclass(frozen=True)
class ClassScore:
    """One class, or one label of several that a row may have."""

    name: str
    row_count: int
    """Rows that have it (the support)."""
    scores: Mapping[str, Score]


@dataclass(frozen=True)
class ConfusionCell:
    """How many rows of one class were given another, or the same one; cells without rows are left out."""

    label: int
    predicted: int
    row_count: int


@dataclass(frozen=True)
class Slice:
    """The same metrics on the rows that have one value in a column."""

    column: str
    value: str
    row_count: int
    scores: Mapping[str, Score]
    note: str | None = None
    """Why nothing was scored: too few rows, for example."""


@dataclass(frozen=True)
class Scorecard:
    """All metrics of a model's kind on labelled rows."""

    task: str
    """``classification``, ``multi-label``, ``regression``, ``ranking``, ``embedding`` or ``retrieval``."""
    row_count: int
    scores: Mapping[str, Score]
    """By the name of the metric; proportions run from 0 to 1, errors are in the target's own unit."""
    classes: tuple[ClassScore, ...] = ()
    confusion: tuple[ConfusionCell, ...] = ()
    slices: tuple[Slice, ...] = ()


@dataclass(frozen=True)
class Agreement:
    """How far a target's outputs lie from a reference's on the same rows."""

    reference: str
    """``cpu``, or ``PyTorch`` with its source."""
    row_count: int
    max_abs_error: float | None
    """None where the two differ in where they are infinite or not a number: there is no error large enough."""
    relative_error: float | None
    """``max_abs_error`` as a share of the largest absolute value of the reference."""
    cosine: float
    """Of all outputs, flattened."""
    worst_row: int | None
    """The row of the largest error; None without an error."""
    top1_agreement: Interval | None
    """Share of rows with the same best class; None for a model without classes."""


@dataclass(frozen=True)
class Latency:
    """Time of single calls at one batch size, in a process of its own; raw samples are kept."""

    batch_size: int
    create_s: float
    first_run_s: float
    warmup_runs: int
    samples_ns: tuple[int, ...]
    p50_s: Interval
    p90_s: Interval
    p99_s: Interval | None
    """None where there were too few runs for a finite interval."""
    warmup_ns: tuple[int, ...] = ()
    """Raw too: what came before the change point after which the speed stayed what it was at the end."""
    device_p50_s: Interval | None = None
    """Of the work on the device alone, between two events on its stream; None where no such clock was asked."""
    device_ns: tuple[int, ...] = ()
    """Raw, of calls after the others."""


@dataclass(frozen=True)
class SpeedRatio:
    """How long a call takes beside another model's on the same target: the two in turns, in blocks of fresh processes."""

    reference: str
    """The other model."""
    batch_size: int
    ratio: Interval
    """Below 1 this model is the faster; the median over blocks with its bootstrap interval over blocks."""
    p50_s: tuple[float, ...]
    """This model's median, one a block."""
    reference_p50_s: tuple[float, ...]


@dataclass(frozen=True)
class Throughput:
    """Rows a second when calls of one batch size follow each other without a pause."""

    batch_size: int
    rows_per_s: Interval
    run_count: int


@dataclass(frozen=True)
class Load:
    """Time of calls while several callers, or arrivals at a rate, are served; raw samples are kept."""

    concurrency: int
    rate_per_s: float | None
    """Intended arrivals a second; None where each caller waits for its answer and then calls again."""
    arrivals: str | None
    """``poisson`` or ``constant``."""
    completed_per_s: float
    run_count: int
    not_begun: int
    """Calls whose time had come and that were still queued at the end: a rate that the model cannot keep up with."""
    p50_s: Interval
    """With a rate, latencies count from the intended arrival, so that a stall counts for all that queue behind it."""
    p90_s: Interval
    p99_s: Interval | None
    service_p50_s: float
    """Of calls from their real begin, which hides the queue."""
    service_p99_s: float | None
    lateness_p99_s: float | None
    """How late the generator of arrivals itself woke up; an error that the latencies contain."""
    latency_ns: tuple[int, ...]
    """Raw, in the order of arrival."""
    service_ns: tuple[int, ...]


@dataclass(frozen=True)
class LoadgenResult:
    """What MLPerf's LoadGen said."""

    scenario: str
    is_valid: bool
    """Whether the run kept the scenario's rules: its duration, its number of queries and, in Server, its latency bound."""
    summary: Mapping[str, str]
    """Its summary as it stands; times in nanoseconds where the keys say ``(ns)``."""


@dataclass(frozen=True)
class ProfiledNode:
    """A node of the optimised graph and its mean time in a call."""

    name: str
    op_type: str
    provider: str
    seconds: float
    """Its own: without what ran in its branches."""
    members: tuple[str, ...] = ()
    """Which members of a fused graph it serves: one, several that share it, or none where that is not known."""


@dataclass(frozen=True)
class Share:
    """The nodes of one kind and their part of the time of all nodes."""

    name: str
    node_count: int
    seconds: float
    """In a call, the mean."""
    share: float


@dataclass(frozen=True)
class Profile:
    """Where the time of a call goes, with profiling on, which takes time itself."""

    batch_size: int
    run_count: int
    call_s: float
    nodes_s: float
    """Of all nodes: each of the three groupings below adds up to it."""
    outside_nodes_s: float
    """What the call takes beside its nodes."""
    nodes: tuple[ProfiledNode, ...]
    """The slowest first."""
    by_op_type: tuple[Share, ...]
    by_provider: tuple[Share, ...]
    by_members: tuple[Share, ...] = ()
    """Of a fused graph: each member's own nodes, and those that several share under all their names."""


@dataclass(frozen=True)
class Placed:
    """What one execution provider ran of the optimised graph."""

    provider: str
    nodes: tuple[str, ...]
    op_types: tuple[str, ...]
    """One a node, in their order."""
    partition_count: int
    """Parts of the graph that it took as a whole; between them data crosses from provider to provider. Of a provider that takes
    node by node they are counted in the graph, and 1 where that cannot be."""
    macs: int | None = None
    """Multiply-accumulates of its nodes, for a row that takes every branch; None where they were not counted."""


@dataclass(frozen=True)
class PredictedNode:
    """What the rules of an execution provider say of one node of the graph that it is shown."""

    name: str
    op_type: str
    members: tuple[str, ...]
    """Of a fused graph, those that the node serves; empty otherwise."""
    is_supported: bool
    reason: str | None
    """Why it falls back to the processor; None where it is supported."""
    partition: int | None
    """Which part of the graph it would be compiled with; None where it falls back."""
    macs: int | None
    """Multiply-accumulates of the node; None where they cannot be counted."""


@dataclass(frozen=True)
class Prediction:
    """What an execution provider would take of a model, from its operator lists and rules. Nothing ran."""

    provider: str
    rules: str
    """Whose lists and rules, and of what version."""
    nodes: tuple[PredictedNode, ...]
    partition_sizes: tuple[int, ...]
    """Nodes of each part that the provider would take as a whole; between them data crosses to the processor."""
    node_share: float
    """Supported nodes of all nodes, 0 to 1."""
    macs_share: float | None
    """Their multiply-accumulates, of those of a row that takes every branch; None where they cannot be counted."""
    fixed_dimensions: Mapping[str, int]
    """Free dimensions of the inputs, and the sizes that the prediction holds for."""
    free_node_share: float
    """Supported nodes where those dimensions stay free, as the file has them."""
    sources: tuple[str, ...]
    """Where the rules are written down."""
    notes: tuple[str, ...] = ()
    """What the rules cannot know."""

    @property
    def supported_count(self) -> int:
        """How many nodes the provider would take."""
        return sum(node.is_supported for node in self.nodes)

    @property
    def reasons(self) -> dict[str, int]:
        """Why nodes fall back, each reason with the number of its nodes, most frequent first.

        A reason that one operator has alone, and does not name, is told with the operator.
        """
        operators: dict[str, list[str]] = {}
        for node in self.nodes:
            if node.reason is not None:
                operators.setdefault(node.reason, []).append(node.op_type)
        counts = Counter(
            {
                reason if len(set(types)) > 1 or types[0] in reason else f"{types[0]}: {reason}": len(types)
                for reason, types in operators.items()
            }
        )
        return dict(counts.most_common())


@dataclass(frozen=True)
class Environment:
    """The machine and the versions that a figure belongs to."""

    processor: str
    machine: str
    system: str
    logical_cores: int
    usable_cores: int
    """What the process may really use: the least of affinity and the cgroup's quota."""
    memory_bytes: int
    python: str
    packages: Mapping[str, str]
    threads: int
    spinning: bool
    """Whether idle threads of ONNX Runtime wait by spinning."""
    affinity: tuple[int, ...] | None = None
    """The logical cores that the process may run on."""
    quota_cores: float | None = None
    """Cores' worth of time that the cgroup gives; None where it sets no limit."""
    governor: str | None = None
    """The kernel's policy for the frequency of cores, where it tells."""
    turbo: bool | None = None
    load_before: float | None = None
    """Threads that wanted to run, the mean over the minute before measuring began; of the whole machine."""
    load_after: float | None = None
    throttled_periods: int | None = None
    """How often, while measuring, the quota was used up and threads were stopped."""
    instruction_set: InstructionSet | None = None
    """Of the processor that ran the model, which may be an emulated one; None where other kernels did, or where it is unknown."""


@dataclass(frozen=True)
class Measurement:
    """Accuracy and latency of one model on one target."""

    model: str
    sha256: str
    size_bytes: int
    target: str
    evidence: Evidence
    environment: Environment
    accuracy: Accuracy | None = None
    latency: Latency | None = None
    throughput: tuple[Throughput, ...] = ()
    placement: tuple[Placed, ...] = ()
    """What each execution provider ran; empty where no session ran."""
    prediction: Prediction | None = None
    """What the target's rules say that it would run; beside ``placement`` where it did run."""
    device: str | None = None
    """What the target says of the device that ran it."""
    provider_options: Mapping[str, str] = field(default_factory=dict)
    """What the execution provider was told, its defaults left out."""
    emulation_s: float | None = None
    """Median seconds of a call where the hardware is emulated: not a latency."""
    peak_memory_bytes: int | None = None
    """Peak resident memory of the whole measuring process."""
    speed: SpeedRatio | None = None
    """Beside the first model on the same target, where that was asked for."""
    load: Load | None = None
    loadgen: LoadgenResult | None = None
    profile: Profile | None = None
    assumed: tuple[str, ...] = ()
    """What had to be guessed about the model or the rows."""
    warnings: tuple[str, ...] = ()
    """What makes a figure doubtful."""
    scorecard: Scorecard | None = None
    """All metrics with their intervals; ``accuracy`` repeats the main ones of a classifier."""
    parity: tuple[Agreement, ...] = ()
    """Against cpu and PyTorch, where that was asked for."""
    schema_version: str = SCHEMA_VERSION

    @property
    def nodes_per_provider(self) -> dict[str, int]:
        """How many nodes of the optimised graph each provider ran."""
        return {placed.provider: len(placed.nodes) for placed in self.placement}


def to_record(result: Any) -> dict[str, Any]:
    """Turn a result dataclass into plain dicts and lists for JSON."""
    return asdict(result)
