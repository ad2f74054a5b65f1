"""Where the nodes of models ran, and where those of a phone's provider would: as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from monograph.pipelines.report.formats import MISSING, shortened
from monograph.pipelines.report.grid import Grid
from monograph.runtime.results import Measurement, Prediction

_REASONS_SHOWN = 3
_NAME_LENGTH = 18


def placement_grids(measurements: Sequence[Measurement]) -> Iterator[Grid]:
    """Yield what each provider ran, a line for each model, target and provider: nodes, parts, work and time."""
    rows = []
    for one in measurements:
        total = sum(placed.macs or 0 for placed in one.placement)
        times = {share.name: share.share for share in one.profile.by_provider} if one.profile else {}
        for placed in one.placement:
            work = MISSING if placed.macs is None or not total else percent_text(placed.macs / total)
            time = percent_text(times[placed.provider]) if placed.provider in times else MISSING
            rows.append(
                (
                    f"{shortened(one.model, _NAME_LENGTH)} · {one.target}",
                    placed.provider.removesuffix("ExecutionProvider"),
                    str(len(placed.nodes)),
                    str(placed.partition_count),
                    work,
                    time,
                )
            )
    if rows:
        yield Grid("what ran where", ("model", "provider", "nodes", "parts", "MACs", "time"), tuple(rows), words=("provider",))


def prediction_grids(measurements: Sequence[Measurement]) -> Iterator[Grid]:
    """Yield, a line for each model and target, what its provider would take and why the rest falls back."""
    rows = tuple(_prediction_row(one, one.prediction) for one in measurements if one.prediction is not None)
    if rows:
        last = "what falls back to the processor, and why"
        note = "predicted from operator lists and rules: nothing ran"
        yield Grid("what a provider would take", ("model", "nodes", "parts", "MACs", last), rows, note, words=(last,))


def support_grids(measurements: Sequence[Measurement]) -> Iterator[Grid]:
    """Yield for each prediction the operators that fall back, how many of their nodes are taken, and every reason."""
    for one in measurements:
        if one.prediction is None:
            continue
        operators: dict[str, list[str | None]] = {}
        for node in one.prediction.nodes:
            operators.setdefault(node.op_type, []).append(node.reason)
        rows, taken = [], 0
        for operator, reasons in sorted(operators.items()):
            against = dict.fromkeys(reason for reason in reasons if reason is not None)
            told = "; ".join(f"{reasons.count(reason)} × {reason}" for reason in against)
            if told:
                rows.append((operator, f"{reasons.count(None)}/{len(reasons)}", told))
            else:
                taken += len(reasons)
        rows.append(("all others", f"{taken}/{taken}", MISSING))
        sizes = ", ".join(f"{name}={size}" for name, size in one.prediction.fixed_dimensions.items())
        note = f"by {one.prediction.rules}{f', with {sizes}' if sizes else ''}"
        title = f"{one.model} on {one.target}: each operator"
        yield Grid(title, ("operator", "taken", "why not"), tuple(rows), note, words=("why not",))


def percent_text(share: float) -> str:
    """Return a share in percent; nearly all or nearly nothing is not rounded to all or nothing."""
    if 0.999 <= share < 1:
        return ">99.9%"
    return "<0.1%" if 0 < share < 0.001 else f"{share:.1%}"


def _prediction_row(measurement: Measurement, prediction: Prediction) -> tuple[str, ...]:
    return (
        f"{shortened(measurement.model, _NAME_LENGTH)} · {measurement.target}",
        f"{prediction.supported_count}/{len(prediction.nodes)}",
        str(len(prediction.partition_sizes)),
        MISSING if prediction.macs_share is None else percent_text(prediction.macs_share),
        _reasons(prediction),
    )


def _reasons(prediction: Prediction) -> str:
    reasons = list(prediction.reasons.items())
    if not reasons:
        return "nothing"
    shown = [f"{count} × {reason}" for reason, count in reasons[:_REASONS_SHOWN]]
    rest = sum(count for _, count in reasons[_REASONS_SHOWN:])
    return "; ".join(shown) + (f"; {rest} more" if rest else "")
