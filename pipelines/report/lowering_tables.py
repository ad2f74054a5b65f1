"""What is planned for a model in mixed precision, and where a lowered model departs from its source, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from monograph.export.lowering.explain import ExplainedLayer, Explanation
from monograph.export.lowering.plan import MixedPrecisionPlan, PlannedLayer
from monograph.pipelines.explain import Explained, SpeedBeside
from monograph.pipelines.report.formats import MISSING, count_text, shortened, significant, size_text
from monograph.pipelines.report.grid import Grid

_MOST_LAYERS = 30
_LONGEST_NAME = 36


def plan_grid(plan: MixedPrecisionPlan) -> Grid:
    """Lay out the plan, a layer a row."""
    note = (
        f"{plan.describe()}. Errors are shares of the float values: of what the layer gives, and of the model's output with "
        f"that layer alone in 8 bits. {plan.proof_rows:,} other rows prove {plan.option}."
    )
    headings = ("layer", "operators", "error", "of the output", "MACs", "weights", "precision", "why it stays in float")
    rows = tuple(map(_plan_row, plan.layers))
    title = f"{plan.model} by {plan.lowering}, {plan.option}"
    return Grid(title, headings, rows, note, words=("operators", "precision", "why it stays in float"))


def _plan_row(layer: PlannedLayer) -> tuple[str, ...]:
    macs = MISSING if layer.macs is None else count_text(layer.macs)
    share = "" if layer.macs_share is None else f" ({layer.macs_share:.0%})"
    return (
        shortened(layer.name, _LONGEST_NAME),
        layer.operator,
        _share(layer.local_error),
        _share(layer.output_error),
        f"{macs}{share}",
        size_text(layer.weight_bytes),
        "float" if layer.stays_float else "8 bits",
        layer.why,
    )


def explanation_grids(explained: Explained, most: int | None = _MOST_LAYERS) -> Iterator[Grid]:
    """Yield the tables of a lowered model beside its source; ``most`` layers, those with the largest errors of their own."""
    yield _error_grid(explained.explanation, most)
    if explained.speed is not None:
        yield from _speed_grids(explained.speed)


def _error_grid(explanation: Explanation, most: int | None) -> Grid:
    layers = _shown(explanation.layers, most)
    left_out = len(explanation.layers) - len(layers)
    beside = f" The {left_out:,} tensors with the smallest errors are left out." if left_out else ""
    note = (
        f"{explanation.row_count:,} rows. Alone: with inputs from the float graph. Together: after all layers before it. "
        f"SQNR is 20·log10(‖float‖/‖difference‖).{beside}"
    )
    headings = ("node", "operator", "error alone", "SQNR alone, dB", "error together", "SQNR, dB", "cosine", "max abs")
    rows = tuple(_error_row(layer, layer == explanation.broke) for layer in layers)
    return Grid("error of each layer, in order", headings, rows, note, words=("operator",))


def _shown(layers: Sequence[ExplainedLayer], most: int | None) -> list[ExplainedLayer]:
    if most is None or len(layers) <= most:
        return list(layers)
    worst = sorted(range(len(layers)), key=lambda index: -layers[index].local.relative_error)[:most]
    return [layers[index] for index in sorted(worst)]


def _error_row(layer: ExplainedLayer, is_worst: bool) -> tuple[str, ...]:
    local, together = layer.local, layer.accumulated
    mark = " ◀" if is_worst and local.relative_error > 0 else ""
    return (
        f"{shortened(layer.node, _LONGEST_NAME)}{mark}",
        layer.operator,
        _share(local.relative_error),
        _decibels(local.sqnr_db, local.relative_error),
        _share(together.relative_error),
        _decibels(together.sqnr_db, together.relative_error),
        f"{together.cosine:.5f}",
        significant(together.max_abs, 2),
    )


def _speed_grids(speed: SpeedBeside) -> Iterator[Grid]:
    rows = tuple(
        (one.operator, _microseconds(one.source_s), _microseconds(one.lowered_s), f"{1e6 * (one.lowered_s - one.source_s):+,.1f}")
        for one in speed.operators
    )
    note = "From ONNX Runtime's profiles, which take time themselves: the shares are right, the ratio is measured without."
    yield Grid("time of each operator in a call, µs", ("operator", "source", "lowered", "difference"), rows, note)
    if speed.nodes:
        nodes = tuple(
            (shortened(one.node, 60), one.operator, MISSING if one.source_s is None else _microseconds(one.source_s),
             _microseconds(one.lowered_s))
            for one in speed.nodes
        )  # fmt: skip
        yield Grid("nodes that cost more than in the source, µs", ("node", "operator", "source", "lowered"), nodes,
                   words=("operator",))  # fmt: skip


def _microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:,.1f}"


def _share(error: float | None) -> str:
    if error is None:
        return MISSING
    return "0" if error == 0 else f"{significant(100 * error, 2)}%"


def _decibels(value: float, error: float) -> str:
    return "∞" if error == 0 else f"{value:.1f}"
