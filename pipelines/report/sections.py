"""What of measurements is told in tables: in sections on the page, in short on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from monograph.pipelines.report.extras import load_grids, profile_grids, speed_grids
from monograph.pipelines.report.grid import Section, grid_table
from monograph.pipelines.report.placement import placement_grids, prediction_grids, support_grids
from monograph.pipelines.report.scorecard import score_grids
from monograph.runtime.results import Measurement

_SCORES = (
    "Brackets are 95% intervals: Wilson's for shares, Student's for NLL, by bootstrap over rows or groups otherwise. A dash is a "
    "figure that these rows do not have."
)
_PLACEMENT = (
    "Parts are what a provider took as a whole; between them data crosses to another. MACs are multiply-accumulates of a row "
    "that takes every branch. A dash was not counted or not profiled."
)
_PREDICTION = (
    "Told from the operator lists and rules that ONNX Runtime documents; nothing ran. What falls back runs on the processor, and "
    "data is copied to it and back."
)


def page_sections(measurements: Sequence[Measurement], *, with_metrics: bool = True) -> list[Section]:
    """Return the sections that have something to show; ``with_metrics`` as :func:`score_grids` takes it."""
    sections = [
        Section("scores", "Scores", _SCORES, tuple(score_grids(measurements, with_metrics=with_metrics))),
        Section("speed", "Speed", "", tuple(speed_grids(measurements))),
        Section("load", "Under load", "", tuple(load_grids(measurements))),
        Section("profile", "Where the time goes", "", tuple(profile_grids(measurements))),
        Section("placement", "Placement", _PLACEMENT, tuple(placement_grids(_mixed(measurements)))),
        Section(
            "prediction",
            "What a phone's provider would take",
            _PREDICTION,
            (*prediction_grids(measurements), *support_grids(measurements)),
        ),
    ]
    return [section for section in sections if section.grids]


def _mixed(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Those that several providers ran: of the others the table of contenders tells all."""
    return [one for one in measurements if len(one.placement) > 1]


def terminal_tables(measurements: Sequence[Measurement]) -> Iterator[Table]:
    """Yield the tables for a terminal, without the support of each operator."""
    for grids in (
        score_grids(measurements),
        speed_grids(measurements),
        load_grids(measurements),
        profile_grids(measurements),
        placement_grids(_mixed(measurements)),
        prediction_grids(measurements),
    ):
        yield from map(grid_table, grids)
