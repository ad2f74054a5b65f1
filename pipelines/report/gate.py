"""The verdict of a gate: a table for the terminal, and one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from rich.table import Table

from monograph.models.files import write_atomically
from monograph.pipelines.report import view
from monograph.pipelines.report.formats import percent
from monograph.pipelines.report.grid import Grid, grid_table
from monograph.pipelines.report.model import Contender, VerdictSummary
from monograph.pipelines.report.page import render_page

if TYPE_CHECKING:
    from monograph.pipelines.gate import Check, Verdict


def verdict_tables(verdict: Verdict) -> Iterator[Table]:
    """Yield the checks, and both classifiers side by side, for a terminal."""
    yield from map(grid_table, verdict_grids(verdict))


def verdict_summary(verdict: Verdict) -> VerdictSummary:
    """Return what a run's report tells of the verdict."""
    blocking = [check for check in verdict.checks if check.outcome.value != "pass"]
    return VerdictSummary(
        outcome=verdict.outcome.value,
        told=verdict.describe(),
        check_count=len(verdict.checks),
        passed_count=len(verdict.checks) - len(blocking),
        row_count=verdict.row_count,
        policy_sha256=verdict.policy_sha256,
        is_default_policy=verdict.is_default_policy,
        grids=tuple(verdict_grids(verdict)),
        blocking=tuple(check.describe() for check in blocking),
        # The rows of a run are prepared beforehand, which is no news of its gate.
        notes=tuple(note for note in verdict.notes if not note.startswith(f"{verdict.data}:")),
    )


def verdict_grids(verdict: Verdict) -> list[Grid]:
    """Return the checks, and both classifiers side by side."""
    from monograph.pipelines.gate.check import amount

    several = len(verdict.evidence) > 1
    rows = tuple(
        (
            check.name + (f" · {check.target}" if several and check.target else ""),
            amount(check.estimate, ""),
            "" if check.count is None else amount(check.bound, ""),
            f"{'≥' if check.is_least else '≤'} {amount(check.limit, check.unit)}",
            "" if check.count is None else f"{check.count:,}",
            check.outcome.value,
        )
        for check in verdict.checks
    )
    checks = Grid("checks", ("limit", "estimate", "95% bound", "allowed", "n", "verdict"), rows, words=("verdict",))
    return [checks, *([_beside_grid(verdict)] if verdict.beside else [])]


def write_gate_page(verdict: Verdict, path: Path) -> None:
    """Write one HTML file, beside ``path`` first and renamed when complete.

    Raises:
        ConfigError: ``path`` cannot be written to.
    """
    with write_atomically(path) as staged:
        staged.write_text(render_gate(verdict), encoding="utf-8")


def render_gate(verdict: Verdict) -> str:
    """Return the whole page; the same verdict gives the same text."""
    from monograph.pipelines.gate.check import amount

    contenders = [Contender(one.model, "member", one) for one in verdict.measurements]
    content = {
        "title": f"Gate of {Path(verdict.candidate.path).name} against {Path(verdict.reference.path).name}",
        "created": verdict.created,
        "version": verdict.monograph,
        "headline": _headline(verdict),
        "findings": [_finding(check) for check in verdict.checks if check.outcome.value != "pass"][:3],
        "tiles": [],
        "warnings": {},
        "record": view.record_json(verdict),
        "verdict": verdict,
        "amount": amount,
        "several_targets": len(verdict.evidence) > 1,
        "beside": _beside_grid(verdict) if verdict.beside else None,
        "policy": yaml.safe_dump(dict(verdict.policy), sort_keys=False, allow_unicode=True),
        "machines": view.machines(contenders),
    }
    return render_page("gate.html.j2", content)


def _headline(verdict: Verdict) -> str:
    name = Path(verdict.candidate.path).name
    told = {
        "pass": f"{name} may ship",
        "fail": f"{name} may not ship",
        "inconclusive": f"{name} may not ship yet: there is not enough evidence",
    }
    return f"{told[verdict.outcome.value]} ({verdict.describe().partition(': ')[2]})"


def _finding(check: Check) -> str:
    text = check.describe()
    return f"{text[0].upper()}{text[1:]}."


def _beside_grid(verdict: Verdict) -> Grid:
    headings = ("target", "candidate, top-1 %", "reference, top-1 %", "lost", "gained", "McNemar's p")
    rows = tuple(
        (
            one.target,
            str(percent(one.top1)),
            str(percent(one.reference_top1)),
            f"{one.lost:,}",
            f"{one.gained:,}",
            f"{one.mcnemar_p:.3g}",
        )
        for one in verdict.beside
    )
    note = "McNemar's p is told and never tested: a large one is no evidence that two models are equally good."
    return Grid("which rows are right", headings, rows, note)
