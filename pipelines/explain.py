"""Why a lowered model gives other numbers than its source, and why it may be slower."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from monograph.errors import ConfigError
from monograph.export.lowering.explain import Explanation, explain
from monograph.models.contract import random_inputs
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.pipelines.data import DataSpec, as_data_spec
from monograph.pipelines.speed import FEWEST_BLOCKS
from monograph.runtime.compare import compare
from monograph.runtime.environment import describe_environment
from monograph.runtime.extras import measure_extras
from monograph.runtime.job import Job, Settings
from monograph.runtime.measure import onnx_contender
from monograph.runtime.placement import original_name
from monograph.runtime.profiling import summarise_profile
from monograph.runtime.results import Environment, Profile, SpeedRatio
from monograph.runtime.session import usable_cores
from monograph.runtime.targets import find_target
from monograph.runtime.timing import TimingRule

_ROWS = 64
_SEED = 1
_RULE = TimingRule(min_runs=40, min_s=0.3, max_s=5.0)
_MOST_NODES = 12
_PROFILES = 3


@dataclass(frozen=True)
class OperatorTime:
    """What the nodes of one operator take in a call, by ONNX Runtime's profile."""

    operator: str
    source_s: float
    lowered_s: float


@dataclass(frozen=True)
class NodeTime:
    """A node of the lowered model that takes longer than what stands in its place in the source."""

    node: str
    operator: str
    source_s: float | None
    """None where the source has no such node."""
    lowered_s: float


@dataclass(frozen=True)
class SpeedBeside:
    """How fast the lowered model is beside its source on this processor."""

    ratio: SpeedRatio
    operators: tuple[OperatorTime, ...]
    """Those that cost most over the source first."""
    nodes: tuple[NodeTime, ...]
    """The same, of nodes."""
    environment: Environment

    @property
    def is_slower(self) -> bool:
        """True where the whole interval of the ratio lies above 1."""
        return self.ratio.ratio.low > 1

    def describe(self) -> str:
        """Return a sentence for people."""
        found = self.ratio.ratio
        verdict = "slower" if self.is_slower else "faster" if found.high < 1 else "neither faster nor slower"
        costs = ", ".join(
            f"{one.operator} {1e6 * (one.lowered_s - one.source_s):+.0f} µs"
            for one in self.operators[:3]
            if one.lowered_s > one.source_s
        )
        told = f"; what costs it: {costs}" if self.is_slower and costs else ""
        return (
            f"on {self.environment.processor} it is {verdict}: {found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}] × the "
            f"time of its source at batch {self.ratio.batch_size}{told}"
        )


@dataclass(frozen=True)
class Explained:
    """A lowered model beside its source."""

    explanation: Explanation
    rows: str
    """Where the rows came from."""
    speed: SpeedBeside | None
    """None where it was not timed."""
    warnings: tuple[str, ...] = ()


def explain_model(
    model: str | Path,
    lowered: Path,
    *,
    data: str | DataSpec | None = None,
    has_timing: bool = True,
    on_progress: Callable[[str], None] = lambda name: None,
) -> Explained:
    """Compare a lowered model with its source, tensor by tensor, and time the two in turns.

    Args:
        model: the ONNX file that was lowered.
        lowered: what it became: of any lowering whose graph runs on the processor.
        data: DATA, of which 64 rows are drawn; random rows by default.
        has_timing: whether both are timed, in blocks of fresh processes, and profiled.
        on_progress: is given what is being timed.

    Raises:
        ConfigError: the two share no tensor.
        SourceError: a file cannot be read.
    """
    source, other = read_onnx(Path(model)), read_onnx(lowered)
    if {spec.name for spec in source.contract.inputs} != {spec.name for spec in other.contract.inputs}:
        raise ConfigError(f"{lowered.name} takes other inputs than {source.path.name}: give the model that it was lowered from")
    rows, warnings = _rows(other, as_data_spec(data))
    with tempfile.TemporaryDirectory(prefix="monograph-explain-") as folder:
        explanation = explain(source, other, rows, Path(folder))
    speed = _speed(source, other, rows, on_progress) if has_timing else None
    return Explained(explanation, rows.origin, speed, warnings)


def _rows(lowered: OnnxFile, data: DataSpec | None) -> tuple[Rows, tuple[str, ...]]:
    rng = np.random.default_rng(_SEED)
    if data is not None:
        rows = data.load(lowered.contract, lowered.tokenizer_json)
        return rows.take(rng.permutation(len(rows))[:_ROWS]), ()
    drawn: list[Mapping[str, np.ndarray]] = []
    while sum(len(next(iter(batch.values()))) for batch in drawn) < _ROWS:
        drawn.append(random_inputs(lowered.contract, 1, rng))
    inputs = {name: np.concatenate([batch[name] for batch in drawn]) for name in drawn[0]}
    told = "compared on random rows, which may lie where no real one does: give rows of its own domain, --calibration DATA"
    return Rows(inputs, origin="random rows"), (told,)


def _speed(source: OnnxFile, lowered: OnnxFile, rows: Rows, on_progress: Callable[[str], None]) -> SpeedBeside:
    """Time both in turns on the same rows, as many as the lowered model takes and 1 where it is free, and profile each."""
    target = find_target("cpu")
    first = lowered.contract.inputs[0].shape[0] if lowered.contract.inputs[0].shape else 1
    size = first if isinstance(first, int) else 1
    batch = replace(rows.take(np.arange(size) % len(rows)), labels=None)
    settings = Settings((size,), rule=_RULE, profile=True)
    before, after = (
        onnx_contender(name, file.path, file.contract, file.sha256, file.size_bytes, target)
        for name, file in (("source", source), ("lowered", lowered))
    )
    found = compare([before, after], batch, settings, blocks=FEWEST_BLOCKS, on_progress=on_progress)
    profiles: list[list[Profile]] = [[], []]
    for _ in range(_PROFILES):
        for contender, made in zip((before, after), profiles, strict=True):
            on_progress(f"profile of {contender.name}")
            profile = measure_extras(Job(contender, batch, settings), target, ()).profile
            assert profile is not None
            made.append(profile)
    ratio = found.ratio(["lowered"], ["source"])
    return SpeedBeside(
        ratio=SpeedRatio(source.path.name, size, ratio, found.p50_s["lowered"], found.p50_s["source"]),
        operators=tuple(_operators(*map(_undisturbed, profiles))),
        nodes=tuple(_slower_nodes(*map(_undisturbed, profiles)))[:_MOST_NODES],
        environment=describe_environment(usable_cores(), settings.spinning),
    )


def _undisturbed(profiles: Sequence[Profile]) -> Profile:
    """Return the profile with the least time of each node: what another process took from it is not its own."""
    least = {node.name: node for node in sorted(profiles[0].nodes, key=lambda node: node.name)}
    for profile in profiles[1:]:
        for node in profile.nodes:
            if node.name in least and node.seconds < least[node.name].seconds:
                least[node.name] = node
    first = profiles[0]
    return summarise_profile(tuple(least.values()), first.batch_size, first.run_count, min(one.call_s for one in profiles))


def _operators(before: Profile, after: Profile) -> list[OperatorTime]:
    times = [{share.name: share.seconds for share in profile.by_op_type} for profile in (before, after)]
    found = [
        OperatorTime(name, times[0].get(name, 0.0), times[1].get(name, 0.0)) for name in dict.fromkeys([*times[0], *times[1]])
    ]
    return sorted(found, key=lambda one: one.source_s - one.lowered_s)


def _slower_nodes(before: Profile, after: Profile) -> Iterator[NodeTime]:
    """Yield the nodes that cost more than their namesakes, the dearest first."""
    times = {original_name(node.name): node.seconds for node in before.nodes}
    found = [NodeTime(node.name, node.op_type, times.get(original_name(node.name)), node.seconds) for node in after.nodes]
    costs = sorted(found, key=lambda one: (one.source_s or 0.0) - one.lowered_s)
    return (one for one in costs if one.lowered_s > (one.source_s or 0.0))
