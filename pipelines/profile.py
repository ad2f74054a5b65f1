"""Whose time it is: the profile of a fused graph, joined with the record of which members each node serves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from monograph.errors import SourceError
from monograph.export.fusion.sharing import members_by_node, members_by_output
from monograph.runtime.placement import original_name
from monograph.runtime.profiling import with_members
from monograph.runtime.results import Measurement


def attribute_to_members(measurement: Measurement, path: Path) -> Measurement:
    """Say for every profiled node which members it serves; what is no fused graph stays as it is."""
    if measurement.profile is None:
        return measurement
    try:
        by_node, by_output = members_by_node(path), members_by_output(path)
    except SourceError:
        return measurement
    names = tuple(dict.fromkeys(name for members in by_node.values() for name in members))

    def members_of(name: str) -> tuple[str, ...]:
        for candidate in (name, original_name(name)):
            found = by_node.get(candidate) or by_output.get(candidate)
            if found:
                return found
        owner = name.split("/")[0]
        return (owner,) if owner in names else ()

    return replace(measurement, profile=with_members(measurement.profile, members_of))
