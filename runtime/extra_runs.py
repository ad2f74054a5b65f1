"""What the child does for load, LoadGen and the profile; the other side is :mod:`monograph.runtime.extras`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from monograph.errors import ConfigError
from monograph.models.contract import Contract
from monograph.runtime.load import LoadSpec, run_load
from monograph.runtime.loadgen import Limits, LoadgenSpec, drive
from monograph.runtime.profiling import read_profile
from monograph.runtime.runner import find_loader, possible_batch_sizes, read_rows, timing_inputs
from monograph.runtime.session import open_session
from monograph.runtime.session_spec import SessionSpec
from monograph.runtime.timing import TimingRule

_LOADGEN_SAMPLES = 64
_PROFILE_WARMUP_RUNS, _FEWEST_PROFILED, _MOST_PROFILED = 5, 10, 100
"""A profile holds at most a million events, one a node and call."""


def load_and_call(
    loader: str, loader_arguments: Mapping[str, Any], contract_json: str, folder: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Child side: load, warm up, then call under the load that ``settings`` describe, at the first batch size."""
    contract, rows = Contract.from_json(contract_json), read_rows(folder)
    runner = find_loader(loader)(**loader_arguments, threads=settings["threads"], spinning=settings["spinning"])
    rule, spec = TimingRule(**settings["rule"]), LoadSpec(**settings["load"])
    inputs = timing_inputs(contract, rows, possible_batch_sizes(contract, settings["batch_sizes"])[0])
    calls = [runner.bind(inputs) for _ in range(spec.concurrency)]
    run_load(calls, LoadSpec(spec.concurrency), min_runs=len(calls), min_s=rule.warmup_s, max_s=rule.max_s)
    return asdict(run_load(calls, spec, min_runs=rule.min_runs, min_s=rule.min_s, max_s=rule.max_s))


def run_scenario(
    loader: str, loader_arguments: Mapping[str, Any], contract_json: str, folder: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Child side: load, warm up, then answer MLPerf's LoadGen."""
    contract, rows = Contract.from_json(contract_json), read_rows(folder)
    runner = find_loader(loader)(**loader_arguments, threads=settings["threads"], spinning=settings["spinning"])
    rule, spec = TimingRule(**settings["rule"]), LoadgenSpec(**settings["loadgen"])
    (batch_size,) = possible_batch_sizes(contract, [max(settings["batch_sizes"])])
    is_fixed = possible_batch_sizes(contract, [1, 2]) == [batch_size]
    if is_fixed and batch_size > 1:
        raise ConfigError(
            f"LoadGen asks for single samples, and this model takes {batch_size} at a time: export it with a free batch"
        )
    samples = rows.inputs if rows is not None else timing_inputs(contract, None, _LOADGEN_SAMPLES)
    runner({name: array[:1] for name, array in samples.items()})
    limits = Limits(rule.min_runs, rule.min_s, rule.max_s)
    return drive(runner, samples, spec, limits, Path(folder), batch_size=1 if is_fixed else batch_size, one_by_one=is_fixed)


def profile(
    loader: str, loader_arguments: Mapping[str, Any], contract_json: str, folder: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Child side: load an ONNX file with ONNX Runtime's profiler on, warm up, and call at the first batch size."""
    del loader
    contract, rows, rule = Contract.from_json(contract_json), read_rows(folder), TimingRule(**settings["rule"])
    session = open_session(
        Path(loader_arguments["path"]),
        spec=SessionSpec.from_record(loader_arguments["spec"]),
        threads=settings["threads"],
        spinning=settings["spinning"],
        profile_prefix=Path(folder) / "profile",
    )
    batch_size = possible_batch_sizes(contract, settings["batch_sizes"])[0]
    call = session.bind(timing_inputs(contract, rows, batch_size))
    began, run_count = time.perf_counter(), 0
    for _ in range(_PROFILE_WARMUP_RUNS):
        call()
    while run_count < _FEWEST_PROFILED or (run_count < _MOST_PROFILED and time.perf_counter() - began < rule.min_s):
        call()
        run_count += 1
    return asdict(read_profile(Path(session.ort_session.end_profiling()), _PROFILE_WARMUP_RUNS, batch_size))
