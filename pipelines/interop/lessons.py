"""Who learns from whom: every student from each model and from the best fusion, each lesson a task of its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from monograph.errors import InputError
from monograph.models.data.rows import Rows
from monograph.models.sources import Scheme, parse_source
from monograph.models.torch_model import TorchModel
from monograph.pipelines.interop.distillation import Pupil, Tutor, tutor_of
from monograph.pipelines.interop.fusion import mixed_as_teacher
from monograph.pipelines.interop.members import halves
from monograph.pipelines.interop.result import Fusion, Lesson, worth
from monograph.pipelines.interop.running import leader_of
from monograph.pipelines.interop.study import TASKS, Study, Told, names_of


def teach_all(
    study: Study, steps: int, students: Sequence[str], fusions: Sequence[Fusion], on_progress: Told
) -> tuple[Lesson, ...]:
    """Return what each of ``students``, and every model that is PyTorch, takes of each model and of the best fusion."""
    leader, tutors = leader_of(study.models), [tutor_of(model) for model in study.models]
    parts = halves(leader.labels, study.yardstick.seed)
    best = _worth_teaching(study, fusions)
    if best is not None:
        members = [model for model in study.models if model.name in best.members]
        tutors.append(Tutor(" + ".join(best.members), *mixed_as_teacher(members, parts[0], study.rows_sha256)))

    def rows_of(learner: TorchModel) -> Rows:
        return study.spec.load(learner.contract, learner.tokenizer_json, needs_labels=True)

    trained = [model for model in study.models if parse_source(model.source).scheme is Scheme.PYTHON]
    known = names_of(study.models)
    called = {(student if student not in known else f"new {student}"): student for student in students}
    named = [
        *((name, student, dict[str, object]()) for name, student in called.items()),
        *((model.name, model.source, dict(model.arguments)) for model in trained),
    ]
    pairs = [(one, tutor) for one in named for tutor in tutors if tutor.name != one[0]]
    pupils = {
        name: Pupil(
            name=name,
            source=source,
            arguments=arguments,
            first=tutor_of(leader),
            rows_of=rows_of,
            halves=parts,
            yardstick=study.yardstick,
            folder=study.folder / TASKS,
            rows_sha256=study.rows_sha256,
            steps=steps,
        )
        for name, source, arguments in named
    }
    made = []
    for number, ((name, source, arguments), tutor) in enumerate(pairs):
        on_progress(number, len(pairs), f"{name} learns from {tutor.name}")
        what = f"lesson {name} {source} {sorted(arguments.items())} {steps} {tutor.name}"
        names = names_of(study.models) if tutor.path is None else [tutor.name, leader.name]
        made.append(study.kept(what, names, Lesson, partial(_lesson, pupils[name], tutor)))
    on_progress(len(pairs), len(pairs), "students")
    reason = "it is an ONNX file or has a source of its own weights, which is not trained: give its py: source"
    made += [
        Lesson(teacher.name, learner.name, is_estimate=False, reason=reason)
        for learner in study.models
        if learner not in trained
        for teacher in study.models
        if teacher is not learner
    ]
    return tuple(made)


def _lesson(pupil: Pupil, tutor: Tutor) -> Lesson:
    try:
        return pupil.learn(tutor)
    except InputError as error:
        return Lesson(tutor.name, pupil.name, is_estimate=False, reason=" ".join(str(error).split()))


def _worth_teaching(study: Study, fusions: Sequence[Fusion]) -> Fusion | None:
    """Return the best fusion, if it is better than its best member on held-out rows."""
    metric = study.yardstick.metric
    better = [one for one in fusions if one.gain is not None and one.gain.amount > 0 and one.score is not None]
    return max(better, key=lambda one: worth(metric, one.score), default=None)
