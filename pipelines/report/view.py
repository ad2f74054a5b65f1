"""What the template shows besides the plain fields: bars with their positions, grouped warnings, the embedded record.

Positions are percentages of the width of the track they are drawn on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monograph.export.parity import ParityProof
from monograph.pipelines.report.formats import milliseconds, percent, show, significant, size_text
from monograph.pipelines.report.headline import gain, main_contender
from monograph.pipelines.report.merit import merit_of
from monograph.pipelines.report.model import Contender, FusionSummary, Ratio, Report
from monograph.runtime.results import Accuracy, Environment, to_record

_SAMPLES = "samples_ns"


@dataclass(frozen=True)
class Tile:
    """A key figure: what it is, its value with the unit, and one line about it."""

    label: str
    value: str
    unit: str
    detail: str


@dataclass(frozen=True)
class Span:
    """An interval on a track: where it starts, how long it is, and where its estimate lies."""

    left: float
    width: float
    point: float


@dataclass(frozen=True)
class ProofFigures:
    """The figures of one parity proof over all its batch sizes and outputs: always the worst."""

    batch_sizes: str
    rows: str
    max_abs_error: float
    scale: float
    cosine: float
    top1_agreement: float | None
    holds: bool


@dataclass(frozen=True)
class Machine:
    """One environment and the targets that were measured in it."""

    environment: Environment
    targets: str


def tiles(report: Report) -> list[Tile]:
    """Return the key figures of the fused graph; fewer where less was measured."""
    fused = main_contender(report)
    if fused is None:
        return []
    made, comparison = [], gain(report)
    merit = merit_of(fused.measurement)
    if merit is not None and merit.is_share:
        top1 = percent(merit.interval)
        made.append(Tile("Top-1 accuracy", top1.value, "%", top1.bounds))
    elif merit is not None:
        shown = show(merit.interval)
        name = f"{merit.label[0].upper()}{merit.label[1:]}"
        made.append(Tile(name, shown.value, "", shown.bounds if merit.has_interval else ""))
    if comparison:
        settled = "intervals overlap" if comparison.intervals_overlap else "intervals apart"
        label, unit = ("Over the best member", "points") if comparison.unit == "points" else ("Gain over the best member", "")
        made.append(Tile(label, comparison.signed, unit, f"{comparison.best_member}; {settled}"))
    if fused.latency:
        p99 = milliseconds(fused.latency.p99_s)
        batch = fused.latency.batch_size
        made.append(Tile("Median latency", milliseconds(fused.latency.p50_s).value, "ms", f"batch {batch}; p99 {p99.value} ms"))
    if report.ratios:
        first = report.ratios[0]
        bounds = f"[{significant(first.low)}, {significant(first.high)}]"
        made.append(Tile("Time ratio", significant(first.estimate), "×", f"{first.name} {bounds}"))
    if fused.best_throughput:
        best = fused.best_throughput
        made.append(Tile("Best throughput", show(best.rows_per_s).value, "rows/s", f"at batch {best.batch_size}"))
    value, unit = size_text(fused.measurement.size_bytes).split(" ")
    nodes = f"{report.fusion.node_count} nodes, one file" if report.fusion else "one file"
    made.append(Tile("Size", value, unit, nodes))
    return made + _shipping_tiles(report)


def _shipping_tiles(report: Report) -> list[Tile]:
    """Return what the student keeps, and the verdict on it."""
    made, student = [], report.student
    if student is not None and student.retention is not None:
        share = student.macs / student.teacher_macs if student.macs and student.teacher_macs else None
        work = "" if share is None else f" at {100 * share:.2g}% of its MACs"
        made.append(Tile("Student keeps", f"{100 * student.retention:.1f}", "%", f"of the fused graph's top-1{work}"))
    if report.verdict is not None:
        counted = f"{report.verdict.passed_count} of {report.verdict.check_count} checks passed"
        made.append(Tile("Gate", report.verdict.outcome, "", counted))
    return made


def top1_spans(accuracies: Sequence[Accuracy | None]) -> dict[int, Span]:
    """Return the top-1 interval of each model that was scored, by its position, on one common scale."""
    scored = {index: one.top1 for index, one in enumerate(accuracies) if one}
    if not scored:
        return {}
    low, high = min(one.low for one in scored.values()), max(one.high for one in scored.values())
    return {index: _span(one.estimate, one.low, one.high, low, high) for index, one in scored.items()}


def ratio_spans(ratios: Sequence[Ratio]) -> tuple[list[Span], float]:
    """Return each ratio's interval on a common logarithmic scale that includes 1, and where 1 lies."""
    if not ratios:
        return [], 0.0
    logs = [tuple(math.log(_drawable(value)) for value in (one.estimate, one.low, one.high)) for one in ratios]
    low_end, high_end = min(0.0, *(low for _, low, _ in logs)), max(0.0, *(high for _, _, high in logs))
    room = 0.04 * (high_end - low_end) + 0.03
    ends = low_end - room, high_end + room
    spans = [_span(point, low, high, *ends) for point, low, high in logs]
    return spans, _span(0.0, 0.0, 0.0, *ends).point


def weight_spans(fusion: FusionSummary) -> list[Span]:
    """Return each member's weight as a bar from zero; bars of negative weights lie left of it."""
    weights = [one.weight for one in fusion.members]
    low, high = min(0.0, *weights), max(0.0, *weights)
    return [_span(one, min(one, 0.0), max(one, 0.0), low, high) for one in weights]


def proof_figures(parity: ParityProof) -> ProofFigures:
    """Return the worst figures of a proof; error and scale belong to the same comparison."""
    agreements = [one.top1_agreement for one in parity.batches if one.top1_agreement is not None]
    return ProofFigures(
        batch_sizes=", ".join(str(size) for size in sorted({one.batch_size for one in parity.batches})),
        rows=", ".join(sorted({one.rows for one in parity.batches})),
        max_abs_error=parity.worst.max_abs_error,
        scale=parity.worst.scale,
        cosine=min(one.cosine for one in parity.batches),
        top1_agreement=min(agreements, default=None),
        holds=parity.worst.relative_error <= parity.tolerance,
    )


def machines(contenders: Sequence[Contender]) -> list[Machine]:
    """Return every distinct environment with its targets; how busy it was, or that it emulated another, makes no other one."""
    environments: list[Environment] = []
    targets: list[list[str]] = []
    for one in contenders:
        environment = replace(
            one.measurement.environment, load_before=None, load_after=None, throttled_periods=None, instruction_set=None
        )
        if environment not in environments:
            environments.append(environment)
            targets.append([])
        used = targets[environments.index(environment)]
        if one.measurement.target not in used:
            used.append(one.measurement.target)
    return [Machine(environment, ", ".join(used)) for environment, used in zip(environments, targets, strict=True)]


def warnings_by_text(contenders: Sequence[Contender]) -> dict[str, list[str]]:
    """Return every distinct warning with the names of the contenders it was given for."""
    grouped: dict[str, list[str]] = {}
    for one in contenders:
        for text in one.measurement.warnings:
            names = grouped.setdefault(text, [])
            if one.name not in names:
                names.append(one.name)
    return grouped


def record_json(result: Any) -> str:
    """Return a result dataclass as JSON that may stand inside a script element, with raw samples replaced by their count."""
    text = json.dumps(_embedded(to_record(result)), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Neither "</script" nor "<!--" may occur; inside JSON strings an escaped "<" is the same character.
    return text.replace("<", r"\u003c").replace("\u2028", r"\u2028").replace("\u2029", r"\u2029")


def _embedded(value: Any) -> Any:
    """Leave raw samples out; JSON has no infinity and no NaN, which become null, and no paths."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        pairs = (("sample_count", len(one)) if key == _SAMPLES else (key, _embedded(one)) for key, one in value.items())
        return dict(pairs)
    if isinstance(value, list | tuple):
        return [_embedded(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _drawable(ratio: float) -> float:
    """The track ends at a thousandth and at a thousandfold: beyond, and where nothing is known, only the figure tells."""
    return min(max(ratio, 1e-3), 1e3) if not math.isnan(ratio) else 1.0


def _span(point: float, start: float, end: float, low: float, high: float) -> Span:
    length = (high - low) or 1.0
    left, width, at = (100 * part / length for part in (start - low, end - start, point - low))
    return Span(round(left, 2), round(width, 2), round(at, 2))
