import json
import time
from collections.abc import Callable
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from monograph.runtime import timing
from monograph.runtime.latency import timing_warnings
from monograph.runtime.statistics import quantile_interval
from monograph.runtime.timing import RawTiming, TimingRule, time_calls

MS = 1_000_000


class CountedCall:
    """A call that counts itself."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


class Clock:
    """Time that passes only while the call runs: call number i takes ``duration_ns(i)``."""

    def __init__(self, duration_ns: Callable[[int], int]) -> None:
        self.now_ns = 5_000
        self.calls = 0
        self.duration_ns = duration_ns

    def perf_counter_ns(self) -> int:
        return self.now_ns

    def call(self) -> None:
        self.now_ns += self.duration_ns(self.calls)
        self.calls += 1


def time_by(clock: Clock, rule: TimingRule, monkeypatch: pytest.MonkeyPatch) -> RawTiming:
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter_ns=clock.perf_counter_ns))
    return time_calls(clock.call, 1, 0, rule)


def test_the_first_run_warm_up_and_samples_are_kept_apart(monkeypatch: pytest.MonkeyPatch):
    """The first run takes 500 ms, ten warm-up runs 30 ms each, then runs of 1, 2, 3 … ms."""
    clock = Clock(lambda i: 500 * MS if i == 0 else 30 * MS if i <= 10 else (i - 10) * MS)
    raw = time_by(clock, TimingRule(min_runs=50, min_s=0.0, warmup_s=0.3), monkeypatch)
    assert raw.first_run_ns == 500 * MS
    assert raw.warmup_runs == 10
    assert raw.samples_ns == tuple(i * MS for i in range(1, 51))
    assert clock.calls == 1 + 10 + 50


def wobble(i: int) -> int:
    """A call of 1 ms that varies by some percent, no two runs of one cycle alike."""
    return MS + (i * 7919 % 101) * 500


def test_warm_up_ends_where_the_level_changes_for_good(monkeypatch: pytest.MonkeyPatch):
    """0.3 s are the first 100 runs of 3 ms; 150 more of them are seen to be warm-up."""
    clock = Clock(lambda i: wobble(i) * (3 if i <= 250 else 1))
    raw = time_by(clock, TimingRule(min_runs=400, min_s=0.0, warmup_s=0.3), monkeypatch)
    assert abs(raw.warmup_runs - 250) <= 15
    assert len(raw.samples_ns) >= 400
    assert raw.is_steady
    assert (len(raw.warmup_ns), clock.calls) == (raw.warmup_runs, 1 + raw.warmup_runs + len(raw.samples_ns))
    assert min(raw.warmup_ns[:230]) >= 3 * MS
    assert max(raw.samples_ns[15:]) < 2 * MS
    assert timing_warnings(raw) == []


def test_a_drift_that_does_not_end_is_warned_of(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(lambda i: int(wobble(i) * (1 + 2000 / (i + 200))))
    drifting = time_by(clock, TimingRule(min_runs=400, min_s=1.0, max_s=5.0), monkeypatch)
    assert len(drifting.samples_ns) >= 40
    assert not drifting.is_steady
    (warning,) = timing_warnings(drifting)
    assert "still changing speed when time was over: the figures are of the last" in warning
    assert "--max-seconds" in warning


def test_a_disturbance_stays_among_the_samples_and_is_warned_of(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(lambda i: wobble(i) * (2 if 800 <= i < 1000 else 1))
    raw = time_by(clock, TimingRule(min_runs=1200, min_s=0.0), monkeypatch)
    assert max(raw.samples_ns) >= 2 * MS
    assert abs(raw.other_level_runs - 200) <= 20
    (warning,) = timing_warnings(raw)
    assert "something disturbed the machine" in warning


def test_both_minima_are_met(monkeypatch: pytest.MonkeyPatch):
    slow = time_by(Clock(lambda i: 100 * MS), TimingRule(min_runs=60, min_s=1.0, warmup_s=0.0), monkeypatch)
    fast = time_by(Clock(lambda i: 1 * MS), TimingRule(min_runs=60, min_s=1.0, warmup_s=0.0), monkeypatch)
    assert len(slow.samples_ns) == 60, "a second is over long before"
    assert len(fast.samples_ns) == 1000, "60 runs are done long before"


def test_max_s_ends_it_once_40_runs_are_done(monkeypatch: pytest.MonkeyPatch):
    rule = TimingRule(min_runs=1000, min_s=1.0, max_s=20.0, warmup_s=0.0)
    assert len(time_by(Clock(lambda i: 100 * MS), rule, monkeypatch).samples_ns) == 200
    assert len(time_by(Clock(lambda i: 1000 * MS), rule, monkeypatch).samples_ns) == 40, "20 s were over after 20 runs"


def test_the_fewest_runs_bound_p90(monkeypatch: pytest.MonkeyPatch):
    raw = time_by(Clock(lambda i: i * MS), TimingRule(min_runs=1000, max_s=0.0, warmup_s=0.0), monkeypatch)
    assert quantile_interval(raw.samples_ns, 0.9) is not None


def test_the_default_runs_bound_p99():
    assert quantile_interval(range(TimingRule().min_runs), 0.99) is not None


@pytest.mark.parametrize("min_runs", [0, 1, 40, 57])
def test_a_real_clock_and_a_counted_call(min_runs: int):
    call = CountedCall()
    raw = time_calls(call, 8, 123, TimingRule(min_runs=min_runs, min_s=0.0, max_s=5.0, warmup_s=0.0))
    assert (raw.batch_size, raw.create_ns, raw.warmup_runs) == (8, 123, 0)
    assert len(raw.samples_ns) == min_runs
    assert call.count == 1 + min_runs
    assert raw.first_run_ns > 0
    assert all(sample >= 0 for sample in raw.samples_ns)


def test_a_real_clock_warms_up_and_stops():
    call = CountedCall()
    raw = time_calls(call, 1, 0, TimingRule(min_runs=10**9, min_s=10**9, max_s=0.05, warmup_s=0.02))
    assert raw.warmup_runs > 0
    assert len(raw.samples_ns) >= 40
    assert call.count == 1 + raw.warmup_runs + len(raw.samples_ns)


def test_samples_are_of_the_call_and_not_of_what_is_around_it():
    raw = time_calls(lambda: time.sleep(0.002), 1, 0, TimingRule(min_runs=40, min_s=0.0, warmup_s=0.0))
    assert min(raw.samples_ns) >= 2 * MS
    assert raw.first_run_ns >= 2 * MS


def test_an_error_of_the_call_comes_through():
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        time_calls(fail, 1, 0, TimingRule())


@pytest.mark.parametrize(
    ("run_count", "elapsed_s", "enough"),
    [
        (400, 1.0, True),
        (399, 1.0, False),
        (400, 0.99, False),
        (40, 20.0, True),
        (39, 1000.0, False),
        (40, 19.99, False),
        (10_000, 0.5, False),
    ],
)
def test_when_it_is_enough(run_count: int, elapsed_s: float, enough: bool):
    assert TimingRule().until.is_reached(run_count, elapsed_s) is enough


def test_a_raw_timing_crosses_as_json():
    raw = RawTiming(8, 1, 2, 3, (4, 5, 6), (9, 8, 7), False, 1)
    assert RawTiming.from_record(json.loads(json.dumps(asdict(raw)))) == raw


def test_a_rule_crosses_as_json():
    rule = TimingRule(min_runs=50, warmup_s=0.1)
    assert TimingRule(**json.loads(json.dumps(asdict(rule)))) == rule
