"""The steps of a run beyond fusing, as sections of its report: adaptation, ranking, student, gate, bundle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.table import Table

from monograph.pipelines.report.grid import Grid, grid_table
from monograph.pipelines.report.model import RankingGain, Report
from monograph.pipelines.report.scorecard import score_text


@dataclass(frozen=True)
class Chapter:
    """A section of the page: sentences, tables, notes and a link to a report of its own."""

    key: str
    title: str
    told: str
    grids: tuple[Grid, ...] = ()
    notes: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = field(default=())
    """Text and address, beside this report."""


def chapters(report: Report) -> list[Chapter]:
    """Return the sections of the steps that were done, in their order."""
    return [*_adaptation(report), *_ranking(report), *_student(report), *_gate(report), *_bundle(report)]


def line_tables(report: Report) -> Iterator[Table]:
    """Yield for a terminal what decides: the gain of a ranking, the student beside the fused graph, the checks of the gate."""
    grids = [] if not report.ranking else _ranking_grids(report.ranking)
    grids += [] if report.student is None else [report.student.grids[0]]
    grids += [] if report.verdict is None else list(report.verdict.grids)
    yield from map(grid_table, grids)


def _adaptation(report: Report) -> Iterator[Chapter]:
    if not report.adaptations:
        return
    yield Chapter(
        "adaptation",
        "Adaptation",
        f"Pretrained models learned what the rows are labelled with. {'; '.join(one.told for one in report.adaptations)}.",
        tuple(grid for one in report.adaptations for grid in one.grids),
        tuple(f"{one.member}: {note}" for one in report.adaptations for note in one.notes),
        tuple((f"The adaptation of {one.member}", one.page) for one in report.adaptations),
    )


def _ranking(report: Report) -> Iterator[Chapter]:
    if report.ranking:
        yield Chapter(
            "ranking",
            "What fusing gains",
            "Test rows are ranked by their scores within each group. The gain over the best member is paired by group, so that "
            "what makes a group easy or hard does not count.",
            tuple(_ranking_grids(report.ranking)),
        )


def _ranking_grids(gains: Sequence[RankingGain]) -> list[Grid]:
    """Set members and fused graph side by side, a column a metric; then what fusing gained by each."""
    headings = tuple(one.metric for one in gains)
    rows = [(name, *(score_text(one.members[name]) for one in gains)) for name in gains[0].members]
    rows.append(("fused", *(score_text(one.fused) for one in gains)))
    groups = ", ".join(f"{one.metric} over {one.group_count:,} groups" for one in gains)
    changes = tuple((one.metric, one.best_member, _gain_text(one)) for one in gains)
    return [
        Grid("ranking", ("model", *headings), tuple(rows), f"Means with 95% intervals: {groups}."),
        Grid("the fused graph over its best member", ("metric", "best member", "gain"), changes, words=("best member",)),
    ]


def _gain_text(one: RankingGain) -> str:
    bounds = (one.gain.estimate, one.gain.low, one.gain.high)
    estimate, low, high = (f"{value:+.4f}".replace("-", "\u2212") for value in bounds)
    settled = "" if one.gain.low > 0 or one.gain.high < 0 else ", not settled"
    return f"{estimate} [{low}, {high}]{settled}"


def _student(report: Report) -> Iterator[Chapter]:
    one = report.student
    if one is not None:
        links = (("The distillation", one.page),) if one.page else ()
        yield Chapter("student", "The student", one.sentence, one.grids, one.notes, links)


def _gate(report: Report) -> Iterator[Chapter]:
    verdict = report.verdict
    if verdict is None:
        return
    judged = f" on {verdict.row_count:,} test rows" if verdict.row_count else ""
    policy = "the default policy" if verdict.is_default_policy else "the policy of the pipeline file"
    told = (
        f"May the student take the place of the fused graph? {verdict.told[0].upper()}{verdict.told[1:]}{judged}, by {policy} "
        f"(SHA-256 {verdict.policy_sha256[:12]}…). A check passes where its one-sided 95% bound keeps the limit; where there is "
        "not enough evidence nothing ships either."
    )
    notes = (*verdict.blocking, *verdict.notes)
    yield Chapter("gate", "The gate", told, verdict.grids, notes, (("The verdict", "verdict.html"),))


def _bundle(report: Report) -> Iterator[Chapter]:
    bundle = report.bundle
    if bundle is None:
        return
    held = f" It holds {', '.join(bundle.files)}." if bundle.files else ""
    yield Chapter("bundle", "The bundle", f"{bundle.told}{held}", notes=bundle.notes)
