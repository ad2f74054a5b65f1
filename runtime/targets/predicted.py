"""Targets of providers that are not on this machine as a rule: what they would take is predicted, and nothing runs.

Where ONNX Runtime's build here has the provider, as on a Mac, the same target runs the model.
"""

from __future__ import annotations

from collections.abc import Mapping

from monograph.runtime.job import Job, RawRun, call_in_process, run_in_process
from monograph.runtime.results import Evidence
from monograph.runtime.session import available_providers
from monograph.runtime.session_spec import SessionSpec
from monograph.runtime.targets.target import Availability, Target


def predicted_target(name: str, title: str, provider: str, where: str, options: Mapping[str, str] | None = None) -> Target:
    """Return a target that runs where ``provider`` is in this build of ONNX Runtime, and is predicted elsewhere.

    ``where`` tells people which machines and packages have it.
    """
    is_here = provider in available_providers()
    detail = f"{provider} of this machine's ONNX Runtime" if is_here else f"predicted from operator lists; it runs {where}"
    return Target(
        name,
        title,
        provider,
        Evidence.EXECUTED if is_here else Evidence.PREDICTED,
        lambda: Availability(True, detail),
        session=SessionSpec(provider, options=dict(options or {})),
        run=run_in_process if is_here else run_nothing,
        call=call_in_process if is_here else None,
        streams_rows=is_here,
    )


def run_nothing(job: Job) -> RawRun:
    """Return a run with neither times nor outputs; rows that were given are told to be left unscored."""
    is_labelled = job.rows is not None and job.rows.labels is not None
    warnings = ("predicted: nothing ran, so nothing was scored; measure accuracy on cpu",) if is_labelled else ()
    return RawRun(timings=(), outputs=None, placement=(), warnings=warnings)
