"""Whether the harness itself can be believed: false alarms, its cost beside a bare loop, and a service of known time.

``python benchmarks/harness_selftest.py [-o FILE]`` takes about seven minutes on two busy cores and checks that

(a) comparisons of one model with itself say "different" in at most 7% of cases at the 5% level: in 400 simulated ones, whose
    samples are cut from a recorded series of real calls, dependence and disturbances included, and in 21 real ones over fresh
    processes;
(b) the harness's p50 is within 2% of that of a bare hand-written loop over the same session, the two interleaved;
(c) a model that does nothing but wait for a known time is measured within 1% of it. ONNX has no operator that waits, so the
    waiting is done in Python by a runner that the harness loads as it loads any other: what is tested is everything but
    ONNX Runtime.

Writes a JSON file with every ratio.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
from onnx import numpy_helper

from monograph.models.contract import Contract
from monograph.models.files import write_atomically
from monograph.models.onnx_file import read_onnx
from monograph.runtime.compare import BLOCK_RULE, Comparison, compare
from monograph.runtime.environment import describe_environment, environment_doubts, environment_warnings, look_before
from monograph.runtime.latency import summarise_latency
from monograph.runtime.load import wake_up_sharply
from monograph.runtime.measure import Contender, Settings, onnx_contender, raw_timings
from monograph.runtime.results import Interval, Placed
from monograph.runtime.session import open_session
from monograph.runtime.statistics import bootstrap_interval
from monograph.runtime.targets import find_target
from monograph.runtime.timing import TimingRule, time_calls

Array = npt.NDArray[Any]
FALSE_ALARM_BAR, BARE_LOOP_BAR, WAITING_BAR = 0.07, 0.02, 0.01
WAITING_S = 0.02
_SPIN_S = 0.0002
"""The last part of the wait is spent looking at the clock, for sleep ends late; no more, lest the scheduler takes the core."""
_TRIO = ("a", "b", "c")
_WIDTH = 512


class Waiter:
    """A model that waits ``WAITING_S`` seconds a call."""

    def __init__(self) -> None:
        wake_up_sharply()

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Wait, and give the rows back."""
        end = time.perf_counter() + WAITING_S
        time.sleep(WAITING_S - _SPIN_S)
        while time.perf_counter() < end:
            pass
        return {"logits": inputs["x"]}

    def bind(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """Return the call on these inputs."""
        return lambda: self(inputs)

    def placement(self) -> list[Placed]:
        """Return nothing: ONNX Runtime does not run this."""
        return []


def load_waiter(threads: int, spinning: bool) -> Waiter:
    """Child side: return the model that waits."""
    del threads, spinning
    return Waiter()


def main() -> int:
    """Run all three, print them beside their bars, and write them down; exit 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulated", type=int, default=400, help="A/A comparisons cut from the recorded series")
    parser.add_argument("--trios", type=int, default=7, help="three A/A comparisons each, over fresh processes")
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "harness_selftest.json")
    options = parser.parse_args()
    before, began = look_before(), time.perf_counter()
    with TemporaryDirectory(prefix="monograph-selftest-") as name:
        contender = _network(Path(name) / "network.onnx")
        bare_loop = against_bare_loop(Path(name) / "network.onnx")
        waiting = of_known_time(contender.contract)
        simulated = simulated_false_alarms(contender, options.simulated, options.blocks)
        real = real_false_alarms(contender, options.trios, options.blocks)
    environment = describe_environment(1, spinning=False, before=before)
    record = {
        "command": "python benchmarks/harness_selftest.py",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "duration_s": time.perf_counter() - began,
        "checks": [bare_loop, waiting, simulated, real],
        "environment": asdict(environment),
        "warnings": [*environment_warnings(), *environment_doubts(environment)],
    }
    with write_atomically(options.output) as staged:
        staged.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if all(check["met"] for check in record["checks"]) else 1


def against_bare_loop(path: Path, rounds: int = 30) -> dict[str, Any]:
    """(b): p50 of the harness over that of a bare loop, in turns over one session; the median of rounds."""
    session = open_session(path, threads=1)
    inputs = {"x": np.ones((1, _WIDTH), np.float32)}
    run, call = session.ort_session.run, session.bind(inputs)
    rule = TimingRule(min_runs=200, min_s=0.0, max_s=5.0, warmup_s=0.0)
    for _ in range(500):
        call()
    ratios = []
    for number in range(rounds):
        pair: dict[str, float] = {}
        for which in ("bare", "harness") if number % 2 else ("harness", "bare"):
            if which == "harness":
                pair[which] = float(np.median(time_calls(call, 1, 0, rule).samples_ns))
            else:
                samples = []
                for _ in range(200):
                    start = time.perf_counter_ns()
                    run(["logits"], inputs)
                    samples.append(time.perf_counter_ns() - start)
                pair[which] = float(np.median(samples))
        ratios.append(pair["harness"] / pair["bare"])
    interval = bootstrap_interval(np.array(ratios), np.median)
    told = {"ratio": asdict(interval), "ratios": ratios}
    return _told("p50 of the harness over a bare loop", interval.estimate, 1, BARE_LOOP_BAR, told)


def of_known_time(contract: Contract) -> dict[str, Any]:
    """(c): p50 of the model that waits, over the time that it waits, through a process of its own."""
    contender = Contender("waiter", "harness_selftest:load_waiter", {}, contract, "", 0)
    latency = summarise_latency(raw_timings(contender, None, Settings(batch_sizes=(1,), threads=1))[0])
    ratio = latency.p50_s.estimate / WAITING_S
    told = {"known_s": WAITING_S, "p50_s": asdict(latency.p50_s)}
    return _told("p50 of a model of known time over that time", ratio, 1, WAITING_BAR, told)


def simulated_false_alarms(contender: Contender, count: int, blocks: int) -> dict[str, Any]:
    """(a), simulated: each process of a comparison is a stretch of one recorded series, neighbours in an ABBA block."""
    rule = TimingRule(min_runs=20_000, min_s=0.0, max_s=30.0, warmup_s=0.3)
    (raw,) = raw_timings(contender, None, _settings(rule))
    trace = np.array(raw.samples_ns, np.float64)
    length = max(BLOCK_RULE.min_runs, len(trace) // 200)
    rng = np.random.default_rng(0)
    intervals = []
    for _ in range(count):
        p50_s: dict[str, list[float]] = {"a": [], "b": []}
        for start in rng.integers(0, len(trace) - 4 * length, blocks):
            stretches = trace[start : start + 4 * length].reshape(4, length)
            first, second = rng.permutation(["a", "b"])
            p50_s[first].append(float(np.median(stretches[[0, 3]])) / 1e9)
            p50_s[second].append(float(np.median(stretches[[1, 2]])) / 1e9)
        intervals.append(Comparison({name: tuple(values) for name, values in p50_s.items()}).ratio(["a"], ["b"]))
    dependence = float(np.corrcoef(np.log(trace[:-1]), np.log(trace[1:]))[0, 1])
    told = {"trace_runs": len(trace), "lag_1_correlation": dependence}
    return _false_alarms(f"false alarms of {count} simulated A/A comparisons", intervals, blocks, told)


def real_false_alarms(contender: Contender, trio_count: int, blocks: int) -> dict[str, Any]:
    """(a), real: three times the same model over interleaved blocks of fresh processes, each compared with the next.

    The three comparisons of a trio share processes, which leaves the expected share of false alarms what it is and makes it
    vary somewhat more than that of independent ones would.
    """
    trio = [replace(contender, name=name) for name in _TRIO]
    intervals = []
    for number in range(trio_count):
        print(f"\rreal A/A comparisons, trio {number + 1} of {trio_count}", end="", file=sys.stderr, flush=True)
        comparison = compare(trio, None, _settings(BLOCK_RULE), blocks=blocks, seed=number)
        intervals += [comparison.ratio([top], [bottom]) for top, bottom in zip(_TRIO, _TRIO[1:] + _TRIO[:1], strict=True)]
    print(file=sys.stderr)
    return _false_alarms(f"false alarms of {len(intervals)} real A/A comparisons", intervals, blocks, {})


def _false_alarms(what: str, intervals: list[Interval], blocks: int, told: Mapping[str, Any]) -> dict[str, Any]:
    share = float(np.mean([not one.low <= 1 <= one.high for one in intervals]))
    spread = float(np.mean([one.high / one.low for one in intervals]))
    more = {"blocks": blocks, "mean_high_over_low": spread, "ratios": [asdict(one) for one in intervals]}
    return _told(what, share, 0, FALSE_ALARM_BAR, {**told, **more})


def _told(what: str, value: float, ideal: float, bar: float, more: Mapping[str, Any]) -> dict[str, Any]:
    met = abs(value - ideal) <= bar
    print(f"{what:<50} {value:.4f}  bar {ideal:g} ± {bar:g}: {'met' if met else 'MISSED'}")
    return {"check": what, "value": value, "ideal": ideal, "bar": bar, "met": met, **more}


def _settings(rule: TimingRule) -> Settings:
    return Settings(batch_sizes=(1,), threads=1, spinning=False, rule=rule)


def _network(path: Path) -> Contender:
    """Four dense layers of 512: some 0.1 ms a call."""
    steps = " ".join(f"m{i} = MatMul(r{i}, W{i}) r{i + 1} = Relu(m{i})" for i in range(4))
    text = f'<ir_version: 10, opset_import: ["": 18]> g (float[batch, {_WIDTH}] x) => (float[batch, {_WIDTH}] logits) '
    model = onnx.parser.parse_model(text + f"{{ r0 = Relu(x) {steps} logits = Tanh(r4) }}")
    rng = np.random.default_rng(0)
    for i in range(4):
        weights = rng.standard_normal((_WIDTH, _WIDTH)).astype(np.float32) / np.float32(np.sqrt(_WIDTH))
        model.graph.initializer.append(numpy_helper.from_array(weights, f"W{i}"))
    onnx.save(model, path)
    file = read_onnx(path)
    return onnx_contender("network", path, file.contract, file.sha256, file.size_bytes, find_target("cpu"))


if __name__ == "__main__":
    sys.exit(main())
