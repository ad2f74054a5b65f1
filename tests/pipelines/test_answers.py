"""Kept or live, teachers see the student's own view of each row and give the same for it; hints watch layers inside both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from monograph.errors import ConfigError, ContractError
from monograph.export.trace import export_torch
from monograph.models.data.digits import optical_digits
from monograph.models.data.preprocess import preprocess
from monograph.models.data.rows import Rows
from monograph.models.students import conv
from monograph.models.torch_model import TorchModel
from monograph.pipelines.distill import Hints, KeptAnswers, LiveAnswers, Recipe, distill_model, find_answers
from monograph.pipelines.distill.hints import HintedObjective, watched_layers
from monograph.pipelines.teachers import Teacher, as_teacher, load_teacher
from monograph.pipelines.training import Augmentation, Batch, TrainingSettings, train

COUNT = 120


def made(seed: int = 0, width: int = 4, dropout: float = 0.5) -> TorchModel:
    torch.manual_seed(seed)
    return TorchModel(*conv((1, 8, 8), width=width, dropout=dropout), f"model{seed}")


def read(model: TorchModel) -> Rows:
    table = optical_digits()
    return Rows(preprocess({"pixels": table["x"][:COUNT]}, model.contract)[0], table["y"][:COUNT])


def normalised_otherwise(model: TorchModel) -> TorchModel:
    """The same network behind pixels from 0 to 1."""
    (spec,) = model.contract.inputs
    other = replace(spec, preprocessing=replace(spec.preprocessing, mean=(0.0,), std=(1.0,)))
    module = torch.nn.Sequential(Rescale(), model.module)
    return TorchModel(module, replace(model.contract, inputs=(other,)), "otherwise")


class Rescale(torch.nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return 2 * pixels - 1


def batch_of(model: TorchModel, augmentation: Augmentation | None, view: int) -> Batch:
    numbers = torch.randperm(COUNT, generator=torch.Generator().manual_seed(2))[:32]
    rows = read(model)
    inputs = (torch.from_numpy(rows.inputs["pixels"])[numbers],)
    seen = inputs if augmentation is None else augmentation.apply(inputs, numbers, view)
    return Batch(seen, torch.from_numpy(rows.labels)[numbers], numbers, view)


@pytest.mark.parametrize("augmentation", [None, Augmentation(("flip", "shift", "crop", "erase"), views=3)])
@pytest.mark.parametrize("kind", ["module", "normalised otherwise", "onnx"])
def test_kept_and_live_answers_are_those_for_the_students_own_view(tmp_path: Path, kind: str, augmentation: Augmentation | None):
    """A batch in any order, its second view: looked up, asked for live, or asked for by hand, it is the same."""
    student, network = made(1), made(0)
    teacher, rows = as_teacher(network), read(student)
    own = rows
    if kind == "normalised otherwise":
        other = normalised_otherwise(network)
        teacher, own = as_teacher(other), read(other)
        assert not np.allclose(own.inputs["pixels"], rows.inputs["pixels"])
    elif kind == "onnx":
        export_torch(network, tmp_path / "teacher.onnx")
        teacher = load_teacher(str(tmp_path / "teacher.onnx"))
    batch = batch_of(student, augmentation, 0 if augmentation is None else 2)
    expected = network({"pixels": batch.inputs[0].numpy()})["logits"]
    for mode, found in (("kept", KeptAnswers), ("live", LiveAnswers)):
        answers, how = find_answers(
            [teacher], [None], [rows, own], student.contract, tmp_path, augmentation, 9, mode, lambda *told: None
        )
        assert isinstance(answers, found)
        assert ("live, 9 times" if mode == "live" else "once") in how
        np.testing.assert_allclose(answers(batch)[0], expected, atol=1e-5)
        backwards = find_answers(
            [teacher],
            [list(range(9, -1, -1))],
            [rows, own],
            student.contract,
            tmp_path,
            augmentation,
            9,
            mode,
            lambda *told: None,
        )[0]
        np.testing.assert_allclose(backwards(batch)[0], expected[:, ::-1], atol=1e-5)


def test_live_teachers_stay_in_eval_mode_and_take_no_gradient():
    student, network = made(1), made(0)
    answers = LiveAnswers([as_teacher(network)], [None], [read(student)], student.contract, None)
    batch = batch_of(student, None, 0)
    expected = answers(batch)
    network.module.train()  # as `student.train()` does to a teacher that is a part of it
    torch.testing.assert_close(answers(batch), expected)
    assert not answers(batch).requires_grad
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}

    def objective(outputs: list[Tensor], batch: Batch) -> Tensor:
        return (outputs[0] - answers(batch)[0]).square().mean(1)

    settings = TrainingSettings(epochs=2)
    train(student, read(student), read(student), settings, objective=objective, on_start=answers.prepare)
    for name, tensor in network.module.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} of the teacher has changed"


def test_auto_asks_least(tmp_path: Path):
    student = made(1)

    def found(augmentation: Augmentation | None, epochs: int, mode: str = "auto") -> KeptAnswers | LiveAnswers:
        rows = [read(student)] * 2
        return find_answers(
            [as_teacher(made(0))], [None], rows, student.contract, tmp_path, augmentation, epochs, mode, lambda *told: None
        )[0]

    assert isinstance(found(None, 5), KeptAnswers)
    assert len(found(Augmentation(("flip",), views=2), 5).views) == 2
    assert isinstance(found(Augmentation(("flip",), views=8), 5), LiveAnswers), "no view is taken twice"
    assert isinstance(found(Augmentation(("flip",)), 5), LiveAnswers)
    assert len(found(Augmentation(("flip",)), 3, "kept").views) == 3
    with pytest.raises(ConfigError, match="unknown way 'never'"):
        found(None, 5, "never")


class TestHints:
    """The layers of a wide network teach those of a narrow one."""

    def hinted(self, student: TorchModel, teacher: Teacher, hints: Hints, epochs: int) -> float:
        """Train on the hints alone and return their loss in the last epoch."""
        answers = LiveAnswers([teacher], [None], [read(student)], student.contract, None)
        batch = batch_of(student, None, 0)

        def nothing(outputs: list[Tensor], batch: Batch) -> Tensor:
            answers(batch)
            return 0 * outputs[0].sum(1)

        def first_pass() -> None:
            student.module(*batch.inputs)
            answers(batch)

        with watched_layers(hints, student, [teacher]) as (own, theirs):
            objective = HintedObjective(nothing, hints, own, theirs, first_pass)
            training = train(student, read(student), read(student), TrainingSettings(epochs=epochs), objective=objective)
        assert not any(module._forward_hooks for module in (*student.module.modules(), *teacher.module.module.modules()))
        return training.epochs[-1].train_loss

    @pytest.mark.parametrize("loss", ["hint", "attention"])
    def test_layers_learn_to_look_alike(self, loss: str):
        """Maps of 4 x 4 of the student beside 8 x 8 of the teacher."""
        teacher, hints = as_teacher(made(0, width=16)), Hints({"7": "6", "4": "2"}, loss)
        short, long = (self.hinted(made(1, dropout=0.0), teacher, hints, epochs) for epochs in (1, 20))
        assert long < 0.7 * short

    def test_projections_are_learned_and_are_none_of_the_students(self, tmp_path: Path):
        student, teacher = made(1), as_teacher(made(0, width=8))
        names = set(student.module.state_dict())
        self.hinted(student, teacher, Hints({"2": "2"}), 1)
        assert set(student.module.state_dict()) == names

    def test_wrong_ones_are_one_line(self, tmp_path: Path):
        teacher, student = as_teacher(made(0)), made(1)
        for hints, message in (
            ({"nowhere": "2"}, "model1 has no layer 'nowhere': it has 0, 1"),
            ({"2": "nowhere"}, "model0 has no layer 'nowhere'"),
        ):
            with pytest.raises(ConfigError, match=message), watched_layers(Hints(hints), student, [teacher]):
                pass
        with pytest.raises(ContractError, match=r"layer 2 of the student gives \[32, 4, 8, 8\] and 13 of the teacher"):
            self.hinted(student, teacher, Hints({"2": "13"}), 1)
        with pytest.raises(ContractError, match="attention needs two maps"):
            self.hinted(student, teacher, Hints({"13": "13"}, "attention"), 1)
        with pytest.raises(ConfigError, match="unknown loss of layers"):
            Hints({"2": "2"}, "fsp")
        export_torch(made(0), tmp_path / "teacher.onnx")
        asked = load_teacher(str(tmp_path / "teacher.onnx"))
        with (
            pytest.raises(ConfigError, match="whose layers cannot be watched"),
            watched_layers(Hints({"2": "2"}), student, [asked]),
        ):
            pass


@pytest.fixture
def teacher_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "wide_teacher.py").write_text(
        "import torch\nfrom monograph.models.students import conv\n"
        "def make():\n    torch.manual_seed(0)\n    return conv((1, 8, 8), width=16)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "py:wide_teacher:make"


def test_the_verb_takes_views_and_hints(tmp_path: Path, teacher_source: str):
    """And goes on from a checkpoint that holds projections."""
    table = optical_digits()
    np.savez(tmp_path / "data.npz", x=table["x"][:COUNT], y=table["y"][:COUNT])
    recipe = Recipe(augmentation=Augmentation(("shift",), views=2), hints=Hints({"4": "4"}, weight=0.5))
    settings = TrainingSettings(epochs=3, batch_size=32, select="top1")

    class StopError(Exception):
        pass

    def distil(name: str, stop_at: int, *, resume: bool = False) -> Path:
        def stop(done: int, total: int, detail: str) -> None:
            if detail.startswith("loss") and done == stop_at:
                raise StopError

        given = {"recipe": recipe, "settings": settings, "on": (), "resume": resume, "on_progress": stop}
        arguments = {"width": 4, "dropout": 0.1}
        distilled = distill_model(
            [teacher_source], "conv", str(tmp_path / "data.npz"), tmp_path / name, student_arguments=arguments, **given
        )
        assert any("live" in note for note in distilled.notes)
        return distilled.weights

    whole = distil("whole", -1)
    with pytest.raises(StopError):
        distil("cut", 7)
    assert distil("cut", -1, resume=True).read_bytes() == whole.read_bytes()
    kept = replace(recipe, teacher_outputs="kept")
    with pytest.raises(ConfigError, match="which are not kept"):
        distill_model([teacher_source], "conv", str(tmp_path / "data.npz"), tmp_path / "other", recipe=kept)
