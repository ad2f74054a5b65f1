"""The line of the verb: load, check contracts, run each model once, compare pairs from what is stored, advise."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import combinations, permutations
from pathlib import Path
from typing import TypeVar

import numpy as np

import monograph
from monograph.errors import ConfigError, InputError, WorkerError
from monograph.export.fusion.align import class_leader
from monograph.models.data.rows import Rows
from monograph.models.files import write_atomically
from monograph.models.torch_model import TorchModel
from monograph.pipelines.data import DataSpec, as_data_spec
from monograph.pipelines.interop.adaptation import probe
from monograph.pipelines.interop.advice import advise
from monograph.pipelines.interop.fusion import estimate_cascade, fuse_outputs
from monograph.pipelines.interop.members import (
    Model,
    check_contract,
    check_rows,
    fails_on,
    largest_group,
    load_models,
    read_rows,
)
from monograph.pipelines.interop.representation import likeness, stitch
from monograph.pipelines.interop.result import (
    REPORT_FILE,
    RESULT_FILE,
    Cascade,
    Contact,
    Fusion,
    Interop,
    Lesson,
    Likeness,
    Soup,
    Stitch,
    Subject,
    Transfer,
)
from monograph.pipelines.interop.taps import ask
from monograph.pipelines.records import read_record, write_record
from monograph.runtime.measure import Settings, measure, onnx_contender
from monograph.runtime.metrics import score_classifier
from monograph.runtime.targets import find_target

T = TypeVar("T")
Told = Callable[[int, int, str], None]
_MODELS, _OUTPUTS, _TASKS = "models", "outputs", "tasks"


@dataclass(frozen=True)
class _Study:
    """What all tasks share."""

    spec: DataSpec
    folder: Path
    models: tuple[Model, ...]
    """Those that ran on the rows."""
    contacts: Mapping[frozenset[str], Contact]
    rows_sha256: str
    seed: int
    latency_ms: Mapping[str, float | None]

    def kept(self, what: str, names: Sequence[str], kind: type[T], make: Callable[[], T]) -> T:
        """Return the record of a task, which is done once: a study that was stopped goes on where it was."""
        files = " ".join(model.file.sha256 for name in names for model in self.models if model.name == name)
        told = f"{what} {' '.join(names)} {files} {self.rows_sha256} {self.seed} {monograph.__version__}"
        path = self.folder / _TASKS / f"{what.split()[0]}-{hashlib.sha256(told.encode()).hexdigest()[:24]}.json"
        if path.exists():
            return read_record(path, kind)
        made = make()
        with write_atomically(path) as staged:
            write_record(staged, made)
        return made

    def fitting_pairs(self) -> Iterator[tuple[Model, Model]]:
        """Yield the pairs that can be fused."""
        for pair in combinations(self.models, 2):
            if self.contacts[frozenset(model.name for model in pair)].fits:
                yield pair


def evaluate_interop(
    models: Sequence[str],
    data: str | DataSpec,
    out: str | Path,
    *,
    quick: bool = False,
    epochs: int = 5,
    student: str = "auto:1/10",
    layers: Mapping[str, Sequence[str]] | None = None,
    arguments: Mapping[str, Mapping[str, object]] | None = None,
    on: str | None = "cpu",
    seed: int = 0,
    on_progress: Told = lambda done, total, detail: None,
) -> Interop:
    """Evaluate how well models help one another, pair by pair and all together; write a page and a record to ``out``.

    Each model runs once over the rows; every pair is then compared from what is stored.

    Args:
        models: SOURCEs, two or more; what is no ONNX file is exported first.
        data: DATA with labels that no model was trained on, 30 rows or more.
        out: a folder; exported models, outputs, finished tasks, the record and the page lie there.
        quick: train nothing: distillation is estimated by agreement and entropy.
        epochs: of each short training.
        student: who learns beside models that are PyTorch themselves.
        layers: inner tensors to compare, by model name or SOURCE; a few evenly spaced ones by default.
        arguments: of the factories of ``py:`` sources, by SOURCE.
        on: the target on which single models are timed; None for no latency.
        seed: of halves, resamples and students.
        on_progress: told how much of a step is done.

    Raises:
        InputError: a model or the data cannot be used: fewer than 30 rows, one class, no labels.
    """
    folder, spec = Path(out), as_data_spec(data)
    assert spec is not None
    loaded = load_models(models, folder / _MODELS, arguments or {})
    on_progress(0, 1, "contracts")
    contacts = [check_contract(*pair) for pair in combinations(loaded, 2)]
    ran, rows_sha256, class_names = _run_all(loaded, spec, folder / _OUTPUTS, layers or {}, on_progress)
    own = tuple(model for model in ran if model.answers is not None)
    by_pair = {frozenset((one.first, one.second)): one for one in contacts}
    study = _Study(spec, folder, own, by_pair, rows_sha256, seed, {})
    study = replace(study, latency_ms={model.name: _latency_ms(study, model, on) for model in own})
    subjects = tuple(_subject(model, study) for model in ran)
    fusions = _fusions(study, contacts, on_progress)
    cascades = [
        study.kept("cascade", _names(pair), Cascade, partial(estimate_cascade, *pair, rows_sha256, seed))
        for pair in study.fitting_pairs()
    ]
    soups = _soups(study, on_progress)
    on_progress(0, 1, "features of frozen trunks")
    transfers = [study.kept("probe", [one.name], Transfer, partial(probe, one, seed)) for one in own]
    likenesses = [study.kept("cka", _names(pair), Likeness, partial(likeness, *pair)) for pair in combinations(own, 2)]
    stitches = [study.kept("stitch", _names(pair), Stitch, partial(stitch, *pair, seed)) for pair in permutations(own, 2)]
    lessons = _lessons(study, quick, epochs, student, on_progress)
    result = Interop(
        title=" · ".join(model.name for model in loaded),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        monograph=monograph.__version__,
        data=spec.source,
        row_count=len(own[0].labels),
        class_names=class_names,
        rows_sha256=rows_sha256,
        quick=quick,
        subjects=subjects,
        contacts=tuple(contacts),
        fusions=tuple(fusions),
        cascades=tuple(cascades),
        soups=tuple(soups),
        transfers=tuple(transfers),
        likenesses=tuple(likenesses),
        stitches=tuple(stitches),
        lessons=tuple(lessons),
        advice=advise(spec.source, subjects, fusions, cascades, soups, transfers, lessons),
        notes=_notes(ran, quick),
    )
    _write(result, folder)
    return result


def _run_all(
    models: Sequence[Model], spec: DataSpec, folder: Path, layers: Mapping[str, Sequence[str]], on_progress: Told
) -> tuple[list[Model], str, tuple[str, ...] | None]:
    """Run each model over the rows, one at a time: no more than the rows of one are in memory."""
    known = {name for model in models for name in (model.name, model.source)}
    if unknown := [name for name in layers if name not in known]:
        raise ConfigError(f"--layer names {unknown[0]!r}, which is no model: choose from {', '.join(m.name for m in models)}")
    classifiers = [model for model in models if model.file.contract.kind.has_classes]
    leader = classifiers[class_leader([model.file.contract for model in classifiers]) or 0] if classifiers else models[0]
    ran, sha256 = [], ""
    for model in models:
        kind = model.file.contract.kind
        if not kind.has_classes:
            ran.append(replace(model, reason=f"it gives {kind.value}: only classifiers are compared on rows"))
            continue
        try:
            rows = read_rows(model, spec, leader.file)
        except InputError as error:
            ran.append(fails_on(model, error))
            continue
        check_rows(rows)
        taps = layers.get(model.name, layers.get(model.source, ()))
        told = partial(_told_rows, on_progress, model.name)
        try:
            answers = ask(model.file, rows, folder, taps, told)
        except ConfigError:
            raise  # of a layer that the user named
        except (InputError, WorkerError) as error:
            ran.append(replace(model, reason=" ".join(str(error).split())))
            continue
        sha256 = sha256 or rows.sha256()
        ran.append(replace(model, answers=answers, labels=np.asarray(rows.required_labels(), np.int64)))
    if not any(model.answers is not None for model in ran):
        raise ConfigError(f"no model runs on {spec.source}: " + "; ".join(f"{one.name}: {one.reason}" for one in ran))
    return ran, sha256, leader.file.contract.class_names


def _told_rows(on_progress: Told, name: str, done: int, total: int) -> None:
    on_progress(done, total, f"outputs of {name}")


def _latency_ms(study: _Study, model: Model, on: str | None) -> float | None:
    """Return the median of a row, measured alone in a process of its own."""
    if on is None:
        return None

    def timed() -> dict[str, float | None]:
        target, file = find_target(on), model.file
        contender = onnx_contender(model.name, file.path, file.contract, file.sha256, file.size_bytes, target)
        latency = measure(contender, target, None, Settings(batch_sizes=(1,))).latency
        return {"ms": None if latency is None or latency.p50_s is None else 1e3 * latency.p50_s.estimate}

    return study.kept(f"latency {on}", [model.name], dict[str, float | None], timed)["ms"]


def _subject(model: Model, study: _Study) -> Subject:
    file, answers = model.file, model.answers
    return Subject(
        name=model.name,
        source=model.source,
        path=str(file.path),
        sha256=file.sha256,
        size_bytes=file.size_bytes,
        kind=file.contract.kind.value,
        opset=file.opset,
        macs=model.macs,
        parts=() if answers is None else tuple(answers.parts),
        accuracy=None if answers is None else score_classifier(_in_order_of(model), model.labels),
        latency_ms=study.latency_ms.get(model.name),
        reason=model.reason,
    )


def _in_order_of(model: Model) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return its probabilities; one that lacks classes has no column for their labels, which it gets wrong."""
    given = model.probabilities
    lacking = int(model.labels.max()) + 1 - given.shape[1]
    return np.pad(given, ((0, 0), (0, lacking))) if lacking > 0 else given


def _fusions(study: _Study, contacts: Sequence[Contact], on_progress: Told) -> list[Fusion]:
    """Return the fusions of all pairs that fit, and of the largest group that does."""
    groups = [list(pair) for pair in study.fitting_pairs()]
    whole = largest_group(study.models, contacts)
    if len(whole) > 2:
        groups.append(whole)
    made = []
    for number, group in enumerate(groups):
        on_progress(number, len(groups), "fusions")
        times, counts = [study.latency_ms[one.name] for one in group], [one.macs for one in group]
        contact = study.contacts[frozenset(_names(group))] if len(group) == 2 else None
        macs = contact.macs if contact else sum(filter(None, counts)) if None not in counts else None
        latency = sum(filter(None, times)) if None not in times else None
        make = partial(fuse_outputs, group, study.rows_sha256, latency, macs, study.seed)
        made.append(study.kept(f"fusion {latency} {macs}", _names(group), Fusion, make))
    return made


def _soups(study: _Study, on_progress: Told) -> list[Soup]:
    made = []
    for first, second in study.fitting_pairs():
        on_progress(0, 1, f"soup of {first.name} and {second.name}")

        def make(first: Model = first, second: Model = second) -> Soup:
            from monograph.pipelines.interop.soup import try_soup

            rows = study.spec.load(first.file.contract, first.file.tokenizer_json, needs_labels=True)
            return try_soup(first, second, rows, study.folder / _OUTPUTS)

        made.append(study.kept("soup", _names((first, second)), Soup, make))
    return made


def _lessons(study: _Study, quick: bool, epochs: int, student: str, on_progress: Told) -> list[Lesson]:
    from monograph.pipelines.interop.distillation import estimate_lesson, teach_all

    if quick:
        return [estimate_lesson(*pair) for pair in permutations(study.models, 2)]
    names = _names(study.models)

    def rows_of(learner: TorchModel) -> Rows:
        return study.spec.load(learner.contract, learner.tokenizer_json, needs_labels=True)

    make = partial(
        teach_all, study.models, rows_of, study.folder / _OUTPUTS / "students", epochs, study.seed, student, on_progress
    )
    return study.kept(f"lessons {epochs} {student}", names, list[Lesson], make)


def _names(models: Sequence[Model]) -> list[str]:
    return [model.name for model in models]


def _notes(models: Sequence[Model], quick: bool) -> tuple[str, ...]:
    made = [f"{model.name} was not run: {model.reason}" for model in models if model.reason]
    made += [f"{model.name}: {text}" for model in models for text in model.file.contract.assumed]
    made.append("All figures hold only for rows that no model was trained on.")
    if quick:
        made.append("--quick: nothing was trained; what a student can take of a teacher is estimated by agreement and entropy.")
    return tuple(dict.fromkeys(made))


def _write(result: Interop, folder: Path) -> None:
    """Write the page, then the record, which says that all is done."""
    from monograph.pipelines.report.interop_page import write_interop_page

    write_interop_page(result, folder / REPORT_FILE)
    with write_atomically(folder / RESULT_FILE) as staged:
        write_record(staged, result)
