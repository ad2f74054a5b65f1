"""Teachers give each row what they give for that row, whatever is done to rows, modules and names in between."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from monograph.errors import ConfigError, ContractError, FusionError
from monograph.export.trace import export_torch
from monograph.models.contract import Contract, Kind
from monograph.models.data.rows import Rows
from monograph.models.students import conv
from monograph.models.torch_model import TorchModel
from monograph.pipelines.fuse import fuse_models
from monograph.pipelines.losses import combine_teachers
from monograph.pipelines.teachers import Teacher, cached_outputs, class_order, load_teacher, load_teachers, weights_sha256
from monograph.runtime.runner import run_all_rows

CONTRACT = conv((1, 8, 8), 3)[1]


def module_teacher(seed: int = 0) -> tuple[Teacher, TorchModel]:
    """A network with BatchNorm and dropout: in train mode it would give something else each time."""
    torch.manual_seed(seed)
    model = TorchModel(*conv((1, 8, 8), 3, width=4, dropout=0.5), "teacher")
    return Teacher(
        "teacher", model.contract, weights_sha256(model), lambda rows: run_all_rows(model, model.contract, rows)
    ), model


def rows(count: int = 50, seed: int = 0) -> Rows:
    return Rows({"pixels": np.random.default_rng(seed).standard_normal((count, 1, 8, 8)).astype(np.float32)})


def test_a_row_keeps_its_answer_however_rows_are_shuffled(tmp_path: Path):
    teacher, _ = module_teacher()
    order = np.random.default_rng(1).permutation(50)
    plain, shuffled = cached_outputs(teacher, rows(), tmp_path), cached_outputs(teacher, rows().take(order), tmp_path)
    np.testing.assert_allclose(shuffled, plain[order], atol=1e-6)
    assert len(list(tmp_path.iterdir())) == 2


def test_it_is_asked_once(tmp_path: Path):
    asked: list[int] = []
    teacher, _ = module_teacher()
    counted = replace(teacher, run=lambda rows: asked.append(len(rows)) or teacher.run(rows))
    first = np.array(cached_outputs(counted, rows(300), tmp_path))
    again = cached_outputs(counted, replace(rows(300), labels=np.zeros(300, np.int64)), tmp_path)
    assert sum(asked) == 300
    np.testing.assert_array_equal(first, again)
    other, _ = module_teacher(seed=1)
    assert not np.allclose(cached_outputs(other, rows(300), tmp_path), first), "another teacher is another file"


def test_a_module_in_train_mode_is_asked_in_eval_mode_all_the_same(tmp_path: Path):
    teacher, model = module_teacher()
    expected = np.array(cached_outputs(teacher, rows(), tmp_path / "one"))
    model.module.train()  # as `student.train()` does to a teacher that is a part of it
    np.testing.assert_array_equal(cached_outputs(teacher, rows(), tmp_path / "two"), expected)


def test_a_loaded_teacher_takes_no_gradient():
    teacher = load_teacher("py:monograph.models.students:conv")
    assert not teacher.module.module.training
    assert not any(parameter.requires_grad for parameter in teacher.module.module.parameters())


def test_an_onnx_teacher_gives_what_its_module_gives(tmp_path: Path):
    teacher, model = module_teacher()
    export_torch(model, tmp_path / "teacher.onnx")
    np.testing.assert_allclose(load_teacher(str(tmp_path / "teacher.onnx")).logits(rows()), teacher.logits(rows()), atol=1e-5)


def test_probabilities_become_logarithms_that_a_softmax_undoes():
    teacher, _ = module_teacher()
    exact = np.array([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]], np.float32)
    sure = replace(teacher, contract=replace(teacher.contract, kind=Kind.PROBABILITIES), run=lambda rows: exact)
    logits = torch.from_numpy(sure.logits(rows(2)))
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits.softmax(1), torch.from_numpy(exact), atol=1e-6, rtol=0)


class TestClassOrder:
    @staticmethod
    def named(*names: str) -> Contract:
        return replace(CONTRACT, class_names=names)

    def test_by_name(self, tmp_path: Path):
        order = class_order(self.named("c", "a", "b"), self.named("a", "b", "c"), "teacher")
        assert order == [1, 2, 0]
        teacher, _ = module_teacher()
        plain = cached_outputs(teacher, rows(), tmp_path)
        np.testing.assert_array_equal(cached_outputs(teacher, rows(), tmp_path, order), plain[:, order])

    def test_alike_or_without_names(self):
        assert class_order(self.named("a", "b", "c"), self.named("a", "b", "c"), "teacher") is None
        assert class_order(CONTRACT, self.named("a", "b", "c"), "teacher") is None

    def test_what_cannot_be_aligned_is_refused(self):
        with pytest.raises(FusionError, match="teacher does not know the class 'd'"):
            class_order(self.named("a", "b", "c"), self.named("a", "b", "d"), "teacher")
        with pytest.raises(FusionError, match="teacher gives 3 numbers a row and the student 5"):
            class_order(CONTRACT, conv((1, 8, 8), 5)[1], "teacher")
        with pytest.raises(ContractError, match="gives regression and the student logits"):
            class_order(replace(CONTRACT, kind=Kind.REGRESSION), CONTRACT, "teacher")


def test_a_teaching_graph_is_its_members(tmp_path: Path):
    """Each asked alone, by the nodes it needs, at its own temperature; together by the weights of the fusion."""
    paths = []
    for seed in (0, 1):
        export_torch(module_teacher(seed)[1], tmp_path / f"member{seed}.onnx")
        paths.append(tmp_path / f"member{seed}.onnx")
    fuse_models(paths, tmp_path / "fused.onnx", weights=[0.7, 0.3], temperatures=[2.0, 1.0], member_outputs=True)
    teachers, weights = load_teachers([str(tmp_path / "fused.teaching.onnx")])
    assert weights == pytest.approx((0.7, 0.3))
    for teacher, seed, temperature in zip(teachers, (0, 1), (2.0, 1.0), strict=True):
        np.testing.assert_allclose(teacher.logits(rows()), module_teacher(seed)[0].logits(rows()) / temperature, atol=1e-5)
    first, second = (cached_outputs(teacher, rows(), tmp_path / "kept") for teacher in teachers)
    assert not np.allclose(first, second), "one file has several outputs, each kept apart"
    alone, none = load_teachers([str(path) for path in paths])
    assert none is None
    assert [teacher.name for teacher in alone] == ["member0", "member1"]
    with pytest.raises(ConfigError, match="already are several teachers: give it alone"):
        load_teachers([str(tmp_path / "fused.teaching.onnx"), str(paths[0])])


def test_tempering_a_mean_is_not_the_mean_of_what_is_tempered(tmp_path: Path):
    """Why a fused graph does not teach as its members do, at another temperature than 1."""
    logits = torch.tensor([[[8.0, 0.0, 0.0]], [[0.0, 0.0, 4.0]]])  # two members, sure of different classes
    mean = logits.softmax(-1).mean(0)
    tempered_mean = (mean.log() / 4).softmax(-1)
    mean_of_tempered = (logits / 4).softmax(-1).mean(0)
    assert (tempered_mean - mean_of_tempered).abs().max() > 0.05
    torch.testing.assert_close(combine_teachers(logits, torch.tensor([0.5, 0.5]), 4.0).div(4).softmax(-1), mean_of_tempered)
