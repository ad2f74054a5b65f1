"""A student of real rows in 8 bits: judged on rows that it was not trained on, and taught again where that loses too much."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn

from monograph.errors import ConfigError, DataError
from monograph.export.lowering import LOWERING_KEY
from monograph.export.trace import export_torch
from monograph.models.contract import Kind
from monograph.models.data.digests import row_digests
from monograph.models.data.digits import optical_digits
from monograph.models.data.preprocess import preprocess
from monograph.models.data.rows import Rows
from monograph.models.data.tweets import tweets
from monograph.models.fake_quantize import FakeQuantized
from monograph.models.onnx_file import read_onnx
from monograph.models.seen import mark_seen, read_seen, seen
from monograph.models.students import conv, mlp, transformer
from monograph.models.torch_model import TorchModel
from monograph.pipelines.distill.quantize import Quantized, aware_settings, quantize_student
from monograph.pipelines.records import read_record, write_record
from monograph.pipelines.training import Epoch, Training, TrainingSettings, train
from monograph.pipelines.verify import verify_model
from monograph.runtime.runner import run_all_rows
from monograph.runtime.session import open_session

SETTINGS = TrainingSettings(epochs=8, learning_rate=1e-2, select="top1")


@dataclass(frozen=True)
class Student:
    """A trained student, its rows, and how it was trained."""

    model: TorchModel
    train_rows: Rows
    validation_rows: Rows
    settings: TrainingSettings
    onnx: Path

    def fine_tune(self, model: TorchModel, settings: TrainingSettings, on_epoch: Callable[[int, Epoch], None]) -> Training:
        return train(model, self.train_rows, self.validation_rows, settings, on_epoch)

    def quantized(self, folder: Path, mode: str, largest_loss_points: float = 1.0) -> Quantized:
        shutil.copy(self.onnx, folder / "student.onnx")
        return quantize_student(
            self.model,
            folder / "student.onnx",
            self.train_rows,
            self.validation_rows,
            mode,
            settings=self.settings,
            fine_tune=self.fine_tune,
            largest_loss_points=largest_loss_points,
        )


def trained(model: TorchModel, rows: Rows, train_count: int, folder: Path, settings: TrainingSettings = SETTINGS) -> Student:
    train_rows, validation_rows = rows.take(slice(0, train_count)), rows.take(slice(train_count, None))
    train(model, train_rows, validation_rows, settings)
    return Student(model, train_rows, validation_rows, settings, exported(model, train_rows, folder))


def exported(model: TorchModel, rows: Rows, folder: Path) -> Path:
    path = export_torch(model, folder / f"{model.name}.onnx").path
    mark_seen(path, seen("training", rows))
    return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Student:
    table = optical_digits()
    torch.manual_seed(0)
    model = TorchModel(*conv((1, 8, 8), width=8, dropout=0.0), "digits")
    pixels = (table["x"].reshape(-1, 1, 8, 8) / 127.5 - 1).astype(np.float32)
    rows = Rows({"pixels": pixels}, table["y"].astype(np.int64))
    return trained(model, rows, 1200, tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def unbalanced(digits: Student, tmp_path_factory: pytest.TempPathFactory) -> Student:
    """The same function, with channels of very different width: one scale for a tensor leaves few steps to the narrow ones.

    Taught again for a fifth of 30 epochs.
    """
    module = copy.deepcopy(digits.model.module)
    layers = [each for each in module.modules() if isinstance(each, nn.Conv2d | nn.Linear)]
    norms = [each for each in module.modules() if isinstance(each, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm, following in zip(norms, layers[1:], strict=True):
            width = torch.exp(2 * torch.randn(len(norm.weight), generator=torch.Generator().manual_seed(len(norm.weight))))
            norm.weight *= width
            norm.bias *= width
            following.weight /= width.reshape(1, -1, *[1] * (following.weight.dim() - 2))
    model, settings = replace(digits.model, module=module), replace(SETTINGS, epochs=30)
    return replace(
        digits, model=model, settings=settings, onnx=exported(model, digits.train_rows, tmp_path_factory.mktemp("unbalanced"))
    )


def top1(path: Path, rows: Rows) -> float:
    file = read_onnx(path)
    outputs = run_all_rows(open_session(path), file.contract, rows)
    return float(np.mean(outputs.argmax(1) == rows.labels))


def test_static_keeps_what_the_student_knows_in_a_quarter_of_its_bytes(digits: Student, tmp_path: Path):
    made = digits.quantized(tmp_path, "static")
    assert made.path == tmp_path / "student.int8.onnx"
    assert (made.chosen.mode, len(made.trials), made.training) == ("static", 1, None)
    assert made.chosen.loss_points <= 1
    assert made.chosen.accuracy.top1.estimate == top1(made.path, digits.validation_rows) > 0.9
    assert made.float_accuracy.top1.estimate == top1(tmp_path / "student.onnx", digits.validation_rows)
    assert made.chosen.agreement.top1_agreement.estimate > 0.97
    assert made.chosen.weight_bytes * 3 < made.float_weight_bytes
    assert read_record(written(tmp_path / "record.json", made), Quantized) == made
    assert made.chosen.size_bytes == made.path.stat().st_size < made.float_size_bytes
    assert read_onnx(made.path).contract == read_onnx(tmp_path / "student.onnx").contract
    assert verify_model(made.path).passed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["record.json", "student.int8.onnx", "student.onnx"]


def written(path: Path, made: Quantized) -> Path:
    write_record(path, made)
    return path


def test_only_training_rows_calibrate(digits: Student, tmp_path: Path):
    """Rows to judge by are so bright that they would show in the ranges."""
    bright = replace(digits.validation_rows, inputs={"pixels": digits.validation_rows.inputs["pixels"] * 100})
    made = replace(digits, validation_rows=bright).quantized(tmp_path, "static", 100)
    record = json.loads(read_onnx(made.path).metadata[LOWERING_KEY])
    assert (record["source"], record["calibration"]["row_count"]) == ("student.onnx", 256)
    assert record["source_sha256"] == read_onnx(tmp_path / "student.onnx").sha256
    assert made.chosen.agreement.cosine < 0.9, "what is brighter than the training rows is cut off"


def test_the_fake_network_is_the_quantised_one(digits: Student, tmp_path: Path):
    """What is trained computes what is written: nearer to it by far than the float student is."""
    made = digits.quantized(tmp_path, "static")
    rows = digits.validation_rows
    file = read_onnx(made.path)
    quantised = run_all_rows(open_session(made.path), file.contract, rows)
    calibration = digits.train_rows.take(np.random.default_rng(1).permutation(len(digits.train_rows))[:256])
    fake = FakeQuantized(copy.deepcopy(digits.model.module), [[torch.from_numpy(calibration.inputs["pixels"])]])
    fake.calibrate()
    computed = replace(digits.model, module=fake)(rows.inputs)["logits"]
    in_float = digits.model(rows.inputs)["logits"]
    assert np.std(computed - quantised) * 5 < np.std(in_float - quantised)


@pytest.mark.slow
def test_what_static_breaks_is_taught_again(unbalanced: Student, tmp_path: Path):
    before = {name: tensor.clone() for name, tensor in unbalanced.model.module.state_dict().items()}
    made = unbalanced.quantized(tmp_path, "static")
    static, aware = made.trials
    assert static.loss_points > 20
    assert aware.loss_points < static.loss_points / 2
    assert made.chosen is aware
    assert made.training is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in unbalanced.model.module.state_dict().items())
    assert any("taught again" in note for note in made.notes)


@pytest.mark.slow
def test_it_is_the_quantisation_that_has_to_be_known(unbalanced: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As many epochs more, in float, do not mend it."""
    monkeypatch.setattr("monograph.models.seen.MOST_INLINE", 1000)  # the list of rows that it has seen lies beside it
    aware = unbalanced.quantized(tmp_path, "aware", 100)
    model = replace(unbalanced.model, module=copy.deepcopy(unbalanced.model.module))
    unbalanced.fine_tune(model, aware_settings(unbalanced.settings), lambda number, epoch: None)
    (tmp_path / "longer").mkdir()
    longer = replace(unbalanced, model=model, onnx=exported(model, unbalanced.train_rows, tmp_path / "longer"))
    static = longer.quantized(tmp_path / "longer", "static", 100)
    assert aware.chosen.accuracy.top1.estimate > static.chosen.accuracy.top1.estimate + 0.1
    assert json.loads(read_onnx(aware.path).metadata[LOWERING_KEY])["source"] == "student.aware.onnx"
    assert verify_model(tmp_path / "student.aware.onnx").passed
    assert verify_model(aware.path).passed
    for path in (tmp_path / "student.aware.onnx", aware.path):
        told = read_seen(read_onnx(path))
        assert told.uses["training"] == 1200
        assert told.among(row_digests(list(unbalanced.train_rows.inputs.values()))).all()


def test_aware_is_tried_in_any_case_and_the_better_one_kept(digits: Student, tmp_path: Path):
    def ruin(model: TorchModel, settings: TrainingSettings, on_epoch: Callable[[int, Epoch], None]) -> Training:
        with torch.no_grad():
            for parameter in model.module.parameters():
                parameter.zero_()
        return Training((), 0)

    shutil.copy(digits.onnx, tmp_path / "student.onnx")
    made = quantize_student(
        digits.model,
        tmp_path / "student.onnx",
        digits.train_rows,
        digits.validation_rows,
        "aware",
        settings=SETTINGS,
        fine_tune=ruin,
    )
    assert [trial.mode for trial in made.trials] == ["static", "aware"]
    assert made.trials[1].loss_points > 50
    assert made.chosen.mode == "static"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student.int8.onnx", "student.onnx"]


def test_what_loses_too_much_is_not_written(digits: Student, tmp_path: Path):
    made = digits.quantized(tmp_path, "dynamic", -50)
    assert made.path is None
    assert "no 8-bit student was written: it may lose -50 points" in made.notes
    assert [path.name for path in tmp_path.iterdir()] == ["student.onnx"]
    assert re.fullmatch(
        r"dynamic (loses|gains) \d\.\d\d points of top-1 \(to 9\d\.\d\d%\) on 597 validation rows, and -50 are allowed: "
        r"nothing was written; allow more \(--quantize-loss\), give a wider student, or ship the float one",
        made.describe(),
    )


def test_dynamic_says_which_part_stays_in_float(digits: Student, tmp_path: Path):
    made = digits.quantized(tmp_path, "dynamic")
    assert made.chosen.agreement.top1_agreement.estimate > 0.97
    assert any(note.startswith("3 convolutions stay in float") for note in made.notes)
    assert made.chosen.weight_bytes > 0.8 * made.float_weight_bytes


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Student:
    """A transformer of 1,500 tweets."""
    table = tweets()
    chosen = np.random.default_rng(0).permutation(len(table["y"]))[:2000]
    given, labels = table["text"][chosen].tolist(), table["y"][chosen]
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(given[:1500], trainers.WordLevelTrainer(vocab_size=1500, special_tokens=["[PAD]", "[UNK]"]))
    torch.manual_seed(0)
    made = transformer(tokenizer.get_vocab_size(), 24, 3, width=16, depth=1, heads=2, dropout=0.0)
    model = TorchModel(*made, "texts", tokenizer.to_str())
    inputs, _ = preprocess({"input_ids": given, "attention_mask": given}, model.contract, tokenizer_json=model.tokenizer_json)
    rows = Rows(inputs, labels)
    settings = TrainingSettings(epochs=3, learning_rate=3e-3, select="top1")
    return trained(model, rows, 1500, tmp_path_factory.mktemp("texts"), settings)


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_a_student_of_texts(texts: Student, tmp_path: Path, mode: str):
    made = texts.quantized(tmp_path, mode, 2)
    assert made.chosen.mode == mode
    assert made.chosen.agreement.top1_agreement.estimate > 0.97
    assert made.chosen.weight_bytes * 3 < made.float_weight_bytes
    assert read_onnx(made.path).tokenizer_json == texts.model.tokenizer_json
    assert verify_model(made.path).passed
    assert not any("convolutions" in note for note in made.notes)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Student:
    """A regression on 442 real patients."""
    from sklearn.datasets import load_diabetes

    table = load_diabetes()
    features = (table.data / table.data.std(0)).astype(np.float32)
    targets = (table.target - table.target.mean()) / table.target.std()
    torch.manual_seed(0)
    module, contract = mlp((10,), 1, width=16, dropout=0.0)
    rows = Rows({"features": features}, targets[:, None])
    model = TorchModel(module, replace(contract, kind=Kind.REGRESSION), "numbers")
    settings = TrainingSettings(epochs=10, learning_rate=1e-2)
    return trained(model, rows, 300, tmp_path_factory.mktemp("numbers"), settings)


def test_a_model_without_classes_is_judged_by_its_error(numbers: Student, tmp_path: Path):
    made = numbers.quantized(tmp_path, "static")
    assert made.path is not None
    assert (made.chosen.accuracy, made.float_accuracy) == (None, None)
    errors = [rms_error(path, numbers.validation_rows) for path in (tmp_path / "student.onnx", made.path)]
    spread = numbers.validation_rows.labels.std()
    assert made.chosen.loss_points == pytest.approx(100 * (errors[1] - errors[0]) / spread, abs=1e-3)
    assert abs(made.chosen.loss_points) < 1
    assert "points of the labels' spread on 142 validation rows" in made.describe()


def rms_error(path: Path, rows: Rows) -> float:
    outputs = run_all_rows(open_session(path), read_onnx(path).contract, rows)
    return float(np.sqrt(np.mean((outputs - rows.labels) ** 2)))


def test_wrong_input(digits: Student, tmp_path: Path):
    with pytest.raises(ConfigError, match="unknown way to quantise 'int4': choose from dynamic, static, aware"):
        digits.quantized(tmp_path, "int4")
    unlabelled = replace(digits, validation_rows=replace(digits.validation_rows, labels=None))
    with pytest.raises(DataError, match="no labels"):
        unlabelled.quantized(tmp_path, "static")
