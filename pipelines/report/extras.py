"""Load, LoadGen and profile as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from monograph.pipelines.report.formats import MISSING, milliseconds, significant
from monograph.pipelines.report.grid import Grid
from monograph.runtime.results import Load, LoadgenResult, Measurement, Profile, Share

_MOST_ROWS = 12
_PERCENT = 100
_LOAD = ("model", "load", "answered/s", "p50 ms", "p90 ms", "p99 ms", "service p50 ms")
_LOADGEN = ("model", "scenario", "result", "what LoadGen says")
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


def speed_grids(measurements: Sequence[Measurement]) -> Iterator[Grid]:
    """Yield how long models take beside the first, measured in turns, and how long the device itself takes."""
    rows = tuple(
        (
            f"{one.model} · {one.target}",
            one.speed.reference,
            f"{significant(one.speed.ratio.estimate)} [{significant(one.speed.ratio.low)}, {significant(one.speed.ratio.high)}]",
            str(len(one.speed.p50_s)),
        )
        for one in measurements
        if one.speed
    )
    if rows:
        note = "ratio of p50; below 1 the model is the faster; the interval is over blocks of fresh processes"
        yield Grid("speed in turns", ("model", "beside", "ratio", "blocks"), rows, note, words=("beside",))
    timed = [(one, one.latency) for one in measurements if one.latency and one.latency.device_p50_s]
    if timed:
        times = tuple(
            (one.model, milliseconds(latency.device_p50_s).value, milliseconds(latency.p50_s).value) for one, latency in timed
        )
        note = "between two events on the device's stream, beside the whole call"
        yield Grid("time on the device", ("model", "device p50 ms", "call p50 ms"), times, note)


def load_grids(measurements: Sequence[Measurement]) -> Iterator[Grid]:
    """Yield the latency under load (ms) beside what a call alone took from its real begin, then what LoadGen said."""
    loads = [(one, one.load) for one in measurements if one.load]
    if loads:
        note = "with a rate, latency counts from the intended arrival" if any(load.rate_per_s for _, load in loads) else ""
        yield Grid("latency while calls come in", _LOAD, tuple(_load_row(*pair) for pair in loads), note, words=("load",))
    results = [(one, one.loadgen) for one in measurements if one.loadgen]
    if results:
        note = "no official MLPerf result: that takes a submission by MLCommons' rules"
        yield Grid("MLPerf LoadGen", _LOADGEN, tuple(_loadgen_row(*pair) for pair in results), note, words=_LOADGEN[1:])


def profile_grids(measurements: Sequence[Measurement]) -> Iterator[Grid]:
    """Yield where the time of a call goes: by member of a fused graph, by operator, by provider where there are several."""
    for one in measurements:
        if one.profile is None:
            continue
        profile = one.profile
        providers = profile.by_provider if len(profile.by_provider) > 1 else ()
        given = {"members": profile.by_members, "operator": profile.by_op_type, "provider": providers}
        kinds = {kind: shares for kind, shares in given.items() if shares}
        for kind, shares in kinds.items():
            title = f"{one.model} on {one.target}, batch {profile.batch_size}: time by {kind}"
            note = _profile_note(profile) if kind == list(kinds)[-1] else ""
            yield Grid(title, (kind, "nodes", "ms", "%"), _share_rows(shares), note)


def _load_row(measurement: Measurement, load: Load) -> tuple[str, ...]:
    callers = f"{load.concurrency} thread{'s' if load.concurrency > 1 else ''}"
    how = f"{load.rate_per_s:g}/s {load.arrivals}, {callers}" if load.rate_per_s else callers
    times = (milliseconds(interval).value for interval in (load.p50_s, load.p90_s, load.p99_s))
    return (measurement.model, how, significant(load.completed_per_s), *times, significant(load.service_p50_s * 1e3))


def _loadgen_row(measurement: Measurement, result: LoadgenResult) -> tuple[str, ...]:
    told = [f"{key}: {result.summary[key]}" for key in _LOADGEN_KEYS if key in result.summary]
    told += [f"{key}: {result.summary[key]}" for key in _LOADGEN_RULES if result.summary.get(key, "").upper() == "NO"]
    return (measurement.model, result.scenario, "valid" if result.is_valid else "INVALID", "\n".join(told))


def _profile_note(profile: Profile) -> str:
    call_ms, outside_ms = significant(profile.call_s * 1e3), significant(profile.outside_nodes_s * 1e3)
    return f"a call took {call_ms} ms with profiling on, {outside_ms} of it outside of nodes; means of {profile.run_count} calls"


def _share_rows(shares: Sequence[Share]) -> tuple[tuple[str, ...], ...]:
    """The slowest first; what is beyond twelve rows in one."""
    shown, rest = list(shares[:_MOST_ROWS]), shares[_MOST_ROWS:]
    if rest:
        shown.append(_sum(f"{len(rest)} more", rest))
    return tuple(map(_share_row, [*shown, _sum("all", shares)]))


def _sum(name: str, shares: Sequence[Share]) -> Share:
    return Share(name, sum(s.node_count for s in shares), sum(s.seconds for s in shares), sum(s.share for s in shares))


def _share_row(share: Share) -> tuple[str, ...]:
    name = share.name if share.name != "?" else "? (no member known)"
    return (name or MISSING, str(share.node_count), significant(share.seconds * 1e3), f"{share.share * _PERCENT:.1f}")
