"""``distill`` as a person meets it: a small student of real digits, its ONNX file, and every wrong input in one line."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from monograph.errors import ConfigError, ContractError, FusionError, MonographError
from monograph.export.trace import export_torch
from monograph.models.data.digits import optical_digits
from monograph.models.data.load import load_rows
from monograph.models.onnx_file import read_onnx
from monograph.models.seen import read_seen
from monograph.models.students import conv
from monograph.models.torch_model import TorchModel
from monograph.pipelines.cli import _exit_code
from monograph.pipelines.distill import Distilled, Recipe, distill_model, teaching_objective
from monograph.pipelines.fuse import fuse_models
from monograph.pipelines.losses import LOSSES, LossOptions, options_for
from monograph.pipelines.training import UNLABELLED, Augmentation, Batch, TrainingSettings, train
from monograph.pipelines.verify import verify_model

QUICK = TrainingSettings(epochs=8, batch_size=64, learning_rate=1e-2, select="top1")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two teachers trained on 1,000 digits and their fusion; 100 labelled digits, 800 to look at only, 397 to test on."""
    folder = tmp_path_factory.mktemp("world")
    table = optical_digits()
    parts = {"all": slice(0, 1000), "data": slice(0, 100), "unlabelled": slice(100, 900), "test": slice(1400, 1797)}
    for name, part in parts.items():
        np.savez(folder / f"{name}.npz", x=table["x"][part], y=table["y"][part])
    paths = {name: str(folder / f"{name}.npz") for name in parts}
    for seed, width in ((0, 8), (1, 12)):
        torch.manual_seed(seed)
        model = TorchModel(*conv((1, 8, 8), width=width), f"teacher{seed}")
        train(
            model,
            load_rows(paths["all"], model.contract),
            load_rows(paths["test"], model.contract),
            TrainingSettings(epochs=6, learning_rate=1e-2, seed=seed),
        )
        export_torch(model, folder / f"teacher{seed}.onnx")
        paths[f"teacher{seed}"] = str(folder / f"teacher{seed}.onnx")
    fuse_models([paths["teacher0"], paths["teacher1"]], folder / "fused.onnx")
    return paths | {"fused": str(folder / "fused.onnx")}


def distilled(world: dict[str, str], out: Path, teachers: tuple[str, ...] = ("fused",), **choices: object) -> Distilled:
    given: dict[str, object] = {
        "student": "separable_conv",
        "student_arguments": {"width": 8, "dropout": 0.0},
        "unlabelled": world["unlabelled"],
        "test": world["test"],
        "settings": QUICK,
        "on": (),
    } | choices
    return distill_model([world[name] for name in teachers], data=world["data"], out=out, **given)


@pytest.mark.slow
def test_an_ensemble_becomes_a_small_model(world: dict[str, str], tmp_path: Path):
    settings = TrainingSettings(epochs=40, learning_rate=1e-2, select="top1")
    made = distilled(world, tmp_path / "out", settings=settings, on=["cpu"])
    assert made.retention > 0.9
    assert made.student.macs * 5 < made.teachers[0].macs
    assert made.student.fidelity.top1_agreement.estimate > 0.85
    assert made.student.fidelity.row_count == 397
    assert read_onnx(made.onnx).contract.kind == read_onnx(Path(world["fused"])).contract.kind
    assert verify_model(made.onnx).passed
    assert [one.model for one in made.measurements] == ["student", "fused"]
    assert made.measurements[0].accuracy.top1.estimate == made.student.accuracy.top1.estimate
    record = json.loads((tmp_path / "out" / "distillation.json").read_text())
    assert record["student"]["macs"] == made.student.macs
    assert len(record["training"]["epochs"]) == 40


@pytest.mark.slow
def test_the_student_in_8_bits_and_the_report(world: dict[str, str], tmp_path: Path):
    """Beside the float one, measured as it is, and both say which rows they have seen."""
    settings = TrainingSettings(epochs=20, learning_rate=1e-2, select="top1")
    made = distilled(world, tmp_path / "out", settings=settings, quantize="static", largest_loss_points=5.0, on=["cpu"])
    small = made.quantized
    assert small.path == tmp_path / "out" / "student.int8.onnx"
    assert small.chosen.weight_bytes < 0.5 * small.float_weight_bytes
    assert [one.model for one in made.measurements] == ["student", "student.int8", "fused"]
    assert verify_model(small.path).passed
    used = load_rows(world["data"], read_onnx(small.path).contract)
    test = load_rows(world["test"], read_onnx(small.path).contract)
    for path in (made.onnx, small.path):
        seen = read_seen(read_onnx(path))
        assert seen.among(used.digests).all()
        assert not seen.among(test.digests).any()
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "student.int8" in html


def test_unlabelled_rows_teach(world: dict[str, str], tmp_path: Path):
    """The same number of steps with and without 800 rows that nobody labelled."""
    settings = TrainingSettings(epochs=20, learning_rate=1e-2, select="top1")
    with_them = distilled(world, tmp_path / "with", settings=settings)
    without = distilled(
        world, tmp_path / "without", unlabelled=None, settings=TrainingSettings(epochs=220, learning_rate=1e-2, select="top1")
    )
    assert with_them.student.accuracy.top1.estimate > without.student.accuracy.top1.estimate + 0.02


@pytest.mark.parametrize("loss", [name for name, one in LOSSES.items() if one.takes == "logits"])
def test_every_loss_trains(world: dict[str, str], tmp_path: Path, loss: str):
    unlabelled = None if LOSSES[loss].needs_labels else world["unlabelled"]
    made = distilled(world, tmp_path / "out", unlabelled=unlabelled, recipe=Recipe(loss))
    assert made.loss == loss
    assert np.isfinite([epoch.train_loss for epoch in made.training.epochs]).all()


@pytest.mark.parametrize("weights", ["equal", "confidence", (0.8, 0.2)])
def test_several_teachers(world: dict[str, str], tmp_path: Path, weights: object):
    made = distilled(world, tmp_path / "out", ("teacher0", "teacher1"), recipe=Recipe(teacher_weights=weights))
    assert [one.name for one in made.teachers] == ["teacher0", "teacher1"]
    assert len(list((tmp_path / "out" / "teachers").iterdir())) == 2 * 2, "each was asked for training rows and for test rows"


class StopError(Exception):
    """A person's interrupt."""


def test_a_stopped_distillation_goes_on(world: dict[str, str], tmp_path: Path):
    whole = distilled(world, tmp_path / "whole")

    def stop(done: int, total: int, detail: str) -> None:
        if detail.startswith("loss") and done > total // 2:
            raise StopError

    with pytest.raises(StopError):
        distilled(world, tmp_path / "out", on_progress=stop)
    with pytest.raises(ConfigError, match="holds a training already: go on with it by --resume"):
        distilled(world, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"other settings \(loss was 'kd' and is 'dist'"):
        distilled(world, tmp_path / "out", resume=True, recipe=Recipe("dist"))
    resumed = distilled(world, tmp_path / "out", resume=True)
    assert resumed.training == whole.training
    assert (tmp_path / "out" / "student.safetensors").read_bytes() == (tmp_path / "whole" / "student.safetensors").read_bytes()


def test_a_teacher_that_wants_other_pixels_gets_them(world: dict[str, str], tmp_path: Path):
    """The same network behind another normalisation: rows are prepared for each by its own contract."""
    from monograph.models.contract import CONTRACT_KEY

    proto = onnx.load(world["teacher0"])
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    contract = json.loads(metadata[CONTRACT_KEY])
    pixels = contract["inputs"][0]
    assert (pixels["preprocessing"]["mean"], pixels["preprocessing"]["std"]) == ([0.5], [0.5])
    pixels["preprocessing"] |= {"mean": [0.0], "std": [1.0]}
    onnx.helper.set_model_props(proto, metadata | {CONTRACT_KEY: json.dumps(contract)})
    first = proto.graph.input[0].name
    scale, offset = (onnx.numpy_helper.from_array(np.array(value, np.float32), name) for name, value in (("s", 2.0), ("o", -1.0)))
    for node in proto.graph.node:
        node.input[:] = ["prepared" if name == first else name for name in node.input]
    proto.graph.node.insert(0, onnx.helper.make_node("Add", ["scaled", "o"], ["prepared"]))
    proto.graph.node.insert(0, onnx.helper.make_node("Mul", [first, "s"], ["scaled"]))
    proto.graph.initializer.extend([scale, offset])
    onnx.save(proto, tmp_path / "raw.onnx")
    plain = distilled(world, tmp_path / "plain", ("teacher0",))
    raw = distilled(world | {"raw": str(tmp_path / "raw.onnx")}, tmp_path / "raw", ("raw",))
    assert raw.teachers[0].accuracy.top1 == plain.teachers[0].accuracy.top1
    assert raw.training.epochs[-1].validation_loss == pytest.approx(plain.training.epochs[-1].validation_loss, abs=1e-3)


@pytest.mark.parametrize("student_names", [None, [str(digit) for digit in range(10)]])
def test_a_teacher_that_counts_its_classes_backwards(
    world: dict[str, str], tmp_path: Path, student_names: list[str] | None, monkeypatch: pytest.MonkeyPatch
):
    """Names in the data, in the teacher and maybe in the student: a class is the same wherever it stands."""
    from monograph.models.contract import CONTRACT_KEY

    names = [str(digit) for digit in range(10)]
    named = dict(world)
    for part in ("data", "unlabelled", "test"):
        with np.load(world[part]) as table:
            np.savez(tmp_path / f"{part}.npz", x=table["x"], y=table["y"], class_names=np.array(names))
        named[part] = str(tmp_path / f"{part}.npz")
    proto = onnx.load(world["teacher0"])
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    contract = json.loads(metadata[CONTRACT_KEY]) | {"class_names": names[::-1]}
    onnx.helper.set_model_props(proto, metadata | {CONTRACT_KEY: json.dumps(contract)})
    output = proto.graph.output[0].name
    for node in proto.graph.node:
        node.output[:] = ["forwards" if name == output else name for name in node.output]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(9, -1, -1), "backwards"))
    proto.graph.node.append(onnx.helper.make_node("Gather", ["forwards", "backwards"], [output], axis=1))
    onnx.save(proto, tmp_path / "backwards.onnx")
    if student_names is not None:
        (tmp_path / "named_student.py").write_text(
            "from dataclasses import replace\nfrom monograph.models.students import separable_conv\n"
            "def make():\n    module, contract = separable_conv((1, 8, 8), width=8, dropout=0.0)\n"
            f"    return module, replace(contract, class_names={tuple(student_names)!r})\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
    choices = {} if student_names is None else {"student": "py:named_student:make", "student_arguments": {}}
    plain = distilled(world, tmp_path / "plain", ("teacher0",))
    made = distilled(named | {"b": str(tmp_path / "backwards.onnx")}, tmp_path / "out", ("b",), **choices)
    assert made.teachers[0].accuracy.top1 == plain.teachers[0].accuracy.top1
    assert made.student.accuracy.top1.estimate > 0.5
    assert list(read_onnx(made.onnx).contract.class_names) == (student_names or names[::-1])


def test_the_objective_looks_a_row_up_by_its_number():
    """A shuffled batch, rows with and without labels, two teachers."""
    torch.manual_seed(0)
    teachers, student = torch.randn(2, 20, 3), torch.randn(4, 3)
    batch = Batch((torch.zeros(4, 1),), torch.tensor([1, UNLABELLED, 0, 2]), torch.tensor([7, 3, 19, 0]))
    loss, options = LOSSES["kd"], options_for(LOSSES["kd"], {"temperature": 2.0})
    found = teaching_objective(loss, options, lambda batch: teachers[:, batch.rows], 2)([student], batch)
    log_q = (student / 2).log_softmax(1)
    p = (teachers[:, batch.rows] / 2).softmax(2).mean(0)
    torch.testing.assert_close(found, 4 * (p * (p.log() - log_q)).sum(1))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"recipe": Recipe("kld")}, ConfigError, "unknown loss 'kld': choose from"),
        ({"recipe": Recipe("dkd")}, ConfigError, "dkd needs a label for every row: leave out --unlabelled"),
        ({"recipe": Recipe("mse", teacher_weights="confidence")}, ConfigError, "confidence weights are for classes"),
        ({"recipe": Recipe("attention")}, ConfigError, "compares layers inside the networks"),
        ({"recipe": Recipe("kd", {"alpha": 1.0})}, ConfigError, "does not read the option alpha"),
        ({"recipe": Recipe("kd", {"temperature": 0.0})}, ConfigError, "temperature"),
        ({"recipe": Recipe(teacher_weights="best")}, ConfigError, "teacher weights 'best': give equal, confidence"),
        ({"recipe": Recipe(teacher_weights=(1.0, 2.0))}, ConfigError, "2 weights for 1 teachers"),
        ({"student_arguments": {"class_count": 7}}, FusionError, "fused gives 10 numbers a row and the student 7"),
        ({"student_arguments": {"wide": 7}}, ConfigError, "student separable_conv was called with"),
        ({"student": "nothing"}, MonographError, "no model source"),
        ({"quantize": "int4"}, ConfigError, "unknown way to quantise 'int4'"),
        (
            {
                "recipe": Recipe(augmentation=Augmentation(("flip",))),
                "student": "mlp",
                "student_arguments": {"input_shape": (64,)},
            },
            ContractError,
            "only pictures",
        ),
        ({"resume": True}, ConfigError, "holds no training to resume"),
        ({"settings": TrainingSettings(epochs=3, learning_rate=1e20, select="top1")}, MonographError, "is not finite"),
    ],
)
def test_wrong_input_is_one_line(
    world: dict[str, str], tmp_path: Path, change: dict[str, object], error: type[Exception], message: str
):
    with pytest.raises(error, match=message) as refusal:
        distilled(world, tmp_path / "out", **change)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out" / "student.onnx").exists()


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = _exit_code([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return code, captured.out, " ".join(captured.err.split())

    return call


@pytest.mark.slow
def test_the_command(world: dict[str, str], tmp_path: Path, run: Callable[..., tuple[int, str, str]]):
    arguments = ["distill", "--teacher", world["fused"], "--student", "auto:1/10", "--data", world["data"], "--epochs", "2"]
    code, out, err = run(*arguments, "--test", world["test"], "-o", tmp_path / "out")
    assert (code, "Traceback" in err) == (0, False)
    assert "the student keeps" in " ".join(out.split())
    assert (tmp_path / "out" / "student.onnx").exists()
    before = torch.get_num_threads()
    code, out, _ = run(*arguments, "-o", tmp_path / "json", "--json", "--threads", "2")
    assert (code, json.loads(out)["loss"]) == (0, "kd")
    assert torch.get_num_threads() == 2, "the training ran with what the option says, whatever OMP_NUM_THREADS says"
    torch.set_num_threads(before)
    code, _, err = run("distill", "--data", world["data"], "-o", tmp_path / "none")
    assert (code, "no teacher: give one or more" in err) == (2, True)


def test_the_common_snippet_teaches_nothing():
    """``nn.KLDivLoss()`` without T²: a gradient some T² · c times too small beside the one of hard labels."""
    torch.manual_seed(0)
    student, teacher = torch.randn(64, 10, requires_grad=True), torch.randn(64, 10)

    def gradient(value: Tensor) -> float:
        (found,) = torch.autograd.grad(value, student)
        return float(found.norm())

    ours = LOSSES["kd"].compute(student, teacher, None, LossOptions(temperature=4.0)).mean()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the first of the two mistakes
        common = torch.nn.KLDivLoss()((student / 4).log_softmax(1), (teacher / 4).softmax(1))
    assert gradient(ours) == pytest.approx(16 * 10 * gradient(common), rel=1e-3)
