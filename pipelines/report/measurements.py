"""The report of ``monograph measure``: the page of a pipeline run, with what a measurement alone has to tell."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import monograph
from monograph.pipelines.report.model import Contender, Report
from monograph.pipelines.report.render import write_report
from monograph.runtime.results import Measurement


def write_measurement_report(path: Path, measurements: Sequence[Measurement], data: str | None, duration_s: float) -> None:
    """Write one HTML file that shows the measurements, which took ``duration_s`` in all.

    Raises:
        ConfigError: ``path`` cannot be written to.
    """
    models = ", ".join(dict.fromkeys(one.model for one in measurements))
    report = Report(
        title=f"Measurements of {models}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        version=monograph.__version__,
        data=data or "random rows, which are timed and not scored",
        contenders=tuple(Contender(one.model, "member", one) for one in measurements),
        proofs=(),
        fusion=None,
        curves=(),
        ratios=(),
        commands=(),
        pipeline_yaml="",
        duration_s=duration_s,
        notes=tuple(dict.fromkeys(note for one in measurements for note in one.assumed)),
    )
    write_report(report, path)
