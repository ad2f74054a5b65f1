"""A model under load: several callers at once, or calls that arrive when they arrive, whether or not the last one is done.

A caller that waits for its answer before it asks again goes silent while the service stalls: one long sample stands for
all the calls that would have come meanwhile (coordinated omission; Gil Tene 2013, "How NOT to Measure Latency";
https://github.com/giltene/wrk2). So with a rate, calls have intended times, fixed before, and latency is
counted from the intended time, whenever a thread was free to begin.

Runs inside the measuring process: numpy and the standard library only. What is concluded is :mod:`monograph.runtime.latency`.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from monograph.errors import ConfigError

ARRIVALS = ("poisson", "constant")
_NS_PER_S = 1_000_000_000
_PR_SET_TIMERSLACK = 29


@dataclass(frozen=True)
class LoadSpec:
    """What load: ``concurrency`` threads on one session that call without a pause, or calls at ``rate_per_s`` for them."""

    concurrency: int = 1
    rate_per_s: float | None = None
    """Arrivals a second; None where each thread calls again as soon as it has its answer."""
    arrivals: str = "poisson"
    seed: int = 0
    """Of the intended times."""

    def check(self) -> None:
        """Raise ConfigError where something is out of range."""
        if self.concurrency < 1:
            raise ConfigError(f"concurrency {self.concurrency}: give at least 1 caller")
        if self.rate_per_s is not None and not 0 < self.rate_per_s < 1e6:
            raise ConfigError(f"{self.rate_per_s:g} arrivals a second: give a rate above 0 and below a million")
        if self.arrivals not in ARRIVALS:
            raise ConfigError(f"unknown arrivals {self.arrivals!r}: choose from {', '.join(ARRIVALS)}")


@dataclass(frozen=True)
class RawLoad:
    """Nanoseconds as they were read off the clock, in the order in which calls were to begin."""

    latency_ns: tuple[int, ...]
    """From the intended begin, with a rate, or the real one without; calls that never began count up to the end."""
    service_ns: tuple[int, ...]
    """From the real begin of those that ran: what a caller that waits would have seen."""
    lateness_ns: tuple[int, ...]
    """How much later than intended a free thread woke up: an error of this generator that is in the latencies."""
    elapsed_ns: int
    not_begun: int = 0
    """Calls whose time had come when measuring was over, and that were still queued."""

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        """Read back what crossed a process boundary as JSON."""
        return cls(**record | {name: tuple(record[name]) for name in ("latency_ns", "service_ns", "lateness_ns")})


@dataclass(frozen=True)
class _Call:
    index: int
    intended_ns: int
    began_ns: int
    ended_ns: int
    waited: bool
    """Whether the thread was free before the call was to begin."""


def run_load(calls: Sequence[Callable[[], object]], spec: LoadSpec, *, min_runs: int, min_s: float, max_s: float) -> RawLoad:
    """Load a service; ``calls`` holds one bare call a thread.

    Without a rate it lasts until ``min_runs`` and ``min_s`` are both reached or ``max_s`` is over. With one it lasts as long
    as that many arrivals take, no longer than ``max_s``: then what has not begun is left.
    """
    if spec.rate_per_s is None:
        return _closed_loop(calls, min_runs, min_s, max_s)
    intended = intended_times_ns(spec, min_runs, min_s, max_s)
    return _open_loop(calls, intended, int(max_s * _NS_PER_S))


def intended_times_ns(spec: LoadSpec, min_runs: int, min_s: float, max_s: float) -> list[int]:
    """Return when calls are to begin, in nanoseconds from the start: a Poisson process, or one call every 1/rate seconds."""
    assert spec.rate_per_s is not None
    count = max(1, int(min(max(min_runs, min_s * spec.rate_per_s), max_s * spec.rate_per_s)))
    if spec.arrivals == "constant":
        gaps = np.full(count, 1 / spec.rate_per_s)
    else:
        gaps = np.random.default_rng(spec.seed).exponential(1 / spec.rate_per_s, count)
    return [int(time_ns) for time_ns in np.cumsum(gaps) * _NS_PER_S]


def _closed_loop(calls: Sequence[Callable[[], object]], min_runs: int, min_s: float, max_s: float) -> RawLoad:
    clock, counter = time.perf_counter_ns, itertools.count()
    done: list[_Call] = []
    failed = threading.Event()

    def work(call: Callable[[], object], started_ns: int) -> None:
        while True:
            now = clock()
            elapsed_s = (now - started_ns) / _NS_PER_S
            if failed.is_set() or elapsed_s >= max_s or (len(done) >= min_runs and elapsed_s >= min_s):
                return
            call()
            done.append(_Call(next(counter), now, now, clock(), waited=False))

    elapsed_ns = _in_threads(calls, work, failed)
    done.sort(key=lambda one: one.began_ns)
    service = tuple(one.ended_ns - one.began_ns for one in done)
    return RawLoad(service, service, (), elapsed_ns)


def _open_loop(calls: Sequence[Callable[[], object]], intended_ns: Sequence[int], max_ns: int) -> RawLoad:
    clock, counter = time.perf_counter_ns, itertools.count()
    done: list[_Call] = []
    failed = threading.Event()

    def work(call: Callable[[], object], started_ns: int) -> None:
        # Each thread takes the next arrival and, where that is yet to come, sleeps until then: a first-come, first-served queue.
        while (index := next(counter)) < len(intended_ns):
            due_ns = started_ns + intended_ns[index]
            free_ns = clock()
            if free_ns < due_ns:
                time.sleep((due_ns - free_ns) / _NS_PER_S)
            began_ns = clock()
            if failed.is_set() or began_ns - started_ns >= max_ns:
                return
            call()
            done.append(_Call(index, due_ns, began_ns, clock(), waited=free_ns < due_ns))

    elapsed_ns = _in_threads(calls, work, failed)
    done.sort(key=lambda one: one.index)
    begun = {one.index for one in done}
    left = [elapsed_ns - due for index, due in enumerate(intended_ns) if index not in begun and due < elapsed_ns]
    return RawLoad(
        latency_ns=(*(one.ended_ns - one.intended_ns for one in done), *left),
        service_ns=tuple(one.ended_ns - one.began_ns for one in done),
        lateness_ns=tuple(one.began_ns - one.intended_ns for one in done if one.waited),
        elapsed_ns=elapsed_ns,
        not_begun=len(left),
    )


def _in_threads(
    calls: Sequence[Callable[[], object]], work: Callable[[Callable[[], object], int], None], failed: threading.Event
) -> int:
    """Run ``work`` in one thread a call, all from one moment on; return the nanoseconds it took, or raise what one raised.

    ``failed`` is set as soon as one does, for the others to end.
    """
    errors: list[BaseException] = []
    start_ns: list[int] = []
    barrier = threading.Barrier(len(calls), action=lambda: start_ns.append(time.perf_counter_ns()))

    def run(call: Callable[[], object]) -> None:
        wake_up_sharply()
        barrier.wait()
        try:
            work(call, start_ns[0])
        except BaseException as error:  # noqa: BLE001  (raised again by the thread that waits)
            errors.append(error)
            failed.set()

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return time.perf_counter_ns() - start_ns[0]


def wake_up_sharply() -> None:
    """Let sleep end within microseconds of its time: Linux adds 50 µs to a thread's timers unless told otherwise."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
