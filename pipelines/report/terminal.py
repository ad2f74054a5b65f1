"""The contenders as a table for a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from monograph.pipelines.report.formats import MISSING, milliseconds, percent, shortened, show, significant, size_text
from monograph.pipelines.report.model import Contender, by_target

_NAME_LENGTH, _NAME_LENGTH_BESIDE_TARGET, _TARGET_LENGTH = 24, 18, 8


def contender_table(contenders: Sequence[Contender]) -> Table:
    """Lay out what decides between the contenders: top-1 with its interval, NLL (nats), p50 and p99 (ms), rows a second, size."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    # The only column that may wrap: where room is short the names give way and no figure is cut.
    table.add_column("model", overflow="fold")
    for heading in ("top-1 %", "NLL", "p50 ms", "p99 ms", "rows/s", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    several = len(by_target(contenders)) > 1
    for one in contenders:
        table.add_row(*_cells(one, with_target=several), style="bold" if one.role == "fused" else "")
    if not all(one.is_timed for one in contenders):
        table.caption = "simulated and predicted: not a latency"
    return table


def _cells(one: Contender, *, with_target: bool) -> list[Text]:
    accuracy, best = one.measurement.accuracy, one.best_throughput
    cells = [
        _name(one, with_target=with_target),
        str(percent(accuracy.top1)) if accuracy else MISSING,
        significant(accuracy.nll) if accuracy else MISSING,
        *_times(one),
        show(best.rows_per_s).value if best else MISSING,
        size_text(one.measurement.size_bytes),
    ]
    # Text, not str: rich would read brackets in a model's name as markup.
    return [Text(cell) for cell in cells]


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
