"""How many threads a loop of batches runs with, chosen by timing its own batches.

Threads meet at the end of each operation, and one that waits for a core holds up all others. So the best number depends on
the size of the work and on what else runs on the machine, and it is measured: the first batches are run with fewer and with
more threads, batch by batch as they come, so that nothing is computed twice. They are timed again when batches have become
slower, as they do when other work arrives, and now and then where more threads might have become the better choice.

Another number of threads adds numbers in another order: results are equal bit for bit only where the number is fixed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch

from monograph.runtime.processor import requested_threads, running_threads
from monograph.runtime.session import default_threads

_WARMUP_BATCHES, _BLOCK_BATCHES = 2, 4
_LEAST_GAIN = 1.02
"""By which more threads have to be faster than fewer."""
_CLEAR = 1.5
"""Where one number of threads is faster by so much in its first block, there is no second one."""
_WINDOW_BATCHES = 8
_SLOW = 1.3
"""Batches are slow which take so many times what they usually take."""
_LOSSES_A_TRIAL = 10
"""Slow batches have to cost so many times what a trial cost before there is another one: so numbers do not flap."""
_FIRST_REPEAT_BATCHES = 512
"""After so many batches with fewer threads than there might be, and then after twice as many each time, all are tried again."""


@dataclass(frozen=True)
class Choice:
    """A number of threads that was chosen, and what a batch usually takes with it."""

    threads: int
    batch_s: float
    """Infinite where it is not known yet."""


@dataclass
class _Block:
    """Batches that were run with one number of threads."""

    seconds: float = 0.0
    batches: int = 0
    others: float = 0.0
    """Threads of other processes that ran meanwhile."""

    def add(self, seconds: float, batches: int = 1) -> None:
        self.seconds, self.batches = self.seconds + seconds, self.batches + batches

    @property
    def batch_s(self) -> float:
        return self.seconds / self.batches


class ThreadChooser:
    """Sets torch's threads for each batch of a loop: wrap every batch in :meth:`batch`.

    What the user has set is never changed, nor where there is only one core, or where ``is_on_processor`` is false.
    """

    def __init__(
        self,
        start: Choice | None = None,
        *,
        is_on_processor: bool = True,
        clock: Callable[[], float] = time.perf_counter,
        running: Callable[[], int | None] = running_threads,
    ) -> None:
        """Begin with ``start`` where one is known that is possible here, and with a trial otherwise."""
        self._most, self._clock, self._running = default_threads(), clock, running
        self.threads = self._most
        self._is_fixed = self._most == 1 or requested_threads() is not None or not is_on_processor
        self._trial: Generator[int, float, Choice] | None = None
        self._trial_cost_s, self._repeat_batches = 0.0, _FIRST_REPEAT_BATCHES
        self._watch(Choice(self._most, float("inf")))
        if self._is_fixed:
            return
        if start is None or start.threads > self._most:
            self._try_again()
        else:
            self._watch(start)

    @property
    def choice(self) -> Choice | None:
        """What a later loop of the same batches may start with; None while nothing is chosen."""
        return None if self._is_fixed or self._trial is not None else Choice(self.threads, self._usual_s)

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Run one batch with the chosen threads and learn from the time it takes; one that raises is not counted."""
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        began = self._clock()
        yield
        if not self._is_fixed:
            self._took(self._clock() - began)

    def _took(self, seconds: float) -> None:
        if self._trial is None:
            self._look(seconds)
            return
        try:
            self.threads = self._trial.send(seconds)
        except StopIteration as end:
            self._trial = None
            self._watch(end.value)

    def _watch(self, choice: Choice) -> None:
        self.threads, self._usual_s = choice.threads, choice.batch_s
        self._batches, self._window_s, self._lost_s = 0, 0.0, 0.0

    def _look(self, seconds: float) -> None:
        """Compare the last batches with what they usually take, and try again where that has become worth it."""
        self._batches, self._window_s = self._batches + 1, self._window_s + seconds
        if self.threads < self._most and self._batches == self._repeat_batches:
            self._repeat_batches *= 2
            self._try_again()
        elif self._batches % _WINDOW_BATCHES == 0:
            batch_s, self._window_s = self._window_s / _WINDOW_BATCHES, 0.0
            is_slow = batch_s > _SLOW * self._usual_s
            self._lost_s = self._lost_s + (batch_s - self._usual_s) * _WINDOW_BATCHES if is_slow else 0.0
            self._usual_s = min(self._usual_s, batch_s)
            if is_slow and self._lost_s >= _LOSSES_A_TRIAL * self._trial_cost_s:
                self._try_again()

    def _try_again(self) -> None:
        self._trial = self._duels()
        self.threads = next(self._trial)

    def _duels(self) -> Generator[int, float, Choice]:
        """Yield the threads of each batch, take the seconds it took, and return the choice.

        From all threads down: half as many are tried against them, and then half of those, as long as fewer are no slower.
        So on many cores no batch of large work has to run with a single thread.
        """
        blocks: dict[int, _Block] = {}
        many, best = self._most, 1
        while many > 1:
            few = many // 2
            block = yield from self._block(few, _WARMUP_BATCHES, blocks)
            free = (os.cpu_count() or 1) - block.others
            if free < many:  # some of them would have no core of their own, and hold up the others
                many = max(few, int(free))
            if many > few and (yield from self._wins(many, few, blocks)):
                best = many
                break
            many = few
        if best not in blocks:
            yield from self._block(best, 1, blocks)
        usual_s = blocks[best].batch_s
        self._trial_cost_s = sum(max(block.seconds - block.batches * usual_s, 0.0) for block in blocks.values())
        return Choice(best, usual_s)

    def _wins(self, many: int, few: int, blocks: dict[int, _Block]) -> Generator[int, float, bool]:
        """Return whether ``many`` threads are faster than ``few``, whose first block is there; blocks go few, many, many, few."""
        slowest_s = _CLEAR * blocks[few].batch_s
        yield from self._block(many, 1, blocks, slowest_s)
        ratio = blocks[few].batch_s / blocks[many].batch_s
        if 1 / _CLEAR < ratio < _CLEAR:
            yield from self._block(many, 0, blocks)
            yield from self._block(few, 1, blocks)
        return blocks[few].batch_s / blocks[many].batch_s > _LEAST_GAIN

    def _block(
        self, threads: int, warmup: int, blocks: dict[int, _Block], slowest_s: float = float("inf")
    ) -> Generator[int, float, _Block]:
        """Run a block, which ends early where its batches take ``slowest_s`` seconds or more, and add it to ``blocks``."""
        for _ in range(warmup):
            yield threads
        block, counts = _Block(), []
        while block.batches < _BLOCK_BATCHES and block.seconds <= _BLOCK_BATCHES * slowest_s:
            block.add((yield threads))
            counts.append((self._running() or threads) - threads)
        block.others = max(0.0, median(counts))
        blocks.setdefault(threads, _Block()).add(block.seconds, block.batches)
        return block
