"""Metrics, slices and the parity matrix as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from monograph.pipelines.report.formats import MISSING, scientific, significant
from monograph.pipelines.report.grid import Grid
from monograph.runtime.results import Measurement, Score

_MOST_CLASSES_SHOWN = 30


def score_grids(measurements: Sequence[Measurement], *, with_metrics: bool = True) -> Iterator[Grid]:
    """Yield what was scored beside the main figures of a classifier: all metrics, classes, slices, then the parity matrix.

    Without ``with_metrics`` those that :func:`metric_grid` shows side by side are left out.
    """
    for one in measurements:
        yield from _scorecard_grids(one, with_metrics=with_metrics)
    yield from _parity_grid(measurements)


def metric_grid(measurements: Sequence[Measurement], names: Sequence[str]) -> Grid | None:
    """Set all metrics side by side, a line a model of ``names``; None where what was scored is classifiers, or nothing."""
    cards = [one.scorecard for one in measurements if one.scorecard is not None and one.scorecard.task != "classification"]
    metrics = tuple(dict.fromkeys(metric for card in cards for metric in card.scores))
    if not metrics:
        return None
    rows = []
    for name, one in zip(names, measurements, strict=True):
        scores = one.scorecard.scores if one.scorecard else {}
        rows.append((name, *_cells(scores, metrics), f"{one.scorecard.row_count:,}" if one.scorecard else MISSING))
    told = dict.fromkeys(f"{metric}: {score.note}" for card in cards for metric, score in card.scores.items() if score.note)
    return Grid("How right they are", ("model", *metrics, "test rows"), tuple(rows), "; ".join(told))


def _scorecard_grids(one: Measurement, *, with_metrics: bool) -> Iterator[Grid]:
    card, where = one.scorecard, f"{one.model} on {one.target}"
    if card is None:
        return
    if card.task != "classification" and with_metrics:
        yield Grid(
            f"{where}: {card.task}, {card.row_count:,} rows",
            ("metric", "value", "note"),
            _metric_rows(card.scores),
            words=("note",),
        )
    if 0 < len(card.classes) <= _MOST_CLASSES_SHOWN:
        names = tuple(card.classes[0].scores)
        rows = tuple((each.name, *_cells(each.scores, names), f"{each.row_count:,}") for each in card.classes)
        yield Grid(f"{where}: each class", ("class", *names, "rows"), rows)
    for column in dict.fromkeys(each.column for each in card.slices):
        slices = [each for each in card.slices if each.column == column]
        names = tuple(dict.fromkeys(name for each in slices for name in each.scores))
        rows = tuple(
            (each.value, *_cells(each.scores, names), f"{each.row_count:,}{f' ({each.note})' if each.note else ''}")
            for each in slices
        )
        yield Grid(f"{where}: slices by {column}", (column, *names, "rows"), rows)


def _parity_grid(measurements: Sequence[Measurement]) -> Iterator[Grid]:
    rows = tuple(
        (
            f"{one.model} · {one.target} ({one.evidence.value})",
            each.reference,
            _error_text(each.max_abs_error),
            _error_text(each.relative_error),
            f"{each.cosine:.7f}",
            f"{100 * each.top1_agreement.estimate:.2f} %" if each.top1_agreement else MISSING,
            f"{each.row_count:,}",
        )
        for one in measurements
        for each in one.parity
    )
    if rows:
        headings = ("target", "against", "max abs error", "relative", "cosine", "same top-1", "rows")
        note = "relative: to the largest absolute output of the reference"
        yield Grid("parity matrix", headings, rows, note, words=("against",))


def _error_text(error: float | None) -> str:
    return "not finite" if error is None else scientific(error)


def _metric_rows(scores: Mapping[str, Score]) -> tuple[tuple[str, ...], ...]:
    return tuple((name, score_text(score), score.note or "") for name, score in scores.items())


def _cells(scores: Mapping[str, Score], names: Sequence[str]) -> list[str]:
    return [score_text(scores[name]) if name in scores else MISSING for name in names]


def score_text(score: Score) -> str:
    """Return ``0.912 [0.896, 0.925]``, or a dash where these rows have no figure."""
    if score.estimate is None:
        return MISSING
    if score.low is None or score.high is None:
        return significant(score.estimate)
    return f"{significant(score.estimate)} [{significant(score.low)}, {significant(score.high)}]"
