"""ONNX Runtime's profile of a session, read: the time of each node, added up so that the sum is the time of the call.

ONNX Runtime tells whole microseconds, cut off, and profiling itself takes time: shares are to be believed, and the time of a
call is that of the latency, measured without. A node with branches (If, Loop, Scan) is told with all that ran inside; here
it keeps what was its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monograph.runtime.results import Profile, ProfiledNode, Share

_KERNEL = "_kernel_time"
_US_PER_S = 1_000_000


def read_profile(path: Path, warmup_runs: int, batch_size: int) -> Profile:
    """Read the file that a profiled session wrote; its first ``warmup_runs`` calls are left out."""
    events = json.loads(path.read_text(encoding="utf-8"))
    runs = sorted((event for event in events if event.get("name") == "model_run"), key=lambda event: event["ts"])[warmup_runs:]
    begin_us = runs[0]["ts"]
    kernels = [event for event in events if event.get("name", "").endswith(_KERNEL) and event["ts"] >= begin_us]
    nodes: dict[tuple[str, str, str], float] = {}
    for event, own_us in zip(kernels, _own_times_us(kernels), strict=True):
        told = event["args"]
        key = (event["name"].removesuffix(_KERNEL), told.get("op_name", "?"), told.get("provider", "?"))
        nodes[key] = nodes.get(key, 0.0) + own_us
    per_run = _US_PER_S * len(runs)
    profiled = tuple(ProfiledNode(*key, seconds=time_us / per_run) for key, time_us in nodes.items())
    return summarise_profile(profiled, batch_size, len(runs), sum(run["dur"] for run in runs) / per_run)


def summarise_profile(nodes: Sequence[ProfiledNode], batch_size: int, run_count: int, call_s: float) -> Profile:
    """Add up nodes by operator, by provider and, where they have any, by members."""
    total_s = sum(node.seconds for node in nodes)
    return Profile(
        batch_size=batch_size,
        run_count=run_count,
        call_s=call_s,
        nodes_s=total_s,
        outside_nodes_s=call_s - total_s,
        nodes=tuple(sorted(nodes, key=lambda node: -node.seconds)),
        by_op_type=_shares(nodes, lambda node: node.op_type, total_s),
        by_provider=_shares(nodes, lambda node: node.provider, total_s),
        by_members=_shares(nodes, _members_label, total_s) if any(node.members for node in nodes) else (),
    )


def with_members(profile: Profile, members_of: Callable[[str], tuple[str, ...]]) -> Profile:
    """Say for every node which members of the fused graph it serves; ``members_of`` takes the name that ONNX Runtime gave it."""
    nodes = [
        ProfiledNode(node.name, node.op_type, node.provider, node.seconds, tuple(members_of(node.name))) for node in profile.nodes
    ]
    return summarise_profile(nodes, profile.batch_size, profile.run_count, profile.call_s)


def profile_from_record(record: Mapping[str, Any]) -> Profile:
    """Read back what crossed a process boundary as JSON."""
    nodes = [ProfiledNode(**node | {"members": tuple(node["members"])}) for node in record["nodes"]]
    return summarise_profile(nodes, record["batch_size"], record["run_count"], record["call_s"])


def _members_label(node: ProfiledNode) -> str:
    """One member's name; those who share it, joined; a question mark where nobody knows."""
    return " + ".join(node.members) or "?"


def _shares(nodes: Iterable[ProfiledNode], label: Callable[[ProfiledNode], str], total_s: float) -> tuple[Share, ...]:
    groups: dict[str, list[ProfiledNode]] = {}
    for node in nodes:
        groups.setdefault(label(node), []).append(node)
    shares = []
    for name, group in groups.items():
        seconds = sum(node.seconds for node in group)
        shares.append(Share(name, len(group), seconds, seconds / total_s if total_s else 0.0))
    return tuple(sorted(shares, key=lambda share: -share.seconds))


def _own_times_us(kernels: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the time of each event without that of the events inside it; those of one thread are nested or apart."""
    own = [float(event["dur"]) for event in kernels]
    order = sorted(range(len(kernels)), key=lambda i: (kernels[i]["tid"], kernels[i]["ts"], -kernels[i]["dur"]))
    open_: list[int] = []
    for i in order:
        event = kernels[i]
        while open_ and not _is_inside(event, kernels[open_[-1]]):
            open_.pop()
        if open_:
            own[open_[-1]] -= event["dur"]
        if event["args"].get("op_name") in _WITH_BRANCHES:
            open_.append(i)
    return own


_WITH_BRANCHES = ("If", "Loop", "Scan")


def _is_inside(event: Mapping[str, Any], outer: Mapping[str, Any]) -> bool:
    return bool(event["tid"] == outer["tid"] and event["ts"] < outer["ts"] + outer["dur"])
