"""An interoperability study as tables, for a terminal and for the page alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from monograph.pipelines.interop.result import TOP1, worth
from monograph.pipelines.report.formats import MISSING, count_text, percent, significant
from monograph.pipelines.report.grid import Grid, grid_table
from monograph.runtime.results import Interval, Score

if TYPE_CHECKING:
    from monograph.pipelines.interop import Interop
    from monograph.pipelines.interop.result import Change, Fusion

_SMALLEST_TRUNK_BYTES = 50_000
_MOST_FUSIONS, _MOST_MEMBERS = 10, 3

PAIR_STATISTICS = ("disagreement", "double fault", "Yule's Q", "error consistency", "oracle accuracy", "churn")
_SHARES = ("disagreement", "double fault", "oracle accuracy", "churn")


def interop_tables(study: Interop) -> Iterator[Table]:
    """Yield the tables for a terminal of 80 characters; the page and the record have more."""
    grids = [subject_grid(study)]
    if any(not one.fits or one.adapted or one.shared_macs for one in study.contacts):
        grids.append(contact_grid(study))
    if told := _best_first(study):
        grids.append(_short_fusions(study, told[:_MOST_FUSIONS]))
    for grid in (*grids, advice_grid(study)):
        yield grid_table(grid)


def _best_first(study: Interop) -> list[Fusion]:
    """Return the fusions that have figures, the best by the metric of the study first where there are many."""
    told = [one for one in study.fusions if not one.reason]
    if len(told) <= _MOST_FUSIONS:
        return told
    return sorted(told, key=lambda one: -worth(study.metric, one.score))


def _short_fusions(study: Interop, told: Sequence[Fusion]) -> Grid:
    rows = tuple(
        (
            *_who(one),
            merit_text(study.metric, one.score).partition(" [")[0],
            _change(one.gain, study.metric),
            _number(one.latency_ms),
        )
        for one in told
    )
    headings = ("fusion", "weights", merit_heading(study.metric), _gain_heading(study.metric), "p50 ms")
    return Grid("fusions, held out", headings, rows, "gain over the better member; more of each is on the page")


def advice_grid(study: Interop) -> Grid:
    """Return what to do, in order."""
    rows = tuple(
        (str(number), one.text, one.reason, "yes" if one.is_shown else "no") for number, one in enumerate(study.advice, start=1)
    )
    return Grid("advice", ("", "what to do", "why", "shown"), rows, words=("what to do", "why"))


def subject_grid(study: Interop) -> Grid:
    """Return each model by itself."""
    rows = []
    for one in study.subjects:
        accuracy = one.accuracy
        rows.append(
            (
                one.name,
                one.kind,
                merit_text(study.metric, one.score),
                MISSING if accuracy is None else significant(accuracy.nll),
                MISSING if accuracy is None else significant(100 * accuracy.ece, 2),
                _count(one.macs),
                _number(one.latency_ms),
            )
        )
    headings = ("model", "gives", merit_heading(study.metric), "NLL", "ECE %", "MACs", "p50 ms")
    timed = f"; latency of a row on {study.target}" if study.target else ""
    return Grid("each model by itself", headings, tuple(rows), f"on {study.row_count:,} rows of {study.data}{timed}", ("gives",))


def contact_grid(study: Interop) -> Grid:
    """Return which pairs fit, before any row is read."""
    rows = tuple(
        (
            f"{one.first} + {one.second}",
            ("as they are" if not one.adapted else "adapted") if one.fits else "no",
            "; ".join(one.adapted) if one.fits else one.reason,
            _count(one.shared_macs) if one.fits and one.shared_macs else MISSING,
            f"{one.shared_bytes / 1e6:.1f}" if one.shared_bytes >= _SMALLEST_TRUNK_BYTES else MISSING,
        )
        for one in study.contacts
    )
    note = "shared: what both compute alike, found by weights, and a fused graph computes once"
    words = ("fits", "what is adapted, or why not")
    return Grid("do they fit", ("pair", *words, "shared MACs", "shared MB"), rows, note, words)


def fusion_grids(study: Interop) -> list[Grid]:
    """Return what fusions give, and how differently the pairs err."""
    told = _best_first(study)
    made = []
    if told:
        note = (
            "weights fitted on one half of the rows and scored on the other, both ways; gain over the better member; ECE: of "
            "that member, of the fusion, of the fusion with temperatures"
        )
        timed = f"; latency of a row on {study.target}, of the fused graph" if study.target else ""
        headings = ("fusion", "weights", merit_heading(study.metric), _gain_heading(study.metric), "ECE %", "MACs", "p50 ms")
        rows = tuple(_fusion_row(one, study.metric) for one in told)
        if len(rows) <= _MOST_FUSIONS:
            made.append(Grid("fusions, held out", headings, rows, note + timed))
        else:
            title = f"the best {_MOST_FUSIONS} of {len(rows)} fusions, held out"
            made.append(Grid(title, headings, rows[:_MOST_FUSIONS], note + timed))
            made.append(Grid("all fusions, held out", headings, rows))
    if ranked := [one for one in told if one.ranking is not None]:
        made.append(_ranking_grid(ranked))
    if correlated := [one for one in told if one.error_correlation is not None]:
        pairs_of = tuple((" + ".join(one.members), _plain(one.error_correlation)) for one in correlated)
        made.append(
            Grid("how alike they err", ("pair", "correlation of errors"), pairs_of, "1 where a mean of both mends nothing")
        )
    pairs = [one for one in told if one.diversity is not None]
    if pairs:
        rows = tuple((" + ".join(one.members), *(_statistic(one, name) for name in PAIR_STATISTICS)) for one in pairs)
        note = "shares in percent; Yule's Q and κ: 1 where both err on the same rows, 0 independently, −1 on different ones"
        made.append(Grid("how differently they err", ("pair", *_headings()), rows, note))
    if missing := [one for one in study.fusions if one.reason]:
        rows = tuple((" + ".join(one.members), one.reason) for one in missing)
        made.append(Grid("no figure", ("fusion", "why"), rows, words=("why",)))
    return made


def other_grids(study: Interop) -> list[Grid]:
    """Return cascades and soups, estimated."""
    made = []
    if told := [one for one in study.cascades if not one.reason]:
        cascades = tuple(
            (
                f"{one.cheap} → {one.dear}",
                _share(one.hard_share),
                merit_text(study.metric, one.score),
                _change(one.change, study.metric),
                _count(one.macs),
                _number(one.latency_ms),
            )
            for one in told
        )
        headings = ("cascade", "hard rows %", merit_heading(study.metric), "over the dear one", "MACs", "ms")
        note = "estimated from stored outputs and single latencies: the means of a row"
        made.append(Grid("cascades, held out", headings, cascades, note))
    if averaged := [one for one in study.soups if one.fits]:
        soups = tuple(
            (f"{one.first} + {one.second}", merit_text(study.metric, one.score), _change(one.change, study.metric))
            for one in averaged
        )
        titles = ("soup", merit_heading(study.metric), "over the better one")
        made.append(Grid("soups", titles, soups, "equal weights, at the cost of one; on rows that set no statistics"))
    missing = [(f"cascade {one.cheap} → {one.dear}", one.reason) for one in study.cascades if one.reason]
    missing += [(f"soup of {one.first} and {one.second}", one.reason) for one in study.soups if not one.fits]
    if missing:
        made.append(Grid("what cannot be", ("fusion", "why"), tuple(missing), words=("why",)))
    return made


def _ranking_grid(fusions: Sequence[Fusion]) -> Grid:
    """Return what fusions gain where rows are ranked within groups."""
    rows = tuple(
        (
            " + ".join(one.members),
            each.label,
            _plain(each.fused),
            f"{each.gain.estimate:+.4f} [{each.gain.low:+.4f}, {each.gain.high:+.4f}]",
            each.best_member,
        )
        for one in fusions
        for each in (one.ranking.metrics if one.ranking is not None else ())
    )
    note = "each metric is the mean over groups, its interval of paired groups"
    return Grid("ranked within groups", ("fusion", "metric", "fused", "gain", "over"), rows, note)


def lesson_grid(study: Interop) -> Grid:
    """Return what students took, or an estimate of it."""
    told = [one for one in study.lessons if not one.reason]
    rows = tuple(
        (
            f"{one.teacher} → {one.student}",
            merit_text(study.metric, one.score),
            merit_text(study.metric, one.control),
            _change(one.gain, study.metric),
            _share(one.retention),
            _share(one.agreement),
            _number(one.entropy),
            "estimate: nothing was trained" if one.is_estimate else f"3 × {one.steps} steps",
        )
        for one in told
    )
    headings = (
        "teacher → student",
        merit_heading(study.metric),
        "plain training",
        _gain_heading(study.metric),
        "keeps %",
        "agree %",
        "entropy",
        "remark",
    )
    note = (
        "means of three trainings, on the half of the rows that no student learnt from; the interval of the gain has room for "
        "other rows and other trainings; "
        if any(one.score is not None for one in told)
        else ""
    ) + "entropy of the teacher's probabilities in nats"
    untold: dict[str, list[str]] = {}
    for one in study.lessons:
        if one.reason and one.student not in untold.setdefault(one.reason, []):
            untold[one.reason].append(one.student)
    note += "".join(f". Not taught: {', '.join(students)}: {reason}" for reason, students in untold.items())
    return Grid("what students take", headings, rows, note, words=("remark",))


def transfer_grid(study: Interop) -> Grid:
    """Return what frozen trunks are worth."""
    shots = sorted({count for one in study.transfers for count in one.few_shot or {}})
    rows = tuple(
        (
            one.model,
            one.layer or one.reason,
            merit_text(one.metric, one.probe),
            merit_text(one.metric, one.neighbours),
            *(_share((one.few_shot or {}).get(count)) for count in shots),
            _number(one.leep),
            _number(one.logme),
        )
        for one in study.transfers
    )
    unit = next((" %" if one.metric == TOP1 else f" {one.metric}" for one in study.transfers if one.probe is not None), "")
    headings = ("model", "features", f"probe{unit}", f"k-NN{unit}", *(f"{count} a class %" for count in shots), "LEEP", "LogME")
    note = "fitted on one half of the rows, told on the other; LEEP and LogME are estimates in nats, of all rows, more is better"
    return Grid("frozen trunks for this task", headings, rows, note, words=("features",))


def stitch_grid(study: Interop) -> Grid:
    """Return how well last features turn into one another."""
    rows = tuple(
        (
            f"{one.first} → {one.second}",
            _number(one.r2),
            _number(one.noise_r2),
            _number(one.class_noise_r2),
            one.reason or MISSING,
        )
        for one in study.stitches
    )
    note = "held-out R²; even noise can be stitched: what is not above noise that knows the class speaks for no likeness"
    return Grid("stitched by one linear layer", ("pair", "R²", "noise", "class noise", "remark"), rows, note, words=("remark",))


def merit_heading(metric: str) -> str:
    """Return the metric of a study with its unit."""
    return f"{metric} %" if metric == TOP1 else metric


def _gain_heading(metric: str) -> str:
    return "gain, points" if metric == TOP1 else f"gain, {metric}"


def merit_text(metric: str, score: Score | None) -> str:
    """Return a figure with its interval: top-1 in percent, others as they are."""
    if score is None or score.estimate is None:
        return MISSING
    if metric != TOP1:
        return _plain(score)
    low, high = (score.estimate if end is None else end for end in (score.low, score.high))
    shown = percent(Interval(score.estimate, low, high))
    return f"{shown.value} {shown.bounds}"


def _plain(score: Score | None) -> str:
    if score is None or score.estimate is None:
        return MISSING
    bounds = "" if score.low is None or score.high is None else f" [{significant(score.low)}, {significant(score.high)}]"
    return f"{significant(score.estimate)}{bounds}"


def _change(change: Change | None, metric: str) -> str:
    if change is None:
        return MISSING
    pattern = "{:+.2f} [{:+.2f}, {:+.2f}]" if metric == TOP1 else "{:+.4f} [{:+.4f}, {:+.4f}]"
    return pattern.format(change.amount, change.low, change.high)


def _who(fusion: Fusion) -> tuple[str, str]:
    """Return members and weights; of many members those that count."""
    kept = [(name, f"{weight:.2f}") for name, weight in zip(fusion.members, fusion.weights, strict=True)]
    if len(kept) > _MOST_MEMBERS:
        running = [one for one, weight in zip(kept, fusion.weights, strict=True) if weight > 0]
        return f"all {len(kept)}: " + " + ".join(name for name, _ in running), "/".join(weight for _, weight in running)
    return " + ".join(name for name, _ in kept), "/".join(weight for _, weight in kept)


def _fusion_row(one: Fusion, metric: str) -> tuple[str, ...]:
    ece = [one.ece_before, None if one.accuracy is None else one.accuracy.ece, one.ece_tempered]
    return (
        *_who(one),
        merit_text(metric, one.score),
        _change(one.gain, metric),
        " → ".join(MISSING if value is None else significant(100 * value, 2) for value in ece),
        _count(one.macs),
        _number(one.latency_ms),
    )


def _headings() -> tuple[str, ...]:
    return tuple(f"{name} %" if name in _SHARES else name for name in PAIR_STATISTICS)


def _statistic(one: Fusion, name: str) -> str:
    assert one.diversity is not None
    score = one.diversity.scores[name]
    return _score(score) if name in _SHARES else _number(score.estimate)


def _score(score: Score | None) -> str:
    if score is None or score.estimate is None:
        return MISSING
    bounds = "" if score.low is None or score.high is None else f" [{100 * score.low:.1f}, {100 * score.high:.1f}]"
    return f"{100 * score.estimate:.1f}{bounds}"


def _share(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return MISSING if value is None else significant(value)


def _count(value: float | None) -> str:
    return MISSING if value is None else count_text(value)
