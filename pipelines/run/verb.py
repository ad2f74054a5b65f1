"""The line of the verb ``run``, from a pipeline file to the report and what ships.

It reads: contracts → data → adapt or train → export → fuse → distil → measure → compare → gate → bundle → report.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from monograph.pipelines.config import PipelineConfig, load_config
from monograph.pipelines.gate.check import Outcome
from monograph.pipelines.progress import Progress
from monograph.pipelines.records import read_record, write_record
from monograph.pipelines.run.data import read_contracts, split_rows
from monograph.pipelines.run.fusion import FUSED, fuse_members
from monograph.pipelines.run.measuring import MEASUREMENT, compare_on_processor, list_entries, measure_entry, targets_here
from monograph.pipelines.run.members import adapt_member, check_members, export_member, train_member
from monograph.pipelines.run.publishing import place_file, place_folder, place_model, take_away_bundle, take_away_file
from monograph.pipelines.run.shipping import (
    BUNDLE,
    VERDICT,
    VERDICT_PAGE,
    bundle_student,
    check_shipping,
    judge_student,
    read_verdict,
    why_not_bundled,
)
from monograph.pipelines.run.step import Run
from monograph.pipelines.run.student import STUDENT, STUDENT_INT8, check_student, lacks_8_bits, student_files, teach_student
from monograph.pipelines.steps import open_workspace
from monograph.runtime.results import Measurement

REPORT, RESULT = "report.html", "result.json"


@dataclass(frozen=True)
class RunResult:
    """Where a finished run left its results."""

    folder: Path
    report: Path
    result: Path
    fused: Path
    measurements: dict[str, Measurement]
    """By ``name@target``."""
    student: Path | None = None
    """The candidate of the gate: in 8 bits where that was asked for and loses no more than is allowed."""
    outcome: Outcome | None = None
    """Of the gate."""
    bundle: Path | None = None
    exit_code: int = 0
    """What the command line returns: 1 where the gate fails or 8 bits lose too much, 3 where it is inconclusive."""


@dataclass(frozen=True)
class _Student:
    """What came of the steps behind the fused graph, where they were asked for."""

    folder: Path
    candidate: Path
    lacks_8_bits: bool


def run_pipeline(
    pipeline: str | Path, out: str | Path | None = None, overrides: Sequence[str] = (), progress: Progress | None = None
) -> RunResult:
    """Run a pipeline file; steps that an earlier run in the same folder finished are not done again.

    A verdict of the gate that blocks is written and reported, and stands in the result; it raises nothing.

    Args:
        pipeline: YAML file, see :class:`~monograph.pipelines.config.PipelineConfig`.
        out: output folder, ``runs/NAME`` by default.
        overrides: ``KEY=VALUE`` with dotted keys, applied to the file.
        progress: where to show progress; on standard error by default.

    Raises:
        InputError: the file or what it names cannot be used.
        ParityError: an exported or fused graph does not compute what it should.
    """
    began = time.monotonic()
    config, yaml_text = load_config(Path(pipeline), overrides)
    check_line(config)
    folder = Path(out) if out is not None else Path("runs") / config.name
    command = f"monograph run {pipeline}" + (f" --out {out}" if out is not None else "")
    command += "".join(f" --set {override}" for override in overrides)
    with open_workspace(folder, progress or Progress()) as workspace:
        run = Run(config, workspace)
        targets, left_out = targets_here(run)
        for note in left_out:
            workspace.progress.note(note)
        contracts = read_contracts(run)
        by_contract = {contract: split_rows(run, *contract) for contract in set(contracts.values())}
        data = {name: by_contract[contracts[name]] for name in config.models}
        trained = {name: train_member(run, name, data[name]) for name, model in config.models.items() if model.train}
        exported = {name: _member(run, name, data[name], trained.get(name)) for name in config.models}
        fused = fuse_members(run, exported, data)
        first = next(iter(data.values()))
        student = _teach(run, fused, first)
        students = {} if student is None else student_files(student.folder)
        entries = list_entries(run, targets, exported, fused, students, trained, data)
        measured = {entry.key: measure_entry(run, entry) for entry in entries}
        folders = {"fuse": fused, "data": first}
        folders |= {f"train-{name}": path for name, path in trained.items()}
        folders |= {f"{'adapt' if model.adapt else 'export'}-{name}": exported[name] for name, model in config.models.items()}
        folders |= {f"measure-{name}": path for name, path in measured.items()}
        if "cpu" in targets:
            folders["compare"] = compare_on_processor(run, entries, fused)
        if student is not None:
            folders["distill"] = student.folder
            folders |= _ship(run, student, fused, first, measured)
        told = _why_nothing_ships(run, student, folders)
        report = _report(run, folders, yaml_text, command, began, (*left_out, *([told] if told else [])))
        _publish(folder, report, folders, student)
    return _result(folder, folders, student, measured)


def check_line(config: PipelineConfig) -> None:
    """Refuse at once what a step would refuse after hours.

    Raises:
        ConfigError: a method, a loss, a student or a target cannot be used as it is asked for.
    """
    check_members(config.models)
    if config.distill is not None:
        check_student(config.distill)
    check_shipping(config)


def _member(run: Run, name: str, data: Path, trained: Path | None) -> Path:
    """Return the folder of a member's ONNX file."""
    return adapt_member(run, name, data) if run.config.models[name].adapt else export_member(run, name, data, trained)


def _teach(run: Run, fused: Path, data: Path) -> _Student | None:
    choice = run.config.distill
    if choice is None:
        return None
    folder = teach_student(run, fused, data)
    return _Student(folder, list(student_files(folder).values())[-1], lacks_8_bits(choice, folder))


def _ship(run: Run, student: _Student, fused: Path, data: Path, measured: Mapping[str, Path]) -> dict[str, Path]:
    """Judge the student and, where it may ship, bundle it."""
    if run.config.gate is None:
        return {}
    folders = {"gate": judge_student(run, student.candidate, fused, data)}
    may_ship = why_not_bundled(read_verdict(folders["gate"]), lacks_8_bits=student.lacks_8_bits) is None
    if run.config.bundle is not None and may_ship:
        folders["bundle"] = bundle_student(run, student.candidate, folders["gate"], measured)
    return folders


def _why_nothing_ships(run: Run, student: _Student | None, folders: Mapping[str, Path]) -> str | None:
    if run.config.bundle is None or student is None:
        return None
    told = why_not_bundled(read_verdict(folders["gate"]), lacks_8_bits=student.lacks_8_bits)
    if told is not None:
        run.workspace.progress.note(told)
    return told


def _report(run: Run, folders: Mapping[str, Path], yaml_text: str, command: str, began: float, notes: tuple[str, ...]) -> Path:
    parameters = {
        "folders": {name: path.name for name, path in folders.items()},
        "yaml": yaml_text,
        "command": command,
        "notes": notes,
    }

    def work(folder: Path) -> None:
        from monograph.pipelines.report import write_report
        from monograph.pipelines.summary import summarise_run

        report = summarise_run(run.config, folders, yaml_text, command, time.monotonic() - began, notes)
        write_record(folder / RESULT, report)
        write_report(report, folder / REPORT)

    return run.workspace.step("report", parameters, work)


def _publish(folder: Path, report: Path, folders: Mapping[str, Path], student: _Student | None) -> None:
    """Put what the run is for into its folder, and take away what an earlier run with other settings left there."""
    for name in (REPORT, RESULT):
        place_file(report / name, folder / name)
    place_model(folders["fuse"] / FUSED, folder / FUSED)
    made = {} if student is None else student_files(student.folder)
    for name in (STUDENT, STUDENT_INT8):
        path = folder / f"{name}.onnx"
        place_model(made[name], path) if name in made else take_away_file(path)
    for name in (VERDICT, VERDICT_PAGE):
        place_file(folders["gate"] / name, folder / name) if "gate" in folders else take_away_file(folder / name)
    if "bundle" in folders:
        place_folder(folders["bundle"] / BUNDLE, folder / BUNDLE)
    else:
        take_away_bundle(folder / BUNDLE)


def _result(folder: Path, folders: Mapping[str, Path], student: _Student | None, measured: Mapping[str, Path]) -> RunResult:
    outcome = read_verdict(folders["gate"]).outcome if "gate" in folders else None
    exit_code = 0 if outcome is None else outcome.exit_code
    if student is not None and student.lacks_8_bits:
        exit_code = 1
    return RunResult(
        folder=folder,
        report=folder / REPORT,
        result=folder / RESULT,
        fused=folder / FUSED,
        measurements={name: read_record(path / MEASUREMENT, Measurement) for name, path in measured.items()},
        student=None if student is None else folder / student.candidate.name,
        outcome=outcome,
        bundle=folder / BUNDLE if "bundle" in folders else None,
        exit_code=exit_code,
    )
