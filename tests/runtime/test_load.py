"""Callers at once and arrivals at a rate, on a service whose time is known and that stalls when it is told to."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from monograph.errors import ConfigError, MonographError
from monograph.runtime.extras import check_extras, possible_extras
from monograph.runtime.latency import load_warnings, summarise_load
from monograph.runtime.load import LoadSpec, RawLoad, intended_times_ns, run_load
from monograph.runtime.measure import Contender, Settings, measure
from monograph.runtime.results import Evidence
from monograph.runtime.statistics import batched_quantile_interval, quantile_interval
from monograph.runtime.targets import find_target
from monograph.runtime.timing import TimingRule

MS = 1_000_000


class Service:
    """Sleeps 1 ms a call, and once 400 ms."""

    def __init__(self, stall_at: int | None = None) -> None:
        self.stall_at = stall_at
        self.count = 0
        self.at_once = 0
        self.most_at_once = 0
        self.lock = threading.Lock()

    def __call__(self) -> None:
        with self.lock:
            self.count += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            stalls = self.count == self.stall_at
        time.sleep(0.4 if stalls else 0.001)
        with self.lock:
            self.at_once -= 1


def test_a_stall_counts_for_all_that_queue_behind_it_only_where_arrivals_do_not_wait():
    """100 calls a second for 4 s, of which one stalls for 0.4 s: some 40 calls arrive meanwhile, one in ten."""
    spec = LoadSpec(rate_per_s=100.0, arrivals="constant")
    opened = summarise_load(run_load([Service(200)], spec, min_runs=400, min_s=0, max_s=20), spec)
    closed = summarise_load(run_load([Service(200)], LoadSpec(), min_runs=400, min_s=0, max_s=20), LoadSpec())
    assert closed.p99_s.estimate < 0.1, "one call of 400 is beyond p99"
    assert max(closed.latency_ns) >= 400 * MS
    assert opened.p99_s.estimate > 0.3
    assert opened.service_p99_s < 0.1, "from its real begin only the one call is slow"
    assert sum(latency > 50 * MS for latency in opened.latency_ns) >= 25
    assert opened.not_begun == 0


def test_all_callers_call_at_once():
    service = Service()
    raw = run_load([service] * 4, LoadSpec(4), min_runs=80, min_s=0, max_s=5)
    assert service.most_at_once == 4
    assert service.count == len(raw.service_ns) >= 80
    assert raw.latency_ns == raw.service_ns
    assert min(raw.service_ns) >= MS


def test_time_ends_a_closed_loop():
    raw = run_load([Service()] * 2, LoadSpec(2), min_runs=10**9, min_s=0, max_s=0.2)
    assert 0.2 <= raw.elapsed_ns / 1e9 < 5
    assert len(raw.service_ns) >= 2


def test_a_second_thread_serves_what_arrives_while_the_first_is_busy():
    service = Service()
    spec = LoadSpec(2, rate_per_s=1500.0, arrivals="constant")
    raw = run_load([service] * 2, spec, min_runs=300, min_s=0, max_s=5)
    assert service.most_at_once == 2
    assert service.count == len(raw.latency_ns) == 300
    assert all(latency >= MS for latency in raw.latency_ns)


def test_a_rate_that_is_too_high_is_told_and_what_waits_counts():
    """1 ms a call and more cannot serve 4,000 a second."""
    spec = LoadSpec(rate_per_s=4000.0)
    raw = run_load([Service()], spec, min_runs=400, min_s=0, max_s=0.4)
    assert raw.not_begun > 0
    assert len(raw.latency_ns) == len(raw.service_ns) + raw.not_begun
    load = summarise_load(raw, spec)
    assert load.p50_s.estimate > 10 * load.service_p50_s
    assert load.completed_per_s < 1000
    assert "had not begun when time was over: 4000 a second are more than" in load_warnings(load)[0]


def test_intended_times_are_a_poisson_process():
    times = np.array(intended_times_ns(LoadSpec(rate_per_s=50.0, seed=3), 20_000, 0, 1e9)) / 1e9
    gaps = np.diff(times, prepend=0)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.03), "as large as the mean, as only exponential gaps have it"
    assert np.quantile(gaps, 0.9) == pytest.approx(np.log(10) / 50, rel=0.05)
    assert times.tolist() != (np.array(intended_times_ns(LoadSpec(rate_per_s=50.0, seed=4), 20_000, 0, 1e9)) / 1e9).tolist()


@pytest.mark.parametrize(
    ("min_runs", "min_s", "max_s", "count"), [(400, 1, 20, 400), (400, 10, 20, 500), (400, 1, 4, 200), (1, 0, 0.001, 1)]
)
def test_how_many_arrive(min_runs: int, min_s: float, max_s: float, count: int):
    times = intended_times_ns(LoadSpec(rate_per_s=50.0, arrivals="constant"), min_runs, min_s, max_s)
    assert len(times) == count
    assert times[0] == 20 * MS


@pytest.mark.parametrize("spec", [LoadSpec(2), LoadSpec(2, rate_per_s=1000.0)])
def test_an_error_of_a_call_ends_all_and_comes_through(spec: LoadSpec):
    def fail() -> None:
        raise MonographError("no")

    with pytest.raises(MonographError, match="no"):
        run_load([fail, Service()], spec, min_runs=10**4, min_s=0, max_s=60)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (LoadSpec(0), "concurrency 0: give at least 1 caller"),
        (LoadSpec(rate_per_s=0.0), "0 arrivals a second: give a rate above 0"),
        (LoadSpec(rate_per_s=1.0, arrivals="bursts"), "unknown arrivals 'bursts': choose from poisson, constant"),
    ],
)
def test_what_is_out_of_range_is_refused(spec: LoadSpec, message: str):
    with pytest.raises(ConfigError, match=message):
        spec.check()


def test_too_few_calls_are_refused():
    with pytest.raises(MonographError, match="3 calls under load are too few"):
        summarise_load(RawLoad((1, 2, 3), (1, 2, 3), (), 10), LoadSpec())


def test_the_interval_of_a_dependent_series_is_wider_than_that_of_an_independent_one():
    """Coverage of p50 on a strongly correlated series: order statistics take each value for news."""
    rng = np.random.default_rng(0)
    missed = {"batches": 0, "order statistics": 0}
    for _ in range(80):
        noise = rng.standard_normal(2000)
        series = np.empty(2000)
        series[0] = noise[0]
        for i in range(1, 2000):
            series[i] = 0.9 * series[i - 1] + np.sqrt(1 - 0.81) * noise[i]
        by_batches, by_order = batched_quantile_interval(series, 0.5, resamples=200), quantile_interval(series, 0.5)
        missed["batches"] += not by_batches.low <= 0 <= by_batches.high
        missed["order statistics"] += not by_order.low <= 0 <= by_order.high
    assert missed["batches"] <= 12
    assert missed["order statistics"] >= 30


def test_a_model_under_load(classifier: Callable[..., Path], contender: Callable[[Path], Contender], weights: np.ndarray):
    rule = TimingRule(min_runs=400, min_s=0.0, max_s=5.0, warmup_s=0.0)
    settings = Settings(batch_sizes=(1,), threads=1, rule=rule, load=LoadSpec(2, rate_per_s=800.0))
    load = measure(contender(classifier()), find_target("cpu"), None, settings).load
    assert (load.concurrency, load.rate_per_s, load.arrivals, load.run_count) == (2, 800.0, "poisson", 400)
    assert len(load.latency_ns) == len(load.service_ns) == 400
    assert load.p50_s.low <= load.p50_s.estimate <= load.p50_s.high
    assert load.p50_s.estimate >= load.service_p50_s
    assert load.p99_s is not None
    assert load.lateness_p99_s > 0


def test_a_target_without_a_session_here_refuses_before_measuring(
    classifier: Callable[..., Path], contender: Callable[[Path], Contender], quick: Settings
):
    elsewhere = replace(find_target("cpu"), name="board", run=lambda job: pytest.fail("nothing is to be measured"), call=None)
    with pytest.raises(ConfigError, match="board cannot do --rate or --concurrency: they need hardware"):
        measure(contender(classifier()), elsewhere, None, replace(quick, load=LoadSpec()))


def test_what_one_target_cannot_do_is_a_warning_where_another_can(quick: Settings):
    cpu = find_target("cpu")
    browser, emulator = replace(cpu, name="browser", call=None), replace(cpu, name="emulator", evidence=Evidence.SIMULATED)
    wanted = replace(quick, load=LoadSpec(), profile=True)
    check_extras([browser, cpu], wanted)
    assert possible_extras(cpu, wanted) == (wanted, [])
    assert possible_extras(browser, wanted) == (
        quick,
        ["browser: no --rate or --concurrency, --profile there, it runs no Python"],
    )
    told = ["emulator: no --rate or --concurrency, --profile there, its times are no latency"]
    assert possible_extras(emulator, wanted) == (quick, told)
    with pytest.raises(ConfigError, match="browser, emulator cannot do --rate or --concurrency, --profile"):
        check_extras([browser, emulator], wanted)
