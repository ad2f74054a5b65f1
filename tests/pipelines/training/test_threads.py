"""The choice of threads on a made-up machine, where a batch takes what the test says; and a training on the real one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from monograph.pipelines.training.threads import Choice, ThreadChooser
from monograph.runtime.processor import requesting_threads


class Machine:
    """A clock that moves only while batches run, and other processes that may come and go."""

    def __init__(self, batch_s: Callable[[int], float], others: int = 0) -> None:
        self.batch_s, self.others, self.now_s = batch_s, others, 0.0

    def chooser(self, start: Choice | None = None) -> ThreadChooser:
        return ThreadChooser(start, clock=lambda: self.now_s, running=lambda: self.others + 1)

    def run(self, chooser: ThreadChooser, batches: int) -> list[int]:
        """Run batches; return the threads of each."""
        threads = []
        for _ in range(batches):
            with chooser.batch():
                assert torch.get_num_threads() == chooser.threads
                threads.append(chooser.threads)
                self.now_s += self.batch_s(chooser.threads)
        return threads


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Set how many cores there seem to be; two to begin with."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def there_are(count: int) -> None:
        monkeypatch.setattr("monograph.runtime.session.usable_cores", lambda: count)
        monkeypatch.setattr("os.cpu_count", lambda: count)

    there_are(2)
    yield there_are
    torch.set_num_threads(before)


def large_work(threads: int) -> float:
    return 1 / threads


def small_work(threads: int) -> float:
    return 0.01 * threads


def crowded(threads: int) -> float:
    """Work whose threads wait for one that waits for a core."""
    return 0.01 if threads == 1 else 0.5


@pytest.mark.parametrize(("work", "threads"), [(large_work, 2), (small_work, 1), (crowded, 1)])
def test_two_cores(work: Callable[[int], float], threads: int):
    machine = Machine(work)
    chooser = machine.chooser()
    machine.run(chooser, 30)
    assert set(machine.run(chooser, 200)) == {threads}


@pytest.mark.parametrize(
    ("work", "threads"), [(large_work, 16), (small_work, 1), (lambda threads: 1 / min(threads, 4) + 0.01 * threads, 4)]
)
def test_many_cores(cores: Callable[[int], None], work: Callable[[int], float], threads: int):
    cores(16)
    machine = Machine(work)
    chooser = machine.chooser()
    machine.run(chooser, 100)
    assert set(machine.run(chooser, 200)) == {threads}


def test_threads_without_cores_of_their_own_are_not_tried():
    machine = Machine(crowded, others=1)
    assert set(machine.run(machine.chooser(), 300)) == {1}


def test_a_trial_costs_less_than_a_hundredth_of_300_batches():
    """Alone, where two threads gain a fifth, as they do for a small convolutional network."""
    machine = Machine(lambda threads: 1.2 if threads == 1 else 1.0)
    machine.run(machine.chooser(), 300)
    assert machine.now_s < 1.01 * 300


def test_a_trial_of_what_is_terribly_slow_ends_at_once():
    machine = Machine(crowded)
    assert machine.run(machine.chooser(), 300).count(2) <= 2


def test_others_that_come_are_answered_and_those_that_go_are_noticed():
    machine = Machine(large_work)
    chooser = machine.chooser()
    machine.run(chooser, 100)
    assert chooser.threads == 2
    machine.batch_s, machine.others = lambda threads: 1.0 if threads == 1 else 20.0, 1
    machine.run(chooser, 60)
    assert chooser.threads == 1
    machine.batch_s, machine.others = large_work, 0
    machine.run(chooser, 600)
    assert chooser.threads == 2


def test_it_does_not_flap_where_both_are_alike():
    machine = Machine(lambda threads: 1.0 + 0.05 * ((round(machine.now_s) * 7) % 5))
    chooser = machine.chooser()
    threads = machine.run(chooser, 500)
    assert sum(one != other for one, other in pairwise(threads)) <= 4


def test_the_user_has_the_last_word(monkeypatch: pytest.MonkeyPatch):
    with requesting_threads(2):
        machine = Machine(small_work)
        assert set(machine.run(machine.chooser(), 50)) == {2}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    machine = Machine(large_work)
    assert set(machine.run(machine.chooser(), 50)) == {1}


def test_a_choice_is_gone_on_with():
    machine = Machine(large_work)
    chooser = machine.chooser()
    assert chooser.choice is None
    machine.run(chooser, 100)
    assert chooser.choice == Choice(2, 0.5)
    assert set(machine.run(machine.chooser(chooser.choice), 100)) == {2}
    assert machine.chooser(Choice(64, 0.1)).threads == 1, "of another machine: tried again"


TRAINING = """
import sys; sys.path.insert(0, {tests!r})
import torch
from test_loop import SETTINGS, model, rows
from monograph.pipelines.training import train
train(model(), rows(), rows(60, seed=1), SETTINGS, on_step=lambda *_: print(torch.get_num_threads()))
"""


@pytest.mark.parametrize("threads", [1, 3])
def test_a_training_runs_with_what_the_environment_says(threads: int):
    done = subprocess.run(
        [sys.executable, "-c", TRAINING.format(tests=str(Path(__file__).parent))],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )
    assert set(done.stdout.split()) == {str(threads)}
