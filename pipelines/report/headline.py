"""The result in one sentence, computed from the data and no better than the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from monograph.pipelines.report.formats import milliseconds, percent, significant
from monograph.pipelines.report.merit import Merit, merit_of
from monograph.pipelines.report.model import Contender, RankingGain, Report
from monograph.runtime.results import Accuracy, Interval


@dataclass(frozen=True)
class Gain:
    """The fused graph beside the best member on the same target."""

    best_member: str
    points: float
    """How much better: percentage points of top-1, rounded to one decimal, else as the metric counts; negative where the member
    is better."""
    intervals_overlap: bool
    unit: str = "points"
    """The name of another metric than top-1."""

    @property
    def signed(self) -> str:
        """``+0.6``, ``−0.3`` or ``0.0``."""
        if not self.points:
            return "0.0"
        text = (
            f"{self.points:+.1f}" if self.unit == "points" else f"{'+' if self.points > 0 else ''}{significant(self.points, 2)}"
        )
        return text.replace("-", "\u2212")

    @property
    def unsigned(self) -> str:
        """The same without its sign."""
        return self.signed.lstrip("+\u2212")


def main_contender(report: Report) -> Contender | None:
    """Return the fused graph that the report is about: the first one timed and scored, else the first one."""
    fused = [one for one in report.contenders if one.role == "fused"]
    complete = [one for one in fused if one.latency and merit_of(one.measurement)]
    return next(iter([*complete, *fused]), None)


def gain(report: Report) -> Gain | None:
    """Compare the fused graph with its best member; None where either was not scored."""
    fused = main_contender(report)
    ours = None if fused is None else merit_of(fused.measurement)
    if fused is None or ours is None:
        return None
    members = [one for one in report.contenders if one.role == "member"]
    best = _best([one for one in members if one.measurement.target == fused.measurement.target])
    if best is None:
        return None
    name, theirs = best
    return Gain(name, ours.lead(theirs), overlap(ours.interval, theirs.interval), "points" if ours.is_share else ours.label)


def headline(report: Report) -> str:
    """State the result in words and numbers, with what stands against it."""
    fused = main_contender(report)
    if fused is None:
        return _without_fusion(report.contenders)
    count = _member_count(report)
    subject = f"One graph of {count} {'member' if count == 1 else 'members'}" if count else "The fused graph"
    merit = merit_of(fused.measurement)
    if merit is None:
        time = f"takes {_time(fused)}" if fused.latency else f"was not timed on {fused.measurement.target}"
        return f"{subject} {time}; its accuracy was not measured."
    parts = [f"{subject} reaches {merit.describe()}"]
    comparison = gain(report)
    if comparison:
        parts.append(_comparison(comparison))
    if fused.latency:
        return ", ".join([*parts, f"at {_time(fused)}."])
    return f"{', '.join(parts)}; {_no_time(fused)}."


def findings(report: Report) -> tuple[str, ...]:
    """Return the sentences that belong under the headline: what the best member does alone, what is not settled."""
    fused, comparison = main_contender(report), gain(report)
    ours = None if fused is None else merit_of(fused.measurement)
    if fused is None or ours is None or comparison is None:
        return shipping_findings(report)
    target = fused.measurement.target
    best = next(one for one in report.contenders if one.name == comparison.best_member and one.measurement.target == target)
    theirs = merit_of(best.measurement)
    assert theirs is not None
    sentence = f"The best member alone, {best.name}, reaches {theirs.value()}"
    if best.latency and fused.latency:
        factor = fused.latency.p50_s.estimate / best.latency.p50_s.estimate
        sentence += (
            f" at {milliseconds(best.latency.p50_s).value} ms: the fused graph takes {significant(factor, 2)} times as long"
        )
    settled = _paired(report.ranking) if report.ranking else (_settled(comparison, ours),)
    return (f"{sentence}.", *settled, *shipping_findings(report))


def _paired(gains: Sequence[RankingGain]) -> tuple[str, ...]:
    """Return what pairing by group tells of the gain, a sentence a metric: more than two intervals side by side."""
    told = []
    for one in gains:
        found = "settles" if one.gain.low > 0 or one.gain.high < 0 else "does not settle"
        change = f"{one.gain.estimate:+.4f} [{one.gain.low:+.4f}, {one.gain.high:+.4f}]".replace("-", "\u2212")
        told.append(
            f"Paired over {one.group_count:,} groups, {one.metric} changes by {change} from {one.best_member}, which {found} it."
        )
    return tuple(told)


def shipping_findings(report: Report) -> tuple[str, ...]:
    """Return what came of the student and whether it may ship, a sentence each, where there is one."""
    told = [] if report.student is None else [report.student.sentence]
    if report.verdict is not None:
        may = "It may take the fused graph's place" if report.verdict.outcome == "pass" else "It may not take its place"
        told.append(f"{may} ({report.verdict.told}).")
    return tuple(told)


def _member_count(report: Report) -> int:
    """Members that take part: a fit may give some the weight 0."""
    if report.fusion:
        return sum(one.weight != 0 for one in report.fusion.members)
    return len({one.name for one in report.contenders if one.role == "member"})


def _without_fusion(contenders: Sequence[Contender]) -> str:
    """The most accurate and the quickest contender, where there is no fused graph."""
    parts = []
    name_count, target_count = (
        len({one.name for one in contenders}),
        len({one.measurement.target for one in contenders}),
    )
    best = _best(contenders)
    if best:
        name, merit = best
        which = "the most accurate" if merit.is_share else "the best"
        parts.append(f"{name} is {which} with {merit.describe()}" if name_count > 1 else merit.describe())
    timed = [(one, one.latency.p50_s.estimate) for one in contenders if one.latency]
    if timed:
        quickest = min(timed, key=lambda pair: pair[1])[0]
        parts.append(f"{quickest.name} the fastest with {_time(quickest)}" if name_count > 1 else f"at best {_time(quickest)}")
    count = f"{contenders[0].name} measured" if name_count == 1 else f"{name_count} models measured"
    count += f" on {target_count} targets" if target_count > 1 else ""
    return f"{count}: {', '.join(parts)}." if parts else f"{count}: neither accuracy nor latency is known."


def _best(contenders: Sequence[Contender]) -> tuple[str, Merit] | None:
    scored = [(one.name, merit) for one in contenders if (merit := merit_of(one.measurement))]
    if not scored:
        return None
    sign = -1 if scored[0][1].is_error else 1
    # What was scored by another metric cannot be set beside the first.
    return max(
        (pair for pair in scored if pair[1].label == scored[0][1].label), key=lambda pair: sign * pair[1].interval.estimate
    )


def _comparison(comparison: Gain) -> str:
    if comparison.points == 0:
        return "no better than the best member"
    unsettled = " (not settled: the intervals overlap)" if comparison.intervals_overlap else ""
    relation = "over" if comparison.points > 0 else "under"
    if comparison.unit != "points":
        return f"{comparison.unsigned} {'better' if comparison.points > 0 else 'worse'} than the best member{unsettled}"
    amount = comparison.signed if comparison.points > 0 else comparison.unsigned
    return f"{amount} points {relation} the best member{unsettled}"


def _settled(comparison: Gain, merit: Merit) -> str:
    rows, confidence = f"{merit.row_count:,} rows", f"{merit.interval.confidence:.0%}"
    if comparison.intervals_overlap:
        return f"The {confidence} intervals of the two overlap: these {rows} do not settle which is better."
    if comparison.points > 0:
        return f"The {confidence} intervals of the two do not overlap on these {rows}."
    return f"On these {rows} fusing cost accuracy: the {confidence} intervals do not overlap."


def overlap(one: Interval, other: Interval) -> bool:
    """Tell whether two intervals share a value."""
    return one.low <= other.high and other.low <= one.high


def top1_text(accuracy: Accuracy) -> str:
    """Write top-1 with its interval: ``97.9% [97.2, 98.5]``."""
    shown = percent(accuracy.top1)
    return f"{shown.value}% {shown.bounds}"


def _time(contender: Contender) -> str:
    assert contender.latency is not None
    batch = "" if contender.latency.batch_size == 1 else f" (batch {contender.latency.batch_size})"
    return f"{milliseconds(contender.latency.p50_s).value} ms p50{batch} on {contender.measurement.target}"


def _no_time(contender: Contender) -> str:
    measurement = contender.measurement
    if contender.is_timed or measurement.latency is None:
        return f"it was not timed on {measurement.target}"
    return f"{measurement.target} was only {measurement.evidence.value}, which gives no latency"
