"""What to do with the models, in order, each with its reason and the command for it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence

from monograph.pipelines.interop.result import Advice, Cascade, Fusion, Lesson, Soup, Subject, Transfer

_FEWEST_SAVED = 0.9
"""A cascade is worth it below this share of the dear model's multiply-accumulates."""
_FEWEST_HARD = 0.005
"""Of the rows: with fewer to pass on, the dear model is not needed at all."""
_LARGEST_LOSS = 0.005
"""Of top-1, a share, that a cascade or a soup may lose to be advised."""


def advise(
    data: str,
    subjects: Sequence[Subject],
    fusions: Sequence[Fusion],
    cascades: Sequence[Cascade],
    soups: Sequence[Soup],
    transfers: Sequence[Transfer],
    lessons: Sequence[Lesson],
) -> tuple[Advice, ...]:
    """Return the advice, what is shown by the rows before what is not, the largest gain first."""
    by_name = {subject.name: subject for subject in subjects}
    made = [
        *_fusions(fusions, by_name, data),
        *_cascades(cascades, by_name, data),
        *_soups(soups, by_name),
        *_lessons(lessons, by_name, data),
        *_transfers(transfers, by_name, data),
    ]
    return tuple(sorted(made, key=lambda one: not one.is_shown))


def _fusions(fusions: Sequence[Fusion], subjects: Mapping[str, Subject], data: str) -> Iterator[Advice]:
    """Yield the best fusion whose gain is shown, or that none is, and who adds nothing to it."""
    told = [one for one in fusions if one.gain is not None and one.accuracy is not None]
    if not told:
        return
    shown = [one for one in told if one.gain is not None and one.gain.low > 0]
    if not shown:
        best = max(told, key=_gained)
        yield Advice(
            f"fuse nothing: of {len(told)} fusions none is shown to be better than its better member",
            f"the best, {_joined(best.members)}, gains {_gain(best)} on held-out rows",
        )
        return
    best = max(shown, key=lambda one: (_top1(one), -len(one.members)))
    running = [(name, weight) for name, weight in zip(best.members, best.weights, strict=True) if weight > 0]
    weights = [f"{weight:.4g}" for _, weight in running]
    names = [name for name, _ in running]
    assert best.gain is not None
    yield Advice(
        f"fuse {_joined(names)} with weights {'/'.join(f'{weight:.2f}' for _, weight in running)}: {_gain(best)}",
        f"over {best.gain.best_member}, held out; {best.gain.luck_probability:.0%} likely to be luck{_why(best)}",
        _command("fuse", *(subjects[name].path for name in names), "--weights", ",".join(weights), "-o", "fused.onnx"),
        is_shown=True,
    )
    for name in dict.fromkeys(name for one in told for name in one.members):
        if name not in names:
            yield _adds_nothing(name, names, told, best)


def _adds_nothing(name: str, names: Sequence[str], told: Sequence[Fusion], best: Fusion) -> Advice:
    """Return why a model is not part of the best fusion."""
    wider = [one for one in told if name in one.members and set(names) <= set(one.members)]
    if not wider:
        return Advice(f"leave {name} out", f"no fusion of it with {_joined(names)} was measured or fits")
    change = 100 * (_top1(wider[0]) - _top1(best))
    return Advice(f"leave {name} out: it adds nothing", f"with it top-1 changes by {change:+.2f} points, held out")


def _cascades(cascades: Sequence[Cascade], subjects: Mapping[str, Subject], data: str) -> Iterator[Advice]:
    for one in cascades:
        dear = subjects[one.dear].macs
        if one.top1 is None or one.dear_top1 is None or one.macs is None or one.hard_share is None or not dear:
            continue
        if one.hard_share < _FEWEST_HARD:
            continue  # the cheap model is as good by itself
        if one.top1 >= one.dear_top1 - _LARGEST_LOSS and one.macs < _FEWEST_SAVED * dear:
            yield Advice(
                f"let {one.cheap} answer, and {one.dear} the {one.hard_share:.0%} of rows on which it is unsure: "
                f"{100 * (one.top1 - one.dear_top1):+.2f} points at {one.macs / dear:.0%} of the MACs",
                f"beside {one.dear} alone; estimated from stored outputs, held out",
                _command(
                    "fuse", subjects[one.cheap].path, subjects[one.dear].path, "--cascade", "--fit", data, "-o", "cascade.onnx"
                ),
            )


def _soups(soups: Sequence[Soup], subjects: Mapping[str, Subject]) -> Iterator[Advice]:
    for one in soups:
        members = [subjects[name].accuracy for name in (one.first, one.second)]
        best = max((each.top1.estimate for each in members if each is not None), default=1.0)
        if one.accuracy is not None and one.accuracy.top1.estimate >= best - _LARGEST_LOSS:
            yield Advice(
                f"average the weights of {one.first} and {one.second}: "
                f"{100 * (one.accuracy.top1.estimate - best):+.2f} points at the cost of one",
                "beside the better of the two, on the same rows",
                _command("fuse", subjects[one.first].path, subjects[one.second].path, "--soup", "-o", "soup.onnx"),
            )


def _lessons(lessons: Sequence[Lesson], subjects: Mapping[str, Subject], data: str) -> Iterator[Advice]:
    """Yield for each student the teacher of whom it takes most, where something was trained."""
    trained = [one for one in lessons if one.retention is not None and one.top1 is not None and one.gain_points is not None]
    for student in dict.fromkeys(one.student for one in trained):
        best = max((one for one in trained if one.student == student), key=lambda one: one.top1 or 0.0)
        teacher = subjects[best.teacher]
        assert best.retention is not None
        assert best.gain_points is not None
        amount, low, high = best.gain_points
        share = f" at {best.student_macs / teacher.macs:.2g} of its MACs" if best.student_macs and teacher.macs else ""
        source = subjects[student].source if student in subjects else student
        helps = low > 0
        yield Advice(
            f"distil {best.teacher} into {student}: keeps {best.retention:.0%} of its top-1{share}"
            if helps
            else f"train {student} on labels: {best.teacher} is not shown to teach it more",
            f"{amount:+.2f} points [{low:+.2f}, {high:+.2f}] over its plain training, {best.epochs} epochs each, held out",
            _command("distill", "--teacher", teacher.path, "--student", source, "--data", data, "-o", "student") if helps else "",
            is_shown=helps,
        )


def _transfers(transfers: Sequence[Transfer], subjects: Mapping[str, Subject], data: str) -> Iterator[Advice]:
    probed = [one for one in transfers if one.probe is not None and one.probe.estimate is not None]
    if not probed:
        return
    best = max(probed, key=lambda one: one.probe.estimate or 0.0 if one.probe else 0.0)
    assert best.probe is not None
    assert best.probe.estimate is not None
    own = subjects[best.model].accuracy
    beats = own is not None and best.probe.low is not None and best.probe.low > own.top1.estimate
    bounds = "" if best.probe.low is None or best.probe.high is None else f" [{best.probe.low:.1%}, {best.probe.high:.1%}]"
    source = subjects[best.model].source
    # Of an ONNX file the head's input has to be named; of any other model the verb finds it.
    named = ("--features", best.layer) if source.endswith(".onnx") and best.layer else ()
    yield Advice(
        f"adapt {best.model} first: a probe on its frozen features reaches {best.probe.estimate:.1%}{bounds}",
        ("its own head reaches " + f"{own.top1.estimate:.1%}; " if own else "")
        + ("so a new head helps" if beats else "a new head is not shown to help"),
        _command("adapt", source, "--data", data, "-o", "adapted", *named),
        is_shown=beats,
    )


def _why(fusion: Fusion) -> str:
    if fusion.diversity is None:
        return ""
    counts = fusion.diversity
    return f"; each is right alone on {counts.only_first} and {counts.only_second} rows"


def _gain(fusion: Fusion) -> str:
    assert fusion.gain is not None
    return f"{fusion.gain.amount:+.2f} points [{fusion.gain.low:+.2f}, {fusion.gain.high:+.2f}]"


def _gained(fusion: Fusion) -> float:
    return fusion.gain.amount if fusion.gain is not None else float("-inf")


def _top1(fusion: Fusion) -> float:
    return fusion.accuracy.top1.estimate if fusion.accuracy is not None else 0.0


def _joined(names: Sequence[str]) -> str:
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]


def _command(*words: str) -> str:
    return shlex.join(("monograph", *words))
