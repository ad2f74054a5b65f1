"""Load, LoadGen and profile as tables for a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from monograph.pipelines.report.formats import MISSING, milliseconds, significant
from monograph.runtime.results import Load, LoadgenResult, Measurement, Profile, Share

_MOST_ROWS = 12
_PERCENT = 100
_LOADGEN_KEYS = (
    "90th percentile latency (ns)",
    "90.00 percentile latency (ns)",
    "99.00 percentile latency (ns)",
    "99.9 percentile latency (ns)",
    "Mean latency (ns)",
    "QPS w/ loadgen overhead",
    "Per-query latency",
    "Completed samples per second",
    "Scheduled samples per second",
    "Samples per second",
)
_LOADGEN_RULES = (
    "Performance constraints satisfied",
    "Min duration satisfied",
    "Min queries satisfied",
    "Early stopping satisfied",
)


def extra_tables(measurements: Sequence[Measurement]) -> Group | None:
    """Lay out what was measured beside the timing; None where nothing was."""
    parts: list[Table | Text] = []
    loads = [(one, one.load) for one in measurements if one.load]
    if loads:
        parts.append(_load_table(loads))
        if any(load.rate_per_s for _, load in loads):
            parts.append(Text("with a rate, latency counts from the intended arrival"))
    results = [(one, one.loadgen) for one in measurements if one.loadgen]
    if results:
        parts.append(_loadgen_table(results))
        parts.append(Text("no official MLPerf result: that takes a submission by MLCommons' rules"))
    for one in measurements:
        if one.profile:
            parts += _profile_tables(one, one.profile)
    return Group(*parts) if parts else None


def _load_table(loads: Sequence[tuple[Measurement, Load]]) -> Table:
    """Latency under load (ms) beside what a call alone took from its real begin."""
    table = _table("model", "load", "answered/s", "p50 ms", "p90 ms", "p99 ms", "service p50 ms")
    for measurement, load in loads:
        callers = f"{load.concurrency} thread{'s' if load.concurrency > 1 else ''}"
        how = f"{load.rate_per_s:g}/s {load.arrivals}, {callers}" if load.rate_per_s else callers
        times = (milliseconds(interval).value for interval in (load.p50_s, load.p90_s, load.p99_s))
        cells = [measurement.model, how, significant(load.completed_per_s), *times, significant(load.service_p50_s * 1e3)]
        table.add_row(*map(Text, cells))
    return table


def _loadgen_table(results: Sequence[tuple[Measurement, LoadgenResult]]) -> Table:
    table = _table("model", "MLPerf scenario", "result", "what LoadGen says")
    for measurement, result in results:
        told = [f"{key}: {result.summary[key]}" for key in _LOADGEN_KEYS if key in result.summary]
        told += [f"{key}: {result.summary[key]}" for key in _LOADGEN_RULES if result.summary.get(key, "").upper() == "NO"]
        cells = [measurement.model, result.scenario, "valid" if result.is_valid else "INVALID", "\n".join(told)]
        table.add_row(*map(Text, cells))
    return table


def _profile_tables(measurement: Measurement, profile: Profile) -> list[Table | Text]:
    parts: list[Table | Text] = [
        Text(f"\nwhere the time of {measurement.model} goes on {measurement.target}, batch {profile.batch_size}")
    ]
    for heading, shares in (
        ("members", profile.by_members),
        ("operator", profile.by_op_type),
        ("provider", profile.by_provider if len(profile.by_provider) > 1 else ()),
    ):
        if shares:
            parts.append(_share_table(heading, shares))
    call_ms, outside_ms = significant(profile.call_s * 1e3), significant(profile.outside_nodes_s * 1e3)
    note = f"a call took {call_ms} ms with profiling on, {outside_ms} of it outside of nodes; means of {profile.run_count} calls"
    return [*parts, Text(note)]


def _share_table(heading: str, shares: Sequence[Share]) -> Table:
    """The slowest first; what is beyond twelve rows in one."""
    table = _table(heading, "nodes", "ms", "%")
    shown, rest = list(shares[:_MOST_ROWS]), shares[_MOST_ROWS:]
    if rest:
        shown.append(
            Share(
                f"{len(rest)} more",
                sum(share.node_count for share in rest),
                sum(share.seconds for share in rest),
                sum(share.share for share in rest),
            )
        )
    shown.append(Share("all", sum(s.node_count for s in shares), sum(s.seconds for s in shares), sum(s.share for s in shares)))
    for share in shown:
        name = share.name if share.name != "?" else "? (no member known)"
        cells = [name or MISSING, str(share.node_count), significant(share.seconds * 1e3), f"{share.share * _PERCENT:.1f}"]
        table.add_row(*map(Text, cells))
    return table


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for number, heading in enumerate(headings):
        table.add_column(
            heading, justify="left" if number < 1 or heading in _WORDS else "right", overflow="fold", no_wrap=heading == "load"
        )
    return table


_WORDS = ("load", "MLPerf scenario", "result", "what LoadGen says")
