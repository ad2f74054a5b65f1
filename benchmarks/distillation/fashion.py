"""Fashion-MNIST: what a small student gains from a teacher that knows all of it, with few labels and with all of them.

``python benchmarks/distillation/fashion.py few|all|teacher [--seeds 0,1,2,3,4] [--folder FOLDER] [-o FILE]``

The teacher is a residual network of 53 million multiply-accumulates, trained once on 55,000 labelled rows with augmentation;
its epoch is chosen on the other 5,000. It lies in FOLDER, so that it is trained once; a training that was stopped goes on.
The student has 1/28 of its work. The 10,000 test rows are looked at once, by whichever epoch was chosen on validation rows.

``few``: for each seed 500 rows have labels, 100 of them for validation; the other 59,500 are only looked at. The control is the
same student from the same weights, for as many steps on as many rows a step, on its 400 labels alone.

``all``: every row has its label; students are chosen on the same 5,000 rows as the teacher. The control sees the same augmented
rows for as many steps. The teacher sees the student's own view of each row, out of 8 views a row that the epochs take in turn.

Intervals are Student's over seeds. Needs Debian's package dataset-fashion-mnist. Exit 1 where the best loss misses a bar.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from trials import CONTROL, RESULTS, Bars, Network, Outcome, outputs_of, repeated, say, summarise, teach, top1, write

from monograph.models.data.fashion import fashion_mnist
from monograph.models.data.preprocess import preprocess
from monograph.models.data.rows import UNLABELLED, Rows
from monograph.models.data.split import stratified_split
from monograph.models.students import conv, residual_conv
from monograph.models.torch_model import TorchModel, load_weights, save_weights
from monograph.pipelines.distill import KeptAnswers
from monograph.pipelines.teachers import Teacher, as_teacher, cached_outputs
from monograph.pipelines.training import Augmentation, TrainingSettings, train

_TEACHER = Network(residual_conv, {"width": 32})
_STUDENT = Network(conv, {"width": 16, "dropout": 0.0})
_TEACHING = TrainingSettings(
    epochs=20, batch_size=256, learning_rate=4e-3, weight_decay=5e-2, mixed_precision="bf16", select="top1"
)
_TEACHERS_VIEWS = Augmentation(("flip", "shift", "erase"))
_FEW = TrainingSettings(epochs=13, batch_size=128, learning_rate=8e-3, mixed_precision="bf16")
_FEW_PARTS = {"train": 400, "validation": 100}
_FEW_LOSSES: dict[str, dict[str, float]] = {"kd": {"temperature": 4.0}, "dist": {}}
_FEW_BARS = Bars(1 / 20, retention=0.975, gain_points=6.0)
_ALL = TrainingSettings(epochs=12, batch_size=128, learning_rate=8e-3, mixed_precision="bf16")
_VIEWS = Augmentation(("flip", "shift"), views=8)
_ALL_LOSSES: dict[str, dict[str, float]] = {"kd": {"temperature": 4.0, "hard_weight": 0.1}, "dist": {}}
_ALL_BARS = Bars(1 / 20)
_TEACHER_BAR = 0.94


def main() -> int:
    """Measure every seed, print the figures beside their bars, and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", choices=("few", "all", "teacher"))
    parser.add_argument("--seeds", type=lambda text: tuple(map(int, text.split(","))), default=(0, 1, 2, 3, 4))
    parser.add_argument("--folder", type=Path, default=Path("runs/distillation"))
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    known, test = _rows()
    parts = stratified_split(known, {"train": 55_000, "validation": 5_000}, seed=0)
    model = _taught(parts["train"], parts["validation"], arguments.folder)
    teacher, teacher_top1 = as_teacher(model), top1(outputs_of(model, test), test)
    print(f"teacher                  top-1 {teacher_top1:.2%}: {'met' if teacher_top1 >= _TEACHER_BAR else 'MISSED'}")
    if arguments.labels == "teacher":
        return 0
    if arguments.labels == "few":
        given = cached_outputs(teacher, known, arguments.folder)
        outcomes = [one for seed in arguments.seeds for one in _few(known, given, test, teacher_top1, seed)]
        losses, bars = list(_FEW_LOSSES), _FEW_BARS
    else:
        answers = _answers(teacher, parts["train"], arguments.folder)
        outcomes = [one for seed in arguments.seeds for one in _all(parts, answers, test, teacher_top1, seed)]
        losses, bars = list(dict.fromkeys(one.loss for one in outcomes)), _ALL_BARS
    share = _STUDENT.macs() / _TEACHER.macs()
    lines = summarise(outcomes, losses, share, bars)
    name = f"distillation_fashion_{arguments.labels}"
    command = f"python benchmarks/distillation/fashion.py {arguments.labels} --seeds {','.join(map(str, arguments.seeds))}"
    rest = {"teacher_top1": teacher_top1, "teacher_bar": _TEACHER_BAR, "macs_share": share, "losses": lines}
    write(arguments.output or RESULTS / f"{name}.json", name, command, _STUDENT, bars, outcomes, rest)
    return 0 if any(line["met"] for line in lines) and teacher_top1 >= _TEACHER_BAR else 1


def _rows() -> tuple[Rows, Rows]:
    table = fashion_mnist()
    inputs = preprocess({"pixels": table["x"]}, conv()[1])[0]
    rows = Rows(inputs, table["y"], origin="Fashion-MNIST")
    return rows.take(slice(0, 60_000)), rows.take(slice(60_000, 70_000))


def _taught(rows: Rows, validation: Rows, folder: Path) -> TorchModel:
    """Return the teacher, trained now or before."""
    model, kept = _TEACHER.make(0), folder / "teacher.safetensors"
    if kept.exists():
        load_weights(model.module, kept)
        return model

    def show(number: int, epoch: object) -> None:
        say(f"teacher, epoch {number + 1} of {_TEACHING.epochs}: {epoch}")

    train(model, rows, validation, _TEACHING, show, augmentation=_TEACHERS_VIEWS, folder=folder)
    save_weights(model.module, kept)
    return model


def _few(known: Rows, given: np.ndarray, test: Rows, teacher_top1: float, seed: int) -> list[Outcome]:
    numbered = Rows({"row": np.arange(len(known))}, known.labels)
    drawn = {name: part.inputs["row"] for name, part in stratified_split(numbered, _FEW_PARTS, seed).items()}
    others = np.setdiff1d(np.arange(len(known)), drawn["validation"])
    labels = np.where(np.isin(others, drawn["train"]), known.required_labels()[others], UNLABELLED)
    rows, answers = replace(known.take(others), labels=labels), KeptAnswers(((given[others],),))
    labelled, validation = known.take(drawn["train"]), known.take(drawn["validation"])
    settings = replace(_FEW, seed=seed)
    control = _STUDENT.make(seed)
    train(control, repeated(labelled, len(rows)), validation, settings)
    control_top1 = top1(outputs_of(control, test), test)
    say(f"seed {seed}: {CONTROL} {control_top1:.2%}")
    outcomes = []
    for name, options in _FEW_LOSSES.items():
        student = _STUDENT.make(seed)
        teach(student, rows, validation, answers, settings, name, options)
        outcomes.append(Outcome(seed, name, top1(outputs_of(student, test), test), teacher_top1, control_top1))
        say(f"seed {seed}: {name} {outcomes[-1].top1:.2%}")
    return outcomes


def _answers(teacher: Teacher, rows: Rows, folder: Path) -> KeptAnswers:
    """Return the teacher's for each view of each row."""
    views = []
    for view in range(_VIEWS.views):
        views.append((cached_outputs(teacher, rows, folder, view=(_VIEWS, view)),))
        say(f"the teacher has seen view {view + 1} of {_VIEWS.views}")
    return KeptAnswers(tuple(views))


def _all(parts: dict[str, Rows], answers: KeptAnswers, test: Rows, teacher_top1: float, seed: int) -> Sequence[Outcome]:
    rows, validation = parts["train"], parts["validation"]
    settings = replace(_ALL, seed=seed)
    control = _STUDENT.make(seed)
    train(control, rows, validation, settings, augmentation=_VIEWS)
    control_top1 = top1(outputs_of(control, test), test)
    say(f"seed {seed}: {CONTROL} {control_top1:.2%}")
    outcomes = []
    for name, options in _ALL_LOSSES.items():
        student = _STUDENT.make(seed)
        teach(student, rows, validation, answers, settings, name, options, _VIEWS)
        outcomes.append(Outcome(seed, name, top1(outputs_of(student, test), test), teacher_top1, control_top1))
        say(f"seed {seed}: {name} {outcomes[-1].top1:.2%}")
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
