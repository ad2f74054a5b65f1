"""The line of the verb: load, check contracts, run each model once, compare pairs from what is stored, advise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import combinations, permutations
from pathlib import Path

import numpy as np

import monograph
from monograph.models.contract import Kind
from monograph.models.data.rows import Array
from monograph.models.files import write_atomically
from monograph.pipelines.data import DataSpec, as_data_spec
from monograph.pipelines.interop.adaptation import probe
from monograph.pipelines.interop.advice import advise
from monograph.pipelines.interop.fusion import Cost, estimate_cascade, fuse_outputs
from monograph.pipelines.interop.members import Model, check_contract, largest_group, load_models, reading_contract
from monograph.pipelines.interop.representation import likeness, stitch
from monograph.pipelines.interop.result import (
    DEFAULT_STUDENTS,
    REPORT_FILE,
    RESULT_FILE,
    TOP1,
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
from monograph.pipelines.interop.running import leader_of, run_all
from monograph.pipelines.interop.study import Study, Told, cost_of, latency_ms, names_of
from monograph.pipelines.interop.yardstick import Yardstick, metric_of
from monograph.pipelines.records import write_record
from monograph.runtime.targets import find_target

_MODELS, _OUTPUTS = "models", "outputs"


def interop_models(
    models: Sequence[str],
    data: str | DataSpec,
    out: str | Path,
    *,
    quick: bool = False,
    steps: int = 400,
    students: Sequence[str] = DEFAULT_STUDENTS,
    layers: Mapping[str, Sequence[str]] | None = None,
    arguments: Mapping[str, Mapping[str, object]] | None = None,
    group: str | None = None,
    on: str | None = "cpu",
    seed: int = 0,
    on_progress: Told = lambda done, total, detail: None,
) -> Interop:
    """Evaluate how well models help one another, pair by pair and all together; write a page and a record to ``out``.

    Each model runs once over the rows; every pair is then compared from what is stored. Classifiers are judged by top-1, scores
    for yes or no by AUC, numbers by RMSE. What was done before is read from ``out``.

    Args:
        models: SOURCEs, two or more; what is no ONNX file is exported first.
        data: DATA with labels that no model was trained on, 30 rows or more.
        out: a folder; exported models, outputs, finished tasks, the record and the page lie there.
        quick: train nothing: distillation is estimated by agreement and entropy.
        steps: of each short training, whose time so does not grow with the rows.
        students: who learns beside models that are PyTorch themselves: names of students, or ``auto:1/10``.
        layers: inner tensors to compare, by model name or SOURCE; a few evenly spaced ones by default.
        arguments: of the factories of ``py:`` sources, by SOURCE.
        group: of scores, the column whose rows of one value are ranked against each other, such as a user.
        on: the target on which models and fusions are timed; None for no latency.
        seed: of halves, resamples and students.
        on_progress: told how much of a step is done.

    Raises:
        InputError: a model or the data cannot be used: fewer than 30 rows, one class, no labels.
    """
    folder, spec = Path(out), as_data_spec(data)
    assert spec is not None
    if on is not None:
        find_target(on).require_here()
    loaded = load_models(models, folder / _MODELS, arguments or {})
    on_progress(0, 1, "contracts")
    contacts = [check_contract(*pair) for pair in combinations(loaded, 2)]
    ran, rows_sha256, groups = run_all(loaded, spec, folder / _OUTPUTS, layers or {}, group, on_progress)
    own = tuple(model for model in ran if model.answers is not None)
    metric = metric_of(own[0].kind, own[0].labels)
    by_pair = {frozenset((one.first, one.second)): one for one in contacts}
    yardstick = Yardstick(metric, groups, seed)
    study = Study(spec, folder, own, by_pair, rows_sha256, yardstick, on, {})
    study = replace(study, latency_ms={model.name: latency_ms(study, model, on_progress) for model in own})
    fusions = _fusions(study, contacts, on_progress)
    soups = _soups(study, on_progress)
    on_progress(0, 1, "features of frozen trunks")
    subjects = tuple(_subject(model, study) for model in ran)
    cascades = tuple(_cascades(study))
    transfers = tuple(study.kept("probe", [one.name], Transfer, partial(probe, one, yardstick)) for one in own)
    pairs = tuple(combinations(own, 2))
    likenesses = tuple(study.kept("cka", names_of(pair), Likeness, partial(likeness, *pair)) for pair in pairs)
    stitches = tuple(study.kept("stitch", names_of(pair), Stitch, partial(stitch, *pair, seed)) for pair in permutations(own, 2))
    lessons = _lessons(study, quick, steps, students, fusions, on_progress)
    result = Interop(
        title=" · ".join(model.name for model in loaded),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        monograph=monograph.__version__,
        data=spec.source,
        row_count=len(own[0].labels),
        metric=metric,
        target=on,
        class_names=leader_of(own).file.contract.class_names,
        rows_sha256=rows_sha256,
        quick=quick,
        subjects=subjects,
        contacts=tuple(contacts),
        fusions=fusions,
        cascades=cascades,
        soups=soups,
        transfers=transfers,
        likenesses=likenesses,
        stitches=stitches,
        lessons=lessons,
        advice=advise(spec, metric, subjects, fusions, cascades, soups, transfers, lessons),
        notes=_notes(ran, quick),
    )
    _write(result, folder)
    return result


def _subject(model: Model, study: Study) -> Subject:
    file, answers = model.file, model.answers
    full = None if answers is None else _all_columns(model)
    return Subject(
        name=model.name,
        source=model.source,
        path=str(file.path),
        sha256=file.sha256,
        size_bytes=file.size_bytes,
        kind=model.kind.value,
        opset=file.opset,
        macs=model.macs,
        parts=() if answers is None else tuple(answers.parts),
        score=None if full is None else study.yardstick.score(full, model.labels),
        accuracy=None if full is None else study.yardstick.accuracy(full, model.kind, model.labels),
        latency_ms=study.latency_ms.get(model.name),
        seen_count=model.seen_count,
        reason=model.reason,
    )


def _all_columns(model: Model) -> Array:
    """Return its output; one that lacks classes has no chance for their labels, which it gets wrong."""
    given = np.asarray(model.output)
    lacking = int(model.labels.max()) + 1 - given.shape[1] if model.kind.has_classes else 0
    if lacking <= 0:
        return given
    least = 0.0 if model.kind is Kind.PROBABILITIES else float(given.min()) - 1e4
    return np.pad(given, ((0, 0), (0, lacking)), constant_values=least)


def _fusions(study: Study, contacts: Sequence[Contact], on_progress: Told) -> tuple[Fusion, ...]:
    """Return the fusions of all pairs that fit, and of the largest group that does."""
    groups = [list(pair) for pair in study.fitting_pairs()]
    whole = largest_group(study.models, contacts)
    if len(whole) > 2:
        groups.append(whole)
    made = []
    for number, group in enumerate(groups):
        on_progress(number, len(groups), "fusions")
        fusion = study.kept("fusion", names_of(group), Fusion, partial(fuse_outputs, group, study.yardstick, study.rows_sha256))
        running = [model for model, weight in zip(group, fusion.weights, strict=False) if weight > 0]
        if len(running) == 1:
            cost = Cost(running[0].macs, study.latency_ms[running[0].name])
        elif running:
            cost = study.kept(f"cost {study.target}", names_of(running), Cost, partial(cost_of, study, running))
        else:
            cost = Cost(None, None)
        made.append(replace(fusion, macs=cost.macs, latency_ms=cost.latency_ms))
    on_progress(len(groups), len(groups), "fusions")
    return tuple(made)


def _cascades(study: Study) -> Iterator[Cascade]:
    """Yield the cascades of classifiers: rows are passed on by the probability of a class, which nothing else gives."""
    if study.yardstick.metric != TOP1:
        return
    for pair in study.fitting_pairs():
        times = {model.name: study.latency_ms.get(model.name) for model in pair}
        make = partial(estimate_cascade, *pair, study.yardstick, study.rows_sha256, times)
        yield study.kept(f"cascade {times}", names_of(pair), Cascade, make)


def _soups(study: Study, on_progress: Told) -> tuple[Soup, ...]:
    made = []
    for first, second in study.fitting_pairs():
        on_progress(0, 1, f"soup of {first.name} and {second.name}")

        def make(first: Model = first, second: Model = second) -> Soup:
            from monograph.pipelines.interop.soup import try_soup

            contract = reading_contract(first, leader_of(study.models).file)
            with study.spec.open(contract, first.file.tokenizer_json) as stream:
                return try_soup(first, second, stream, study.yardstick, study.folder / _OUTPUTS)

        made.append(study.kept("soup", names_of((first, second)), Soup, make))
    return tuple(made)


def _lessons(
    study: Study, quick: bool, steps: int, students: Sequence[str], fusions: Sequence[Fusion], on_progress: Told
) -> tuple[Lesson, ...]:
    """Return what students take of teachers, or an estimate of it; only the former needs PyTorch."""
    if quick:
        from monograph.pipelines.interop.distillation import estimate_lesson

        return tuple(estimate_lesson(*pair, study.yardstick) for pair in permutations(study.models, 2))
    from monograph.pipelines.interop.lessons import teach_all

    return teach_all(study, steps, students, fusions, on_progress)


def _notes(models: Sequence[Model], quick: bool) -> tuple[str, ...]:
    made = [f"{model.name} was not run: {model.reason}" for model in models if model.reason]
    made += [
        f"{model.name} says that it has seen {model.seen_count:,} of these rows: what it reaches on them proves nothing of others"
        for model in models
        if model.seen_count
    ]
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
