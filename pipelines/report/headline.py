"""The result in one sentence, computed from the data and no better than the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from monograph.pipelines.report.formats import milliseconds, percent, significant
from monograph.pipelines.report.model import Contender, Report
from monograph.runtime.results import Accuracy, Interval


@dataclass(frozen=True)
class Gain:
    """The fused graph beside the most accurate member on the same target."""

    best_member: str
    points: float
    """Percentage points of top-1, rounded to one decimal; negative where the member is better."""
    intervals_overlap: bool

    @property
    def signed(self) -> str:
        """``+0.6``, ``−0.3`` or ``0.0``."""
        return f"{self.points:+.1f}".replace("-", "\u2212") if self.points else "0.0"


def main_contender(report: Report) -> Contender | None:
    """Return the fused graph that the report is about: the first one timed and scored, else the first one."""
    fused = [one for one in report.contenders if one.role == "fused"]
    complete = [one for one in fused if one.latency and one.measurement.accuracy]
    return next(iter([*complete, *fused]), None)


def gain(report: Report) -> Gain | None:
    """Compare the fused graph with its best member; None where either has no accuracy."""
    fused = main_contender(report)
    if fused is None or fused.measurement.accuracy is None:
        return None
    members = [one for one in report.contenders if one.role == "member"]
    best = _most_accurate([one for one in members if one.measurement.target == fused.measurement.target])
    if best is None:
        return None
    (name, theirs), ours = best, fused.measurement.accuracy.top1
    return Gain(name, round(100 * (ours.estimate - theirs.top1.estimate), 1), overlap(ours, theirs.top1))


def headline(report: Report) -> str:
    """State the result in words and numbers, with what stands against it."""
    fused = main_contender(report)
    if fused is None:
        return _without_fusion(report.contenders)
    count = _member_count(report)
    subject = f"One graph of {count} {'member' if count == 1 else 'members'}" if count else "The fused graph"
    accuracy = fused.measurement.accuracy
    if accuracy is None:
        time = f"takes {_time(fused)}" if fused.latency else f"was not timed on {fused.measurement.target}"
        return f"{subject} {time}; its accuracy was not measured."
    parts = [f"{subject} reaches {top1_text(accuracy)} top-1"]
    comparison = gain(report)
    if comparison:
        parts.append(_comparison(comparison))
    if fused.latency:
        return ", ".join([*parts, f"at {_time(fused)}."])
    return f"{', '.join(parts)}; {_no_time(fused)}."


def findings(report: Report) -> tuple[str, ...]:
    """Return the sentences that belong under the headline: what the best member does alone, what is not settled."""
    fused, comparison = main_contender(report), gain(report)
    if fused is None or fused.measurement.accuracy is None or comparison is None:
        return ()
    target = fused.measurement.target
    best = next(one for one in report.contenders if one.name == comparison.best_member and one.measurement.target == target)
    assert best.measurement.accuracy is not None
    sentence = f"The best member alone, {best.name}, reaches {top1_text(best.measurement.accuracy)}"
    if best.latency and fused.latency:
        factor = fused.latency.p50_s.estimate / best.latency.p50_s.estimate
        sentence += (
            f" at {milliseconds(best.latency.p50_s).value} ms: the fused graph takes {significant(factor, 2)} times as long"
        )
    return (f"{sentence}.", _settled(comparison, fused.measurement.accuracy))


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
    best = _most_accurate(contenders)
    if best:
        parts.append(
            f"{best[0]} is the most accurate with {top1_text(best[1])} top-1" if name_count > 1 else f"{top1_text(best[1])} top-1"
        )
    timed = [(one, one.latency.p50_s.estimate) for one in contenders if one.latency]
    if timed:
        quickest = min(timed, key=lambda pair: pair[1])[0]
        parts.append(f"{quickest.name} the fastest with {_time(quickest)}" if name_count > 1 else f"at best {_time(quickest)}")
    count = f"{contenders[0].name} measured" if name_count == 1 else f"{name_count} models measured"
    count += f" on {target_count} targets" if target_count > 1 else ""
    return f"{count}: {', '.join(parts)}." if parts else f"{count}: neither accuracy nor latency is known."


def _most_accurate(contenders: Sequence[Contender]) -> tuple[str, Accuracy] | None:
    scored = [(one.name, one.measurement.accuracy) for one in contenders if one.measurement.accuracy]
    return max(scored, key=lambda pair: pair[1].top1.estimate, default=None)


def _comparison(comparison: Gain) -> str:
    if comparison.points == 0:
        return "no better than the best member"
    unsettled = " (not settled: the intervals overlap)" if comparison.intervals_overlap else ""
    relation = "over" if comparison.points > 0 else "under"
    return (
        f"{comparison.signed if comparison.points > 0 else abs(comparison.points)} points {relation} the best member{unsettled}"
    )


def _settled(comparison: Gain, accuracy: Accuracy) -> str:
    rows = f"{accuracy.row_count:,} rows"
    if comparison.intervals_overlap:
        return f"The {accuracy.top1.confidence:.0%} intervals of the two overlap: these {rows} do not settle which is better."
    if comparison.points > 0:
        return f"The {accuracy.top1.confidence:.0%} intervals of the two do not overlap on these {rows}."
    return f"On these {rows} fusing cost accuracy: the {accuracy.top1.confidence:.0%} intervals do not overlap."


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
