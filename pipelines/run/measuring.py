"""The steps that measure: each contender on each target, and all on the processor in turns.

Shape letters: ``n`` rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from monograph.errors import ConfigError
from monograph.models.contract import Kind
from monograph.models.data.rows import Array, Rows
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.pipelines.records import read_record, write_record
from monograph.pipelines.run.fusion import FUSED, RECORD, FusedRecord
from monograph.pipelines.run.step import TEST, TRAIN, Run
from monograph.runtime.measure import Contender
from monograph.runtime.results import Measurement

if TYPE_CHECKING:
    from monograph.runtime.targets import Target

MEASUREMENT, OUTPUTS, LOWERED = "measurement.json", "outputs.npy", "lowered"
"""What the step writes: the record, what was given for each row of a ranking, and the folder of the form that a target takes."""
_PROCESSOR = "cpu"
_SAMPLE_SEED = 0


@dataclass(frozen=True)
class Entry:
    """One contender on one target."""

    contender: Contender
    target: str
    data: Path
    """The folder of its rows."""
    file: OnnxFile | None = None
    """None for another way to compute what the fused graph does."""

    @property
    def key(self) -> str:
        """``name@target``."""
        return f"{self.contender.name}@{self.target}"


def targets_here(run: Run) -> tuple[list[str], tuple[str, ...]]:
    """Return the targets of the pipeline that this machine has, and for each of the others a sentence why it was left out.

    Raises:
        ConfigError: one is unknown, or it has none of them.
    """
    from monograph.runtime.targets import find_target

    here, left_out = [], []
    for name in run.config.measure.targets:
        found = find_target(name).probe()
        if found.is_here:
            here.append(name)
        else:
            left_out.append(f"{name} was not measured, which this machine lacks: {found.describe()}")
    if not here:
        raise ConfigError(f"none of measure.targets is here: {'; '.join(left_out)}")
    return here, tuple(left_out)


def list_entries(
    run: Run,
    targets: list[str],
    exported: Mapping[str, Path],
    fused: Path,
    students: Mapping[str, Path],
    weights: Mapping[str, Path],
    data: Mapping[str, Path],
) -> list[Entry]:
    """All that is measured: members, the fused graph, the student, and what people run today instead."""
    from monograph.pipelines.members import baseline_contenders
    from monograph.runtime.targets import find_target

    first = next(iter(data.values()))
    members = {name: read_onnx(path / f"{name}.onnx") for name, path in exported.items()}
    others = {"fused": read_onnx(fused / FUSED)} | {name: read_onnx(path) for name, path in students.items()}
    members_on = run.config.measure.members_on
    entries = []
    for target_name in targets:
        target = find_target(target_name)
        files = others if members_on is not None and target_name not in members_on else members | others
        entries += [
            Entry(_contender(name, file, target), target_name, data.get(name, first), file)
            for name, file in files.items()
            if _is_taken(file, target)
        ]
    if _PROCESSOR in targets:
        record = read_record(fused / RECORD, FusedRecord)
        baselines = baseline_contenders(run.config, members | others, weights, record.weights, record.form)
        entries += [Entry(contender, _PROCESSOR, first) for contender in baselines.values()]
    return entries


def _is_taken(file: OnnxFile, target: Target) -> bool:
    """A target that takes a form of its own gets it from a float model, not from what was made for another."""
    from monograph.export.lowering import lowering_of

    return target.lowering is None or lowering_of(file) is None


def _contender(name: str, file: OnnxFile, target: Target) -> Contender:
    from monograph.runtime.measure import onnx_contender

    return onnx_contender(name, file.path, file.contract, file.sha256, file.size_bytes, target)


def measure_entry(run: Run, entry: Entry) -> Path:
    """Measure one contender on one target, each in a process of its own."""
    choice, row_count = run.config.measure, run.config.measure.rows.get(entry.target)
    parameters = {
        "contender": [entry.contender.name, entry.contender.sha256, entry.contender.loader],
        "measure": choice.model_dump(exclude={"targets", "members_on", "rows", "baselines", "blocks"}),
        "rows": row_count,
        "data": entry.data.name,
        "group": run.config.data.group,
    }

    def work(folder: Path) -> None:
        measurement, outputs = _measured(run, entry, row_count, folder)
        write_record(folder / MEASUREMENT, measurement)
        if outputs is not None:
            np.save(folder / OUTPUTS, outputs, allow_pickle=False)
        run.tell(", ".join(_found(measurement)))

    return run.workspace.step(f"measure-{entry.key}", parameters, work)


def _measured(run: Run, entry: Entry, row_count: int | None, folder: Path) -> tuple[Measurement, Array | None]:
    """Return the measurement and, of a ranking, the scores ``[n]`` of its rows."""
    from monograph.pipelines.measure import with_prediction
    from monograph.runtime.measure import Settings, measure
    from monograph.runtime.metrics import score
    from monograph.runtime.targets import find_target
    from monograph.runtime.timing import TimingRule

    choice, target = run.config.measure, find_target(entry.target)
    rule = TimingRule(choice.min_runs, choice.min_seconds, choice.max_seconds)
    settings = Settings(batch_sizes=tuple(choice.batch_sizes), threads=choice.threads, rule=rule)
    rows = some_rows(Rows.load(entry.data / TEST), row_count)
    contender, notes, warnings = _as_taken(entry, target, folder)
    given: list[Array] = []
    measurement = measure(
        contender, target, rows, settings, lambda job: None if job.outputs is None else given.append(np.array(job.outputs))
    )
    if entry.file is not None:
        measurement = with_prediction(measurement, entry.file, target, settings.batch_sizes[0])
    measurement = replace(
        measurement,
        assumed=tuple(dict.fromkeys((*entry.contender.contract.assumed, *notes, *measurement.assumed))),
        warnings=(*measurement.warnings, *warnings),
    )
    groups = groups_of(rows, run.config.data.group)
    if groups is None or not given or entry.contender.contract.kind is not Kind.SCORES:
        return measurement, None
    card, _ = score(given[0], rows.required_labels(), entry.contender.contract, groups=groups)
    return replace(measurement, scorecard=card), given[0].reshape(len(rows))


def some_rows(rows: Rows, count: int | None) -> Rows:
    """Return the rows, or ``count`` of them, drawn at random: they may be sorted."""
    if count is None or count >= len(rows):
        return rows
    chosen = np.sort(np.random.default_rng(_SAMPLE_SEED).choice(len(rows), count, replace=False))
    note = f"{count} of the {len(rows)} test rows were taken, drawn at random with seed {_SAMPLE_SEED}"
    return replace(rows.take(chosen), assumed=(*rows.assumed, note))


def groups_of(rows: Rows, name: str | None) -> Array | None:
    """Return which rows are ranked against each other, by the input ``name``: int ``[n]``; None where none is named."""
    if name is None:
        return None
    values = rows.inputs[name].reshape(len(rows), -1)
    return np.asarray(np.unique(values, axis=0, return_inverse=True)[1].reshape(len(rows)))


def _as_taken(entry: Entry, target: Target, folder: Path) -> tuple[Contender, tuple[str, ...], tuple[str, ...]]:
    """Return what the target is given, with notes and warnings of how it was made; training rows calibrate it."""
    if target.lowering is None or entry.file is None:
        return entry.contender, (), ()
    from monograph.pipelines.data import DataSpec
    from monograph.pipelines.lower import lower_for  # it brings PyTorch, which other targets do without

    taken = lower_for(target.lowering, entry.file, folder / LOWERED, data=None, calibration=DataSpec(str(entry.data / TRAIN)))
    return _contender(entry.contender.name, taken.file, target), taken.notes, taken.warnings


def _found(measurement: Measurement) -> list[str]:
    """Return the main figures in words."""
    from monograph.pipelines.report.merit import merit_of

    merit = merit_of(measurement)
    told = [] if merit is None else [merit.describe()]
    if measurement.latency:
        told.append(f"p50 {measurement.latency.p50_s.estimate * 1e3:.3f} ms")
    return told or [measurement.evidence.value]


def compare_on_processor(run: Run, entries: list[Entry], fused: Path) -> Path:
    """Interleaved speed of everything on the processor, for ratios that a drifting machine does not bend."""
    on_cpu = [entry for entry in entries if entry.target == _PROCESSOR]
    blocks = run.config.measure.blocks
    parameters = {
        "contenders": [[entry.contender.name, entry.contender.sha256] for entry in on_cpu],
        "blocks": blocks,
        "threads": run.config.measure.threads,
        "fused": fused.name,
    }

    def work(folder: Path) -> None:
        from monograph.runtime.compare import compare
        from monograph.runtime.measure import Settings

        total = 2 * blocks * len(on_cpu)
        done = 0

        def show(name: str) -> None:
            nonlocal done
            run.workspace.progress.update(done, total, f"{blocks} interleaved blocks, {name}")
            done += 1

        rows = Rows.load(on_cpu[0].data / TEST)
        comparison = compare(
            [entry.contender for entry in on_cpu],
            rows,
            Settings(threads=run.config.measure.threads),
            blocks=blocks,
            seed=run.config.seed,
            on_progress=show,
        )
        write_record(folder / "comparison.json", comparison)
        run.workspace.progress.update(total, total, f"{blocks} interleaved blocks")

    return run.workspace.step("compare", parameters, work)
