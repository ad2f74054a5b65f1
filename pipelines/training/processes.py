"""Several processes that train one model, as ``torchrun`` or ``accelerate launch`` starts them: what only one of them does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

T = TypeVar("T")


def trains_on_processor() -> bool:
    """Tell whether training is on the processor; of several processes on it each takes itself for the only one unless told."""
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def _state() -> PartialState:
    return PartialState(cpu=trains_on_processor())


def is_main_process() -> bool:
    """Tell whether this process is the one that writes and speaks; the only one always is."""
    return bool(_state().is_main_process)


@contextmanager
def main_process_first() -> Iterator[None]:
    """Let the main process through alone, then the others: they find what it has written."""
    with _state().main_process_first():
        yield


@contextmanager
def leaving_together() -> Iterator[None]:
    """Let no process end before all are done with what stands inside, and then take their connections down.

    A process that ended with its connections open would now and then be aborted on its way out, and torchrun would take that
    for a failure of all.
    """
    yield
    if _state().num_processes > 1:
        _state().wait_for_everyone()
        _state().destroy_process_group()


def on_main_process(make: Callable[[], T]) -> T:
    """Call ``make`` in the main process and return what it gave in all of them; it is sent as a pickle between processes."""
    made: list[T | None] = [make() if is_main_process() else None]
    if _state().num_processes > 1:
        broadcast_object_list(made)
    given = made[0]
    assert given is not None or is_main_process()
    return given  # type: ignore[return-value] # None only where `make` gives it
