"""An interoperability study as tables, for a terminal and for the page alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.table import Table

from monograph.pipelines.report.formats import MISSING, count_text, percent, significant
from monograph.pipelines.report.grid import Grid, grid_table
from monograph.runtime.results import Score

if TYPE_CHECKING:
    from monograph.pipelines.interop import Interop
    from monograph.pipelines.interop.result import Fusion

PAIR_STATISTICS = ("disagreement", "double fault", "Yule's Q", "error consistency", "oracle accuracy", "churn")
_SHARES = ("disagreement", "double fault", "oracle accuracy", "churn")


def interop_tables(study: Interop) -> Iterator[Table]:
    """Yield the tables for a terminal; the page and the record have more."""
    for grid in (subject_grid(study), contact_grid(study), *fusion_grids(study), advice_grid(study)):
        yield grid_table(_short(grid))


def _short(grid: Grid) -> Grid:
    """Return the first columns, as many as a terminal of 80 characters has room for, of a table of figures."""
    if grid.words:
        return grid
    rows = tuple(
        tuple(cell.partition(" [")[0] if column > 3 else cell for column, cell in enumerate(row[:5])) for row in grid.rows
    )
    return replace(grid, headings=grid.headings[:5], rows=rows, note="")


def advice_grid(study: Interop) -> Grid:
    """Return what to do, in order."""
    rows = tuple(
        (str(number), one.text, one.reason, "yes" if one.is_shown else "not shown")
        for number, one in enumerate(study.advice, start=1)
    )
    return Grid("advice", ("", "what to do", "why", "shown by these rows"), rows, words=("what to do", "why"))


def subject_grid(study: Interop) -> Grid:
    """Return each model by itself."""
    rows = []
    for one in study.subjects:
        accuracy = one.accuracy
        top1 = MISSING if accuracy is None else f"{percent(accuracy.top1).value} {percent(accuracy.top1).bounds}"
        rows.append(
            (
                one.name,
                one.kind,
                top1,
                MISSING if accuracy is None else significant(accuracy.nll),
                MISSING if accuracy is None else significant(100 * accuracy.ece, 2),
                _count(one.macs),
                _number(one.latency_ms),
            )
        )
    headings = ("model", "gives", "top-1 %", "NLL", "ECE %", "MACs", "p50 ms")
    return Grid("each model by itself", headings, tuple(rows), f"on {study.row_count:,} rows of {study.data}", ("gives",))


def contact_grid(study: Interop) -> Grid:
    """Return which pairs fit, before any row is read."""
    rows = tuple(
        (
            f"{one.first} + {one.second}",
            ("as they are" if not one.adapted else "adapted") if one.fits else "no",
            "; ".join(one.adapted) if one.fits else one.reason,
            _count(one.shared_macs) if one.fits and one.shared_macs else MISSING,
        )
        for one in study.contacts
    )
    note = "shared: what both compute alike, found by weights, and a fused graph computes once"
    words = ("fits", "what is adapted, or why not")
    return Grid("do they fit", ("pair", *words, "shared MACs"), rows, note, words)


def fusion_grids(study: Interop) -> list[Grid]:
    """Return what fusions give, and how differently the pairs err."""
    told = [one for one in study.fusions if not one.reason]
    made = []
    if told:
        note = (
            "weights fitted on one half of the rows and scored on the other, both ways; ECE: of the better member, "
            "of the fusion, of the fusion with temperatures; the latency of a fusion is the sum of its members', an estimate"
        )
        headings = ("fusion", "weights", "top-1 %", "gain, points", "ECE %", "MACs", "p50 ms")
        made.append(Grid("fusions, held out", headings, tuple(map(_fusion_row, told)), note))
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
    if study.cascades:
        rows = tuple(
            (
                f"{one.cheap} → {one.dear}",
                _share(one.hard_share),
                _share(one.top1),
                _share(one.dear_top1),
                _count(one.macs),
                one.reason or "estimated from stored outputs",
            )
            for one in study.cascades
        )
        headings = ("cascade", "hard rows %", "top-1 %", "the dear one's %", "MACs", "remark")
        made.append(Grid("cascades, held out", headings, rows, words=("remark",)))
    if study.soups:
        soups = tuple(
            (
                f"{one.first} + {one.second}",
                MISSING if one.accuracy is None else percent(one.accuracy.top1).value,
                one.reason or "equal weights",
            )
            for one in study.soups
        )
        made.append(Grid("soups", ("pair", "top-1 %", "remark"), soups, words=("remark",)))
    return made


def lesson_grid(study: Interop) -> Grid:
    """Return what students took, or an estimate of it."""
    rows = tuple(
        (
            f"{one.teacher} → {one.student}",
            _share(one.top1),
            _share(one.control_top1),
            MISSING if one.gain_points is None else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*one.gain_points),
            _share(one.retention),
            _share(one.agreement),
            _number(one.entropy),
            one.reason or ("estimate: nothing was trained" if one.is_estimate else f"{one.epochs} epochs"),
        )
        for one in study.lessons
    )
    headings = ("teacher → student", "top-1 %", "plain training %", "gain, points", "keeps %", "agree %", "entropy", "remark")
    note = "all on the half of the rows that no student learnt from; entropy of the teacher's probabilities in nats"
    return Grid("what students take", headings, rows, note, words=("remark",))


def transfer_grid(study: Interop) -> Grid:
    """Return what frozen trunks are worth."""
    shots = sorted({count for one in study.transfers for count in one.few_shot or {}})
    rows = tuple(
        (
            one.model,
            one.layer or one.reason,
            _score(one.probe),
            _score(one.neighbours),
            *(_share((one.few_shot or {}).get(count)) for count in shots),
            _number(one.leep),
            _number(one.logme),
        )
        for one in study.transfers
    )
    headings = ("model", "features", "probe %", "k-NN %", *(f"{count} a class %" for count in shots), "LEEP", "LogME")
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


def _fusion_row(one: Fusion) -> tuple[str, ...]:
    assert one.gain is not None
    assert one.accuracy is not None
    ece = [one.ece_before, one.accuracy.ece, one.ece_tempered]
    return (
        " + ".join(one.members),
        "/".join(f"{weight:.2f}" for weight in one.weights),
        f"{percent(one.accuracy.top1).value} {percent(one.accuracy.top1).bounds}",
        f"{one.gain.amount:+.2f} [{one.gain.low:+.2f}, {one.gain.high:+.2f}]",
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
