import numpy as np
import pytest

from monograph.errors import MonographError
from monograph.runtime.latency import summarise_latency, summarise_throughput
from monograph.runtime.statistics import quantile_interval
from monograph.runtime.timing import RawTiming

MS = 1_000_000


def raw(samples_ns, batch_size: int = 1) -> RawTiming:
    return RawTiming(batch_size, create_ns=250 * MS, first_run_ns=30 * MS, warmup_runs=17, samples_ns=tuple(samples_ns))


def one_to(count: int) -> list[int]:
    """1 ms, 2 ms, … in no order."""
    return [int(value) * MS for value in np.random.default_rng(0).permutation(np.arange(1, count + 1))]


def test_nanoseconds_become_seconds_and_raw_samples_are_kept():
    samples = one_to(401)
    latency = summarise_latency(raw(samples, batch_size=8))
    assert latency.batch_size == 8
    assert (latency.create_s, latency.first_run_s, latency.warmup_runs) == (0.25, 0.03, 17)
    assert latency.samples_ns == tuple(samples)
    assert latency.p50_s.estimate == pytest.approx(0.201)
    assert latency.p90_s.estimate == pytest.approx(0.361)
    assert latency.p99_s.estimate == pytest.approx(0.397)


@pytest.mark.parametrize(("field", "quantile"), [("p50_s", 0.5), ("p90_s", 0.9), ("p99_s", 0.99)])
def test_intervals_are_those_of_the_quantiles(field: str, quantile: float):
    samples = one_to(400)
    interval, expected = getattr(summarise_latency(raw(samples)), field), quantile_interval(samples, quantile)
    assert interval.low == pytest.approx(expected.low / 1e9)
    assert interval.high == pytest.approx(expected.high / 1e9)
    assert interval.confidence == 0.95
    assert interval.low < interval.estimate < interval.high


def test_p99_needs_368_runs():
    assert summarise_latency(raw(one_to(367))).p99_s is None
    assert summarise_latency(raw(one_to(368))).p99_s is not None


@pytest.mark.parametrize("count", [1, 5, 6, 35])
def test_too_few_runs_for_p90(count: int):
    with pytest.raises(MonographError, match=f"{count} runs are too few for an interval of p90: measure at least"):
        summarise_latency(raw(one_to(count)))
    with pytest.raises(MonographError, match="too few"):
        summarise_throughput(raw(one_to(count)))


def test_as_many_runs_as_the_message_asks_for_are_needed():
    with pytest.raises(MonographError, match="measure at least 40"):
        summarise_latency(raw(one_to(39)))


def test_throughput_is_rows_by_the_median_call():
    throughput = summarise_throughput(raw(one_to(401), batch_size=32))
    median = summarise_latency(raw(one_to(401))).p50_s
    assert (throughput.batch_size, throughput.run_count) == (32, 401)
    assert throughput.rows_per_s.estimate == pytest.approx(32 / 0.201)
    assert throughput.rows_per_s.low == pytest.approx(32 / median.high)
    assert throughput.rows_per_s.high == pytest.approx(32 / median.low)
    assert throughput.rows_per_s.low < throughput.rows_per_s.estimate < throughput.rows_per_s.high
