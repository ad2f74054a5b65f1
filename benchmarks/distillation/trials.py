"""What the benchmarks of distillation share: a student of one seed and loss, and what several seeds say together."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from monograph.models.data.rows import Array, Rows
from monograph.models.files import write_atomically
from monograph.models.size import count_macs, count_parameters
from monograph.models.torch_model import TorchModel
from monograph.pipelines.distill import KeptAnswers, teaching_objective
from monograph.pipelines.losses import LOSSES, mixed, options_for
from monograph.pipelines.training import Augmentation, TrainingSettings, train
from monograph.runtime.environment import describe_environment
from monograph.runtime.session import usable_cores

RESULTS = Path(__file__).parent.parent / "results"
CONTROL = "labels alone"


@dataclass(frozen=True)
class Network:
    """A factory of ``models.students`` and what it is called with."""

    factory: Any
    arguments: Mapping[str, Any]

    def make(self, seed: int) -> TorchModel:
        """Return it with fresh weights."""
        torch.manual_seed(seed)
        module, contract = self.factory(**self.arguments)
        return TorchModel(module, contract, self.factory.__name__)

    def macs(self) -> int:
        """Return its multiply-accumulates for a row."""
        return count_macs(self.make(0))

    def parameters(self) -> int:
        """Return how many weights it has."""
        return count_parameters(self.make(0).module)


@dataclass(frozen=True)
class Outcome:
    """One student of one seed on the test rows."""

    seed: int
    loss: str
    top1: float
    teacher_top1: float
    control_top1: float

    @property
    def retention(self) -> float:
        """Its share of the teacher's top-1."""
        return self.top1 / self.teacher_top1

    @property
    def gain_points(self) -> float:
        """How much better it is than the same student trained on labels alone."""
        return 100 * (self.top1 - self.control_top1)


@dataclass(frozen=True)
class Bars:
    """What was to be reached, by the mean over seeds; None where there is no bar."""

    macs_share: float
    retention: float | None = None
    gain_points: float | None = None


def teach(
    student: TorchModel,
    rows: Rows,
    validation: Rows,
    answers: KeptAnswers,
    settings: TrainingSettings,
    name: str,
    options: Mapping[str, float],
    augmentation: Augmentation | None = None,
    rate_shares: Callable[[str], float] = lambda name: 1.0,
) -> None:
    """Train ``student`` by the loss of this name on what one or several teachers gave; the rest is as `train` takes it."""
    loss = LOSSES[name]
    chosen = options_for(loss, options)
    objective = teaching_objective(mixed(loss, chosen.hard_weight), chosen, answers, len(answers.views[0]))
    train(student, rows, validation, settings, objective=objective, augmentation=augmentation, rate_shares=rate_shares)


def repeated(rows: Rows, count: int) -> Rows:
    """Return ``count`` rows, each as often as the others to within one: so few rows take as many steps an epoch as many."""
    return rows.take(np.arange(count) % len(rows))


def outputs_of(model: TorchModel, rows: Rows) -> Array:
    """Return what ``model`` gives for each row."""
    return np.concatenate([model(batch.inputs)[model.contract.output.name] for batch in rows.batches(500)])


def top1(outputs: Array, rows: Rows) -> float:
    """Return the share of rows whose largest output is that of their class."""
    return float((outputs.argmax(1) == rows.required_labels()).mean())


def say(text: str) -> None:
    """Tell how far it is, beside the results."""
    print(text, file=sys.stderr, flush=True)


def summarise(outcomes: Sequence[Outcome], losses: Sequence[str], macs_share: float, bars: Bars) -> list[dict[str, Any]]:
    """Print a line for each loss, all seeds together, and return what it says."""
    return [_summary(name, [one for one in outcomes if one.loss == name], macs_share, bars) for name in losses]


def _summary(name: str, outcomes: Sequence[Outcome], share: float, bars: Bars) -> dict[str, Any]:
    retention, gain = mean([one.retention for one in outcomes]), mean([one.gain_points for one in outcomes])
    accuracy = mean([one.top1 for one in outcomes])
    met = (
        share <= bars.macs_share
        and (bars.retention is None or retention["mean"] >= bars.retention)
        and (bars.gain_points is None or gain["mean"] >= bars.gain_points)
    )
    print(
        f"{name:<24} top-1 {accuracy['mean']:.2%}  keeps {retention['mean']:.2%} "
        f"[{retention['low']:.2%}, {retention['high']:.2%}] of the teacher at 1/{1 / share:.0f} of its work, "
        f"{gain['mean']:+.2f} [{gain['low']:+.2f}, {gain['high']:+.2f}] points over labels alone: {'met' if met else 'MISSED'}"
    )
    return {"loss": name, "top1": accuracy, "retention": retention, "gain_points": gain, "met": met}


def mean(values: Sequence[float]) -> dict[str, float]:
    """Return the mean with Student's 95% interval over seeds; one seed has an infinite one."""
    average, spread = float(np.mean(values)), float(stats.sem(values)) if len(values) > 1 else float("inf")
    half = float(stats.t.ppf(0.975, len(values) - 1)) * spread if len(values) > 1 else float("inf")
    return {"mean": average, "low": average - half, "high": average + half}


def write(
    path: Path, name: str, command: str, student: Network, bars: Bars, outcomes: Sequence[Outcome], rest: Mapping[str, Any]
) -> None:
    """Write the record: what ran where, the bars, all seeds, and ``rest``."""
    record = {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "environment": asdict(describe_environment(usable_cores(), spinning=True)),
        "student_parameters": student.parameters(),
        "student_macs": student.macs(),
        "bars": asdict(bars),
        **rest,
        "seeds": [asdict(one) for one in outcomes],
    }
    with write_atomically(path) as staged:
        staged.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
