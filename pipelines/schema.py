"""The JSON Schema of what ``monograph measure --json`` prints, and raw samples as JSON Lines.

The schema is made from the dataclasses of :mod:`monograph.runtime.results`, so that it cannot say otherwise than they do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from monograph.models.files import write_atomically
from monograph.runtime.results import SCHEMA_VERSION, Measurement


def measurement_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a list of measurements, as they are written."""
    schema = TypeAdapter(list[Measurement]).json_schema(mode="serialization")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Measurements of monograph",
        "description": f"What `monograph measure --json` prints. Version {SCHEMA_VERSION}, which each record repeats.",
        "version": SCHEMA_VERSION,
    } | schema


def schema_json() -> str:
    """Return the schema as indented JSON."""
    return json.dumps(measurement_schema(), indent=1, ensure_ascii=False) + "\n"


def sample_lines(measurements: Sequence[Measurement]) -> Iterator[str]:
    """Yield one JSON text a timed call, in the order of the calls: model, target, evidence, batch size, number and time."""
    for one in measurements:
        if one.latency is None:
            continue
        head = {"schema_version": one.schema_version, "model": one.model, "sha256": one.sha256, "target": one.target}
        call = {"evidence": one.evidence.value, "batch_size": one.latency.batch_size}
        for number, sample_ns in enumerate(one.latency.samples_ns):
            yield json.dumps({**head, **call, "call": number, "time_ns": sample_ns}, ensure_ascii=False)


def write_samples(path: Path, measurements: Sequence[Measurement]) -> None:
    """Write the raw samples as JSON Lines.

    Raises:
        ConfigError: ``path`` cannot be written to.
    """
    with write_atomically(path) as staged, staged.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in sample_lines(measurements))
