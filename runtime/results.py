"""The one schema of results: what was measured, on what, and how it was come by.

Plain frozen dataclasses, written and read as JSON. Units stand in the names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Evidence(StrEnum):
    """How a figure was come by."""

    EXECUTED = "executed"
    DEVICE = "device"
    SIMULATED = "simulated"
    PREDICTED = "predicted"


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


@dataclass(frozen=True)
class Throughput:
    """Rows a second when calls of one batch size follow each other without a pause."""

    batch_size: int
    rows_per_s: Interval
    run_count: int


@dataclass(frozen=True)
class Placed:
    """What one execution provider ran of the optimised graph."""

    provider: str
    nodes: tuple[str, ...]
    op_types: tuple[str, ...]
    """One a node, in their order."""
    partition_count: int
    """Parts of the graph that it took as a whole; between them data crosses from provider to provider."""


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
    emulation_s: float | None = None
    """Median seconds of a call where the hardware is emulated: not a latency."""
    peak_memory_bytes: int | None = None
    """Peak resident memory of the whole measuring process."""
    assumed: tuple[str, ...] = ()
    """What had to be guessed about the model or the rows."""
    warnings: tuple[str, ...] = ()
    """What makes a figure doubtful."""

    @property
    def nodes_per_provider(self) -> dict[str, int]:
        """How many nodes of the optimised graph each provider ran."""
        return {placed.provider: len(placed.nodes) for placed in self.placement}


def to_record(result: Any) -> dict[str, Any]:
    """Turn a result dataclass into plain dicts and lists for JSON."""
    return asdict(result)
