"""What to do with the models, in order, each with its reason and the command for it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence

from monograph.pipelines.data import DataSpec
from monograph.pipelines.interop.result import RMSE, TOP1, Advice, Cascade, Change, Fusion, Lesson, Soup, Subject, Transfer, worth
from monograph.runtime.results import Score

_FEWEST_SAVED = 0.9
"""A cascade, or a smaller fusion, is worth it below this share of the dear model's multiply-accumulates."""
_FEWEST_HARD = 0.005
"""Of the rows: with fewer to pass on, the dear model is not needed at all."""
_MOST_CASCADES, _MOST_NAMED = 3, 2
_LARGEST_LOSS_POINTS = 0.5
"""Of top-1 that a cascade or a soup may lose to be advised."""


def advise(
    data: DataSpec,
    metric: str,
    subjects: Sequence[Subject],
    fusions: Sequence[Fusion],
    cascades: Sequence[Cascade],
    soups: Sequence[Soup],
    transfers: Sequence[Transfer],
    lessons: Sequence[Lesson],
) -> tuple[Advice, ...]:
    """Return the advice, what is shown by the rows before what is not, the largest gain first."""
    adviser = _Adviser({subject.name: subject for subject in subjects}, metric, _data_words(data))
    made = [
        *adviser.fusions(fusions),
        *adviser.cascades(cascades),
        *adviser.soups(soups),
        *adviser.lessons(lessons),
        *adviser.transfers(transfers),
    ]
    return tuple(sorted(made, key=lambda one: not one.is_shown))


class _Adviser:
    def __init__(self, subjects: Mapping[str, Subject], metric: str, data_words: tuple[str, ...]) -> None:
        self.subjects, self.metric, self.data_words = subjects, metric, data_words

    def fusions(self, fusions: Sequence[Fusion]) -> Iterator[Advice]:
        """Yield the best fusion whose gain is shown, or that none is, and who adds nothing to it."""
        told = [one for one in fusions if one.gain is not None and one.score is not None]
        if not told:
            return
        shown = [one for one in told if one.gain is not None and one.gain.low > 0]
        if not shown:
            best = max(told, key=lambda one: one.gain.amount if one.gain else float("-inf"))
            assert best.gain is not None
            count = f"of {len(told)} fusions none is" if len(told) > 1 else f"{joined(best.members)} together are not"
            yield Advice(
                f"fuse nothing: {count} shown to be better than {best.gain.over if len(told) == 1 else 'its best member'}",
                f"the best, {joined(best.members)}, gains {change_text(best.gain, self.metric)} on held-out rows",
            )
            return
        best = max(shown, key=lambda one: (self._reached(one.score), -len(one.members)))
        assert best.gain is not None
        running = _running(best)
        yield Advice(
            f"fuse {joined(list(running))} with weights {'/'.join(f'{weight:.2f}' for weight in running.values())}: "
            + change_text(best.gain, self.metric),
            f"over {best.gain.over}, held out{_why(best)}",
            self._fuse_command(best),
            is_shown=True,
        )
        yield from self._cheaper(best, shown)
        others = [name for name in dict.fromkeys(name for one in told for name in one.members) if name not in running]
        if others:
            yield self._add_nothing(others, list(running), told, best)

    def _cheaper(self, best: Fusion, shown: Sequence[Fusion]) -> Iterator[Advice]:
        """Yield the best of the fusions that gain, too, and cost clearly less than ``best``."""
        costs = {one.members: one.macs for one in shown if one.macs}
        most = _FEWEST_SAVED * (best.macs or 0)
        cheaper = [one for one in shown if one.members in costs and costs[one.members] < most]
        if not cheaper:
            return
        one = max(cheaper, key=lambda fusion: self._reached(fusion.score))
        assert one.gain is not None
        share = f"{costs[one.members] / costs[best.members]:.0%} of its MACs"
        yield Advice(
            f"or fuse {joined(one.members)} alone: {change_text(one.gain, self.metric)} at {share}",
            f"over {one.gain.over}, held out{_why(one)}",
            self._fuse_command(one),
            is_shown=True,
        )

    def _fuse_command(self, fusion: Fusion) -> str:
        running = _running(fusion)
        weights = ",".join(f"{weight:.4g}" for weight in running.values())
        return command("fuse", *(self.subjects[name].path for name in running), "--weights", weights, "-o", "fused.onnx")

    def _add_nothing(self, others: Sequence[str], names: Sequence[str], told: Sequence[Fusion], best: Fusion) -> Advice:
        """Return why models are not part of the best fusion."""
        reasons = []
        for name in others:
            wider = [one for one in told if name in one.members and set(names) <= set(one.members)]
            if not wider:
                reasons.append(f"no fusion of {name} with {joined(names)} was measured or fits")
                continue
            change = self._reached(wider[0].score) - self._reached(best.score)
            amount = f"{100 * change:+.2f} points of top-1" if self.metric == TOP1 else f"{change:+.4f} {self.metric}"
            rest = [one for one in wider[0].members if one not in names]
            reasons.append(f"with {joined(rest) if len(rest) <= _MOST_NAMED else 'all of them'} {amount}, held out")
        add = "it adds" if len(others) == 1 else "they add"
        return Advice(f"leave {joined(others)} out: {add} nothing", "; ".join(dict.fromkeys(reasons)))

    def _reached(self, score: Score | None) -> float:
        """Return the metric so that higher is better."""
        return worth(self.metric, score)

    def cascades(self, cascades: Sequence[Cascade]) -> Iterator[Advice]:
        """Yield those that are about as good as the best model, cost less than their dear one, and that nothing beats in both."""
        alone = [(one.macs, self._reached(one.score)) for one in self.subjects.values() if one.macs]
        known = [*alone, *((one.macs, self._reached(one.score)) for one in cascades if one.macs)]
        least = max((reached for _, reached in alone), default=0.0) - _LARGEST_LOSS_POINTS / 100
        worth = []
        for one in cascades:
            dear = self.subjects[one.dear].macs
            if one.change is None or one.macs is None or one.hard_share is None or not dear:
                continue
            if one.hard_share < _FEWEST_HARD or self._reached(one.score) < least:
                continue  # the cheap model is as good by itself, or another model is better
            own = one.macs, self._reached(one.score)
            is_beaten = any(macs <= own[0] and reached >= own[1] and (macs, reached) != own for macs, reached in known)
            if one.change.amount >= -_LARGEST_LOSS_POINTS and one.macs < _FEWEST_SAVED * dear and not is_beaten:
                worth.append((own[1], one, one.change, f"{one.macs / dear:.0%} of the MACs"))
        for _, one, change, cost in sorted(worth, key=lambda found: -found[0])[:_MOST_CASCADES]:
            paths = [self.subjects[name].path for name in (one.cheap, one.dear)]
            yield Advice(
                f"let {one.cheap} answer, and {one.dear} the {one.hard_share or 0.0:.0%} of rows on which it is unsure: "
                f"{change_text(change, self.metric)} at {cost}",
                f"beside {one.dear} alone; estimated from stored outputs, held out",
                command("fuse", *paths, "--cascade", "--fit", *self.data_words, "-o", "cascade.onnx"),
            )

    def soups(self, soups: Sequence[Soup]) -> Iterator[Advice]:
        """Yield those that lose next to nothing."""
        for one in soups:
            most = _LARGEST_LOSS_POINTS if self.metric == TOP1 else 0.0
            if one.change is not None and one.change.amount >= -most:
                paths = [self.subjects[name].path for name in (one.first, one.second)]
                yield Advice(
                    f"average the weights of {one.first} and {one.second}: {change_text(one.change, self.metric)} "
                    "at the cost of one",
                    f"beside {one.change.over}, the better of the two, on the same rows, of which it saw no label",
                    command("fuse", *paths, "--soup", "-o", "soup.onnx"),
                    is_shown=one.change.low > 0,
                )

    def lessons(self, lessons: Sequence[Lesson]) -> Iterator[Advice]:
        """Yield for each student the teacher of whom it takes most, where something was trained."""
        trained = [one for one in lessons if one.gain is not None and one.score is not None]
        for student in dict.fromkeys(one.student for one in trained):
            best = max((one for one in trained if one.student == student), key=lambda one: self._reached(one.score))
            assert best.gain is not None
            helps = best.gain.low > 0
            members = best.teacher.split(" + ")
            macs = [self.subjects[name].macs or 0 for name in members]
            share = f" at {best.student_macs / sum(macs):.2g} of its MACs" if best.student_macs and all(macs) else ""
            keeps = f": keeps {best.retention:.0%} of its {self.metric}" if best.retention is not None else ""
            source = self.subjects[student].source if student in self.subjects else student.removeprefix("new ")
            teachers = [word for name in members for word in ("--teacher", self.subjects[name].path)]
            yield Advice(
                f"distil {best.teacher} into {student}{keeps}{share}"
                if helps
                else f"train {student} on labels: {best.teacher} is not shown to teach it more",
                f"{change_text(best.gain, self.metric)} over its plain training, three of {best.steps} steps each, held out",
                command("distill", *teachers, "--student", source, "--data", *self.data_words, "-o", "student") if helps else "",
                is_shown=helps,
            )

    def transfers(self, transfers: Sequence[Transfer]) -> Iterator[Advice]:
        """Yield whose trunk serves the task best."""
        probed = [one for one in transfers if one.probe is not None and one.probe.estimate is not None]
        if not probed:
            return
        best = max(probed, key=lambda one: one.probe.estimate or 0.0 if one.probe else 0.0)
        assert best.probe is not None
        assert best.probe.estimate is not None
        subject = self.subjects[best.model]
        own = subject.accuracy if best.metric == TOP1 else None
        beats = own is not None and best.probe.low is not None and best.probe.low > own.top1.estimate
        reached = f"{best.probe.estimate:.1%}" if best.metric == TOP1 else f"{best.metric} {best.probe.estimate:.3f}"
        bounds = ""
        if best.probe.low is not None and best.probe.high is not None:
            pattern = "{:.1%}" if best.metric == TOP1 else "{:.3f}"
            bounds = f" [{pattern.format(best.probe.low)}, {pattern.format(best.probe.high)}]"
        # Of an ONNX file the head's input has to be named; of any other model the verb finds it.
        named = ("--features", best.layer) if subject.source.endswith(".onnx") and best.layer else ()
        yield Advice(
            f"adapt {best.model} first: a probe on its frozen features reaches {reached}{bounds}",
            (f"its own head reaches {own.top1.estimate:.1%}; " if own else "")
            + ("so a new head helps" if beats else "a new head is not shown to help"),
            command("adapt", subject.source, "--data", *self.data_words, "-o", "adapted", *named),
            is_shown=beats,
        )


def _running(fusion: Fusion) -> dict[str, float]:
    """Return the weights of the members that count."""
    return {name: weight for name, weight in zip(fusion.members, fusion.weights, strict=True) if weight > 0}


def change_text(change: Change, metric: str) -> str:
    """Return how much better something is, for people: ``+0.40 points [-0.10, +0.90]``."""
    if metric == TOP1:
        return f"{change.amount:+.2f} points [{change.low:+.2f}, {change.high:+.2f}]"
    if metric == RMSE:
        return f"RMSE lower by {change.amount:.4g} [{change.low:.4g}, {change.high:.4g}]"
    return f"{change.amount:+.4f} {metric} [{change.low:+.4f}, {change.high:+.4f}]"


def joined(names: Sequence[str]) -> str:
    """Return names as people list them."""
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]


def command(*words: str) -> str:
    """Return a line to type."""
    return shlex.join(("monograph", *words))


def _data_words(data: DataSpec) -> tuple[str, ...]:
    """Return DATA with the options that say which of its columns are meant."""
    columns = dict(data.columns or {})
    if data.label_column is not None:
        columns["y"] = data.label_column if isinstance(data.label_column, str) else ",".join(data.label_column)
    options = [word for name, column in columns.items() for word in ("--data-column", f"{name}={column}")]
    return (data.source, *options, *(("--split", data.split) if data.split else ()))


def _why(fusion: Fusion) -> str:
    if fusion.diversity is not None:
        return f"; each is right alone on {fusion.diversity.only_first} and {fusion.diversity.only_second} rows"
    if fusion.error_correlation is not None and fusion.error_correlation.estimate is not None:
        return f"; their errors correlate by {fusion.error_correlation.estimate:.2f}"
    return ""
