"""The end of warm-up on series whose truth is known: what is found, how often something is found where nothing is."""

from collections.abc import Callable

import numpy as np
import pytest

from monograph.runtime.warmup import find_steady_state

MS = 1e6
Draw = Callable[[np.random.Generator, int], np.ndarray]


def autoregressive(rng: np.random.Generator, count: int, correlation: float) -> np.ndarray:
    """Log times of standard deviation 3%, each correlated with the one before."""
    steps = rng.standard_normal(count) * 0.03 * np.sqrt(1 - correlation**2)
    logs = np.empty(count)
    logs[0] = 0.03 * rng.standard_normal()
    for i in range(1, count):
        logs[i] = correlation * logs[i - 1] + steps[i]
    return MS * np.exp(logs)


def with_spikes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Every twentieth run takes 2 to 20 times as long."""
    series = MS * np.exp(0.02 * rng.standard_normal(count))
    spikes = rng.random(count) < 0.05
    series[spikes] *= rng.uniform(2, 20, spikes.sum())
    return series


STEADY: dict[str, Draw] = {
    "independent": lambda rng, count: autoregressive(rng, count, 0.0),
    "correlated": lambda rng, count: autoregressive(rng, count, 0.5),
    "strongly correlated": lambda rng, count: autoregressive(rng, count, 0.9),
    "skewed": lambda rng, count: MS * (1 + 0.1 * rng.gamma(1, 1, count)),
    "spikes": with_spikes,
    "coarse clock": lambda rng, count: np.round(MS * np.exp(0.03 * rng.standard_normal(count)), -5),
}


def as_ns(series: np.ndarray) -> list[int]:
    return [int(value) for value in series]


@pytest.mark.parametrize("count", [100, 440, 3000])
@pytest.mark.parametrize("kind", STEADY)
def test_a_steady_series_rarely_has_a_warm_up(kind: str, count: int):
    rng = np.random.default_rng(count)
    found = [find_steady_state(as_ns(STEADY[kind](rng, count))).warmup_runs > 0 for _ in range(60)]
    allowed = 0.15 if kind == "strongly correlated" else 0.05
    assert np.mean(found) <= allowed


@pytest.mark.parametrize(("slower", "at"), [(2.0, 20), (2.0, 100), (1.2, 50), (1.1, 200), (30.0, 15)])
def test_a_step_is_found_where_it_is(slower: float, at: int):
    rng = np.random.default_rng(at)
    for _ in range(20):
        series = autoregressive(rng, 440, 0.3)
        series[:at] *= slower
        assert abs(find_steady_state(as_ns(series)).warmup_runs - at) <= 15, "within three blocks"


def test_the_fast_beginning_of_a_machine_that_is_then_throttled_is_no_steady_state():
    series = autoregressive(np.random.default_rng(0), 1000, 0.3)
    series[:300] *= 0.8
    assert 285 <= find_steady_state(as_ns(series)).warmup_runs <= 315


def test_several_steps_down_end_at_the_last():
    series = autoregressive(np.random.default_rng(0), 1000, 0.0)
    series[:100] *= 3
    series[100:250] *= 1.5
    assert 240 <= find_steady_state(as_ns(series)).warmup_runs <= 260


def test_an_exponential_approach_ends_where_it_is_lost_in_noise():
    runs = np.arange(2000)
    series = autoregressive(np.random.default_rng(0), 2000, 0.0) * (1 + np.exp(-runs / 100))
    end = find_steady_state(as_ns(series)).warmup_runs
    assert 0.005 <= np.exp(-end / 100) <= 0.06, "0.03 is one standard deviation of a run"


def test_a_burst_after_warm_up_is_kept_and_told():
    series = autoregressive(np.random.default_rng(0), 2000, 0.3)
    series[:60] *= 2
    series[800:1000] *= 1.5
    steady = find_steady_state(as_ns(series))
    assert 45 <= steady.warmup_runs <= 75
    assert 180 <= steady.other_level_runs <= 220


def test_a_drift_that_does_not_end_leaves_little_at_its_end():
    series = autoregressive(np.random.default_rng(0), 2000, 0.0) * np.linspace(2, 1, 2000)
    assert find_steady_state(as_ns(series)).warmup_runs > 1500


def test_levels_above_and_below_that_of_the_end_are_told_apart_from_it():
    """Two levels before are both far from the last one, and so from each other only beyond what distances are clipped at."""
    series = autoregressive(np.random.default_rng(0), 900, 0.0)
    series[:300] *= 2
    series[300:600] *= 4
    assert 585 <= find_steady_state(as_ns(series)).warmup_runs <= 615


@pytest.mark.parametrize("count", [0, 1, 39])
def test_few_runs_tell_nothing(count: int):
    assert find_steady_state([100] * (count // 2) + [1] * (count - count // 2)).warmup_runs == 0


def test_a_constant_has_no_change():
    assert find_steady_state([1000] * 500).changes == ()
