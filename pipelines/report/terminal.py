"""The contenders as a table for a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from monograph.pipelines.report.formats import MISSING, milliseconds, percent, shortened, show, significant, size_text
from monograph.pipelines.report.merit import TOP1, merit_of
from monograph.pipelines.report.model import MAIN_ROLES, Contender, by_target

_NAME_LENGTH, _NAME_LENGTH_BESIDE_TARGET, _TARGET_LENGTH = 24, 18, 8


def contender_table(contenders: Sequence[Contender]) -> Table:
    """Lay out what decides between the contenders: how right they are, p50 and p99 (ms), rows a second, size.

    How right is top-1 with its interval and NLL (nats), or what fits of those that are no classifiers.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    # The only column that may wrap: where room is short the names give way and no figure is cut.
    table.add_column("model", overflow="fold")
    merits = [merit_of(one.measurement) for one in contenders]
    # Of what are no classifiers the figure by which they are judged stands in the place of both of a classifier.
    label = next((merit.label for merit in merits if merit), TOP1)
    for heading in (*(("top-1 %", "NLL") if label == TOP1 else (label,)), "p50 ms", "p99 ms", "rows/s", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    several = len(by_target(contenders)) > 1
    for one, merit in zip(contenders, merits, strict=True):
        scored = _accuracy_cells(one) if label == TOP1 else (merit.value() if merit and merit.label == label else MISSING,)
        cells = (*scored, *_cost_cells(one))
        # Text, not str: rich would read brackets in a model's name as markup.
        name = Text(_name(one, with_target=several))
        table.add_row(name, *map(Text, cells), style="bold" if one.role in MAIN_ROLES else "")
    if not all(one.is_timed for one in contenders):
        table.caption = "simulated and predicted: not a latency"
    return table


def _accuracy_cells(one: Contender) -> tuple[str, str]:
    accuracy = one.measurement.accuracy
    return (str(percent(accuracy.top1)), significant(accuracy.nll)) if accuracy else (MISSING, MISSING)


def _cost_cells(one: Contender) -> tuple[str, ...]:
    best = one.best_throughput
    return (*_times(one), show(best.rows_per_s).value if best else MISSING, size_text(one.measurement.size_bytes))


def _name(one: Contender, *, with_target: bool) -> str:
    if not with_target:
        return shortened(one.name, _NAME_LENGTH)
    return f"{shortened(one.name, _NAME_LENGTH_BESIDE_TARGET)} · {shortened(one.measurement.target, _TARGET_LENGTH)}"


def _times(one: Contender) -> tuple[str, str]:
    if not one.is_timed:
        return one.measurement.evidence.value, MISSING
    if one.latency is None:
        return MISSING, MISSING
    return milliseconds(one.latency.p50_s).value, milliseconds(one.latency.p99_s).value
