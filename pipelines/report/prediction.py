"""What execution providers would take of models, as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from monograph.pipelines.report.formats import MISSING, shortened
from monograph.runtime.results import Measurement, Prediction

_REASONS_SHOWN = 3
_NAME_LENGTH = 18


def prediction_table(measurements: Sequence[Measurement]) -> Table:
    """Lay out, a line for each model and target: nodes taken, parts, the work that they cover and why the rest falls back."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column("model", overflow="fold")
    for heading in ("nodes", "parts", "MACs"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("what falls back to the processor, and why", overflow="fold")
    for one in measurements:
        if one.prediction is not None:
            # Text, not str: rich would read brackets in a name as markup.
            table.add_row(*map(Text, _cells(one, one.prediction)))
    table.caption = "predicted from operator lists and rules: nothing ran"
    return table


def _cells(measurement: Measurement, prediction: Prediction) -> tuple[str, ...]:
    return (
        f"{shortened(measurement.model, _NAME_LENGTH)} · {measurement.target}",
        f"{prediction.supported_count}/{len(prediction.nodes)}",
        str(len(prediction.partition_sizes)),
        MISSING if prediction.macs_share is None else _percent(prediction.macs_share),
        _reasons(prediction),
    )


def _percent(share: float) -> str:
    """A share of nearly all or nearly nothing is not rounded to all or nothing."""
    if 0.999 <= share < 1:
        return ">99.9%"
    return "<0.1%" if 0 < share < 0.001 else f"{share:.1%}"


def _reasons(prediction: Prediction) -> str:
    reasons = list(prediction.reasons.items())
    if not reasons:
        return "nothing"
    shown = [f"{count} × {reason}" for reason, count in reasons[:_REASONS_SHOWN]]
    rest = sum(count for _, count in reasons[_REASONS_SHOWN:])
    return "; ".join(shown) + (f"; {rest} more" if rest else "")
