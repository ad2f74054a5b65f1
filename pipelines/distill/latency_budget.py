"""A student by its latency: the largest that answers within so long on a target, found by measuring.

Untrained weights do for that: a network takes as long with any. Each size is exported and timed as the finished student will
be, in a process of its own; the search halves what is left of the sizes, so that few are.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from monograph.errors import ConfigError
from monograph.export.trace import export_torch
from monograph.models.contract import random_inputs
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import read_onnx
from monograph.models.size import usual_length
from monograph.models.students.auto import AUTO_PREFIX
from monograph.models.students.ladders import Ladder, Rung
from monograph.models.torch_model import TorchModel
from monograph.runtime.measure import Settings, measure, onnx_contender
from monograph.runtime.results import Evidence, Latency
from monograph.runtime.targets import Target, find_target

_UNITS_S = {"ms": 1e-3, "us": 1e-6}
_DEFAULT_TARGET = "cpu"
_SETTINGS = Settings(batch_sizes=(1,))
_LOOKS_LIKE_ONE = re.compile(r"[^@]*(ms|us)|.*@.*")
_FORM = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?|\.[0-9]+)(?P<unit>ms|us)(@(?P<target>.+))?")


@dataclass(frozen=True)
class LatencyBudget:
    """How long one call at batch 1 may take, in the median."""

    limit_s: float
    target: str

    def __str__(self) -> str:
        return f"{AUTO_PREFIX}{self.limit_s * 1e3:g}ms@{self.target}"


@dataclass(frozen=True)
class _Timing:
    """What one size took."""

    latency: Latency
    evidence: Evidence
    length: int | None = None
    """Of what has no fixed length, such as texts, in tokens."""


def is_latency_budget(text: str) -> bool:
    """Say whether ``text`` means a latency rather than a share of the teacher's work, well written or not."""
    return text.startswith(AUTO_PREFIX) and _LOOKS_LIKE_ONE.fullmatch(text.removeprefix(AUTO_PREFIX)) is not None


def parse_latency_budget(text: str) -> LatencyBudget:
    """Read ``auto:2ms@cpu`` or ``auto:500us``; without a target it is for the processor of this machine.

    Raises:
        ConfigError: the text has another form, or allows no time.
    """
    found = _FORM.fullmatch(text.removeprefix(AUTO_PREFIX))
    limit_s = float(found["number"]) * _UNITS_S[found["unit"]] if found else 0.0
    if found is None or limit_s == 0:
        raise ConfigError(
            f"budget is {text!r}, expected auto:NUMBERms@TARGET or auto:NUMBERus@TARGET with a number above 0, "
            "for example auto:2ms@cpu"
        )
    return LatencyBudget(limit_s, found["target"] or _DEFAULT_TARGET)


def student_within(
    budget: LatencyBudget,
    ladders: Iterable[Ladder],
    settings: Settings = _SETTINGS,
    on_progress: Callable[[int, int, str], None] = lambda done, total, detail: None,
) -> tuple[TorchModel, tuple[str, ...]]:
    """Make the largest student that was measured to answer within ``budget``, and say in notes what was measured.

    Its weights are drawn from PyTorch's global generator, which the search leaves as it was.

    Args:
        budget: of the median latency at batch 1.
        ladders: the sizes of each family, in the order in which families are tried: the first that has one small enough counts.
        settings: of each measurement.
        on_progress: told how many sizes of a family were measured, out of how many at most, and which is next.

    Raises:
        ConfigError: no latency can be measured on the target here, or even the smallest student takes longer.
    """
    target = _timed_target(budget)
    too_slow: list[str] = []
    for ladder in ladders:
        timings = _search(ladder, budget, target, settings, on_progress)
        fitting = [position for position, timing in timings.items() if timing.latency.p50_s.estimate <= budget.limit_s]
        if fitting:
            best = max(fitting)
            passed_over = [f"another family was tried first: {text}" for text in too_slow]
            return ladder.rungs[best].make(), (*passed_over, _described(ladder, best, timings, budget), *ladder.notes)
        too_slow.append(f"even {ladder.rungs[0].what} takes {_said(timings[0])} on {budget.target}")
    raise ConfigError(
        f"{budget} allows {_ms(budget.limit_s)}, but {', and '.join(too_slow)}: allow more, or name a smaller student of your own"
    )


def _timed_target(budget: LatencyBudget) -> Target:
    """Return the target, where the time of a call on it is a latency."""
    target = find_target(budget.target)
    evidence = target.require_here().evidence or target.evidence
    if not evidence.gives_latency:
        reason = f"figures on {target.name} here are {evidence.value}"
    elif target.lowering is not None:
        reason = f"{target.name} takes lowered models only"
    else:
        return target
    raise ConfigError(
        f"{budget} asks for a latency that was measured, and {reason}: name a target that runs a student as it is exported, on "
        "real hardware, such as cpu, or give a share of the teacher's work, such as auto:1/10"
    )


def _search(
    ladder: Ladder,
    budget: LatencyBudget,
    target: Target,
    settings: Settings,
    on_progress: Callable[[int, int, str], None],
) -> dict[int, _Timing]:
    """Return what was measured by its place on the ladder, once the place where the budget ends is known."""
    most = len(ladder.rungs).bit_length()
    timings: dict[int, _Timing] = {}

    def p50_s(position: int) -> float:
        on_progress(len(timings), most, f"timing {ladder.rungs[position].what}")
        timings[position] = _time(ladder.rungs[position], budget, target, settings)
        return timings[position].latency.p50_s.estimate

    bisect_right(range(len(ladder.rungs)), budget.limit_s, key=p50_s)
    return timings


def _time(rung: Rung, budget: LatencyBudget, target: Target, settings: Settings) -> _Timing:
    """Export one size with weights that nobody keeps, and time it."""
    with TemporaryDirectory(prefix="monograph-student-") as folder, torch.random.fork_rng(devices=[]):
        exported = export_torch(rung.make(), Path(folder) / "student.onnx")
        file = read_onnx(exported.path)
        contender = onnx_contender(rung.what, file.path, file.contract, file.sha256, file.size_bytes, target)
        length = usual_length(file.contract)
        row = Rows(random_inputs(file.contract, 1, np.random.default_rng(0), length))
        measurement = measure(contender, target, row, settings)
    if measurement.latency is None:
        raise ConfigError(
            f"{budget} asks for a latency that was measured, and figures on {target.name} here turned out to be "
            f"{measurement.evidence.value}: name a target that runs a student on real hardware, such as cpu"
        )
    is_free = any(isinstance(dim, str) for spec in file.contract.inputs for dim in spec.shape[1:])
    return _Timing(measurement.latency, measurement.evidence, length if is_free else None)


def _described(ladder: Ladder, best: int, timings: dict[int, _Timing], budget: LatencyBudget) -> str:
    """Return the sentence that says what was chosen, by what measurement, and what would have been next."""
    text = f"{ladder.rungs[best].what}: {_said(timings[best])} on {budget.target} of {_ms(budget.limit_s)} allowed"
    if best + 1 == len(ladder.rungs):
        return f"{text}; larger ones would cost more than the teacher"
    # The search ends between two neighbours, both of which it measured.
    larger = f"{ladder.rungs[best + 1].what} takes {_ms(timings[best + 1].latency.p50_s.estimate)}"
    return f"{text}; {larger}; {len(timings)} sizes were measured, untrained"


def _said(timing: _Timing) -> str:
    p50 = timing.latency.p50_s
    interval = f"[{_ms(p50.low)}, {_ms(p50.high)}]"
    length = "" if timing.length is None else f" and length {timing.length}"
    return f"p50 {_ms(p50.estimate)} {interval} at batch {timing.latency.batch_size}{length} ({timing.evidence.value})"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.4g} ms"
