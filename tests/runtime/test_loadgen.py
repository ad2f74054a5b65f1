"""MLPerf's LoadGen drives a real session; skipped where it is not installed."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from monograph.errors import ConfigError, MissingPackageError, WorkerError
from monograph.runtime.loadgen import SCENARIOS, Limits, LoadgenSpec, drive
from monograph.runtime.measure import Contender, Settings, measure
from monograph.runtime.targets import find_target
from monograph.runtime.timing import TimingRule

HERE = importlib.util.find_spec("mlperf_loadgen") is not None
needs_loadgen = pytest.mark.skipif(not HERE, reason="LoadGen is missing: pip install mlcommons-loadgen")
RULE = TimingRule(min_runs=40, min_s=0.05, max_s=5.0, warmup_s=0.0)


@needs_loadgen
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_each_scenario(scenario: str, classifier: Callable[..., Path], contender: Callable[[Path], Contender]):
    spec = LoadgenSpec(scenario, rate_per_s=500.0 if scenario == "server" else None)
    settings = Settings(batch_sizes=(1, 8), threads=1, rule=RULE, loadgen=spec)
    result = measure(contender(classifier()), find_target("cpu"), None, settings).loadgen
    assert result.scenario == scenario
    assert result.summary["Scenario"] == SCENARIOS[scenario]
    assert result.summary["Mode"] == "PerformanceOnly"
    assert result.is_valid, result.summary
    key = "QPS w/ loadgen overhead" if scenario == "single-stream" else None
    assert key is None or float(result.summary[key]) > 0


@needs_loadgen
@pytest.mark.parametrize(
    ("scenario", "batch_size", "one_by_one", "sizes"),
    [
        ("single-stream", 4, False, {1}),
        ("multi-stream", 4, False, {8}),
        ("multi-stream", 1, True, {1}),
        ("server", 4, False, {1}),
        ("offline", 4, False, {4}),
    ],
)
def test_how_samples_are_batched(scenario: str, batch_size: int, one_by_one: bool, sizes: set[int], tmp_path: Path):
    seen: set[int] = set()
    samples = {"x": np.arange(16, dtype=np.float32)[:, None]}
    spec = LoadgenSpec(scenario, rate_per_s=1000.0)
    result = drive(
        lambda batch: seen.add(len(batch["x"])), samples, spec, Limits(40, 0.01, 5.0), tmp_path,
        batch_size=batch_size, one_by_one=one_by_one,
    )  # fmt: skip
    assert seen - sizes <= ({1, 2, 3} if scenario == "offline" else set()), "the last batch may be smaller"
    assert sizes <= seen
    assert result["summary"]["Scenario"] == SCENARIOS[scenario]


@needs_loadgen
def test_a_model_that_fails_ends_it_with_its_error(tmp_path: Path):
    def fail(batch: object) -> None:
        raise WorkerError("out of memory")

    with pytest.raises(WorkerError, match="the model failed while LoadGen drove it: out of memory"):
        drive(fail, {"x": np.zeros((4, 1))}, LoadgenSpec("single-stream"), Limits(40, 0.01, 2.0), tmp_path)


@needs_loadgen
def test_a_fixed_batch_of_several_cannot_answer_single_samples(
    classifier: Callable[..., Path], contender: Callable[[Path], Contender]
):
    settings = Settings(threads=1, rule=RULE, loadgen=LoadgenSpec("single-stream"))
    with pytest.raises(ConfigError, match="this model takes 8 at a time"):
        measure(contender(classifier(batch="8")), find_target("cpu"), None, settings)
    one = measure(contender(classifier(batch="1", name="one")), find_target("cpu"), None, settings)
    assert one.loadgen.is_valid


@pytest.mark.skipif(HERE, reason="LoadGen is installed")
def test_without_it_the_message_says_what_to_install(
    classifier: Callable[..., Path], contender: Callable[[Path], Contender], quick: Settings
):
    with pytest.raises(MissingPackageError, match="pip install mlcommons-loadgen"):
        measure(contender(classifier()), find_target("cpu"), None, replace(quick, loadgen=LoadgenSpec("offline")))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (LoadgenSpec("server"), "--scenario server needs the rate at which queries come: add --rate"),
        (LoadgenSpec("burst"), "unknown scenario 'burst': choose from single-stream, multi-stream, server, offline"),
        (LoadgenSpec("offline", latency_bound_s=0), "latency bound of 0 s"),
    ],
)
def test_what_cannot_be_asked_for(spec: LoadgenSpec, message: str):
    with pytest.raises(ConfigError, match=message):
        spec.check()
