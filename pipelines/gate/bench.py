"""Both models with the gate rows as each reads them, and how they are run: every time in a fresh process.

Shape letters: ``n`` rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from monograph.export.predict import with_work
from monograph.models.contract import Contract
from monograph.models.data.corrupt import corrupted
from monograph.models.data.rows import Array, Rows
from monograph.models.data.stream import RowStream
from monograph.models.onnx_file import OnnxFile
from monograph.pipelines.gate.answers import finite_outputs
from monograph.pipelines.gate.policy import Policy, TargetLimits
from monograph.pipelines.measure import with_prediction
from monograph.runtime.compare import Comparison, compare
from monograph.runtime.job import Contender, Job, RawRun, Settings
from monograph.runtime.measure import measure, onnx_contender
from monograph.runtime.results import Measurement
from monograph.runtime.targets import Target, find_target
from monograph.runtime.timing import FEWEST_RUNS, ONE_RUN, TimingRule

_REFERENCE_TARGET = "cpu"
_ANSWERS_ONLY = TimingRule(min_runs=FEWEST_RUNS, min_s=0.0, max_s=0.0, warmup_s=0.0)
"""Where no limit of time is set, calls are timed no longer than a measurement must."""


@dataclass(frozen=True)
class Model:
    """One of the two."""

    file: OnnxFile
    rows: RowStream | None

    @property
    def contract(self) -> Contract:
        """What it promises."""
        return self.file.contract

    @property
    def labelled_rows(self) -> RowStream:
        """The gate rows, where answers are tested, which needs them."""
        assert self.rows is not None
        return self.rows

    def contender(self, target: Target, name: str | None = None) -> Contender:
        """Return it as what is measured."""
        file = self.file
        return onnx_contender(name or file.path.stem, file.path, file.contract, file.sha256, file.size_bytes, target)

    def first_rows(self, count: int) -> Rows | None:
        """Return the first gate rows, to time calls on."""
        return None if self.rows is None else replace(self.rows, labels=None).read(0, count)


@dataclass(frozen=True)
class Bench:
    """Candidate and reference, and the rule that they are run by."""

    candidate: Model
    reference: Model
    policy: Policy
    on_progress: Callable[[str], None]

    def measure(self, target: Target) -> tuple[Measurement, Array | None]:
        """Run the candidate on all rows, and time calls if the policy asks; its outputs ``[n, …]`` where something ran."""
        limits = self.policy.targets.get(target.name, TargetLimits())
        rule = TimingRule(min_runs=self.policy.measuring.min_runs) if limits.need_latency else _ANSWERS_ONLY
        measured, outputs = self._run(self.candidate, target, rule, None)
        measured = with_prediction(measured, self.candidate.file, target, self.policy.measuring.batch_size)
        return replace(measured, placement=with_work(measured.placement, self.candidate.file)), outputs

    def answer(self, target: Target, corruption: str) -> Array:
        """Return what the candidate gives for corrupted rows: ``[n, …]``."""
        outputs = self._run(self.candidate, target, _ANSWERS_ONLY, corruption)[1]
        assert outputs is not None
        return finite_outputs(outputs, f"the candidate, rows with {corruption},")

    @cached_property
    def _expected(self) -> dict[str | None, Array]:
        return {}

    def expected(self, corruption: str | None = None) -> Array:
        """Return what the reference gives, once for all targets: ``[n, …]``."""
        if corruption not in self._expected:
            outputs = self._run(self.reference, find_target(_REFERENCE_TARGET), _ANSWERS_ONLY, corruption)[1]
            assert outputs is not None
            self._expected[corruption] = finite_outputs(outputs, "the reference")
        return self._expected[corruption]

    def start_often(self, target: Target) -> list[RawRun]:
        """Open the candidate and call it once, in each of several fresh processes."""
        rule = self.policy.measuring
        job = Job(self.candidate.contender(target), self.candidate.first_rows(rule.batch_size), self._settings(target, ONE_RUN))
        runs = []
        for number in range(rule.starts):
            self.on_progress(f"start {number + 1} of {rule.starts} on {target.name}")
            runs.append(target.run(job))
        return runs

    def time_in_turns(self, target: Target) -> Comparison:
        """Time both models in interleaved blocks, under the names ``candidate`` and ``reference``."""
        models = {"candidate": self.candidate, "reference": self.reference}
        rule = self.policy.measuring
        return compare(
            [model.contender(target, name) for name, model in models.items()],
            {name: model.first_rows(rule.batch_size) for name, model in models.items()},
            self._settings(target, _ANSWERS_ONLY),
            blocks=rule.blocks,
            seed=self.policy.seed,
            on_progress=lambda name: self.on_progress(f"{name} on {target.name}, in turns"),
            run=target.run,
        )

    def _run(self, model: Model, target: Target, rule: TimingRule, corruption: str | None) -> tuple[Measurement, Array | None]:
        self.on_progress(f"{model.file.path.stem} on {target.name}" + (f", rows with {corruption}" if corruption else ""))
        rows = self._unlabelled_rows(model, corruption)
        kept: list[RawRun] = []
        measured = measure(model.contender(target), target, rows, self._settings(target, rule), kept.append)
        return measured, kept[0].outputs

    def _settings(self, target: Target, rule: TimingRule) -> Settings:
        own, limits = self.policy.measuring, self.policy.targets.get(target.name, TargetLimits())
        # Where the policy limits what may run elsewhere, the check decides.
        is_mixed = limits.min_macs_share is not None
        return Settings(batch_sizes=(own.batch_size,), threads=own.threads, rule=rule, allow_fallback=is_mixed)

    def _unlabelled_rows(self, model: Model, corruption: str | None) -> RowStream | None:
        """Return the rows without labels: what is right is judged row by row, and not by the harness."""
        if model.rows is None:
            return None
        rows = replace(model.rows, labels=None, slices={}, groups=None)
        if corruption is None or self.policy.robustness is None:
            return rows
        return corrupted(rows, corruption, self.policy.robustness.severity, self.policy.seed)
