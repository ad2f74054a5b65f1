"""What is measured only where it is asked for, each in a fresh process of its own after the timing: load, LoadGen, profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from monograph.errors import ConfigError
from monograph.runtime.job import Job, Settings
from monograph.runtime.latency import load_warnings, summarise_load
from monograph.runtime.load import RawLoad
from monograph.runtime.loadgen import LoadgenSpec, check_loadgen
from monograph.runtime.profiling import profile_from_record
from monograph.runtime.results import Load, LoadgenResult, Profile
from monograph.runtime.targets.target import Target
from monograph.runtime.timing import RawTiming

_MOST_ROWS = 1024


@dataclass(frozen=True)
class Extras:
    """What came of them; None where it was not asked for."""

    load: Load | None = None
    loadgen: LoadgenResult | None = None
    profile: Profile | None = None
    warnings: tuple[str, ...] = ()


def wanted_extras(settings: Settings) -> list[str]:
    """Return the options that ask for something beyond timing."""
    options = {"--rate or --concurrency": settings.load, "--scenario": settings.loadgen, "--profile": settings.profile}
    return [option for option, value in options.items() if value]


def can_measure_extras(target: Target) -> bool:
    """Say whether ``target`` has a Python of its own, and times that are a latency."""
    return target.call is not None and target.evidence_here.gives_latency


def check_extras(targets: Sequence[Target], settings: Settings) -> None:
    """Say before anything is measured what cannot be on any of ``targets``.

    Raises:
        ConfigError: none of them runs ONNX Runtime's Python package on real hardware, or a load is out of range.
        MissingPackageError: LoadGen is asked for and not installed.
    """
    wanted = wanted_extras(settings)
    if wanted and not any(map(can_measure_extras, targets)):
        raise ConfigError(
            f"{', '.join(target.name for target in targets)} cannot do {', '.join(wanted)}: they need hardware that runs ONNX "
            "Runtime's Python package, such as the targets cpu, cuda and ssh://HOST/cpu"
        )
    if settings.load is not None:
        settings.load.check()
    if settings.loadgen is not None:
        settings.loadgen.check()
        check_loadgen()


def possible_extras(target: Target, settings: Settings) -> tuple[Settings, list[str]]:
    """Return the settings without what ``target`` cannot do, and a warning of it."""
    wanted = wanted_extras(settings)
    if not wanted or can_measure_extras(target):
        return settings, []
    why = "it runs no Python" if target.gives_latency and target.call is None else "its times are no latency"
    return replace(settings, load=None, loadgen=None, profile=False), [f"{target.name}: no {', '.join(wanted)} there, {why}"]


def measure_extras(job: Job, target: Target, timings: Sequence[RawTiming]) -> Extras:
    """Measure what the settings of ``job`` ask for, once its calls are timed."""
    if target.call is None:
        return Extras()
    load, loadgen, profile = None, None, None
    if job.rows is not None:
        job = replace(job, rows=job.rows.take(slice(0, _MOST_ROWS)))
    if job.settings.load is not None:
        record = target.call("monograph.runtime.extra_runs:load_and_call", job)
        load = summarise_load(RawLoad.from_record(record), job.settings.load)
    if job.settings.loadgen is not None:
        job = replace(job, settings=replace(job.settings, loadgen=_told_the_rate(job.settings.loadgen, timings)))
        loadgen = LoadgenResult(**target.call("monograph.runtime.extra_runs:run_scenario", job))
    if job.settings.profile:
        profile = profile_from_record(target.call("monograph.runtime.extra_runs:profile", job))
    return Extras(load, loadgen, profile, tuple(load_warnings(load)) if load else ())


def _told_the_rate(spec: LoadgenSpec, timings: Sequence[RawTiming]) -> LoadgenSpec:
    """Queries are made beforehand, enough of them for the least duration at the rate that LoadGen is told to expect."""
    if spec.rate_per_s is not None or not timings:
        return spec
    return replace(spec, rate_per_s=max(raw.batch_size / median(raw.samples_ns) * 1e9 for raw in timings))
