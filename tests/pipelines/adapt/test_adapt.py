"""The verb from end to end, on small models and few rows: what it writes, what it refuses, and how it goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from monograph.errors import ConfigError, ContractError, DataError
from monograph.export.trace import export_torch
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import load_graph, read_onnx
from monograph.models.students import conv
from monograph.models.torch_model import TorchModel
from monograph.pipelines.adapt import adapt_model
from monograph.pipelines.cli import _exit_code
from monograph.pipelines.data import DataSpec
from monograph.runtime.session import open_session

Run = Callable[..., tuple[int, str, str]]
CONV = "py:monograph.models.students:conv"
EIGHT = {"input_shape": [1, 8, 8], "width": 4}
MLP, FOUR = "py:monograph.models.students:mlp", {"input_shape": [4], "width": 8}
TOWERS = "py:monograph.models.students:two_tower"
QUICK: dict[str, Any] = {"epochs": 4}


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = _exit_code([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def digit_file(digits: Rows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    digits.take(slice(0, 400)).save(path)
    return path


@pytest.fixture(scope="module")
def onnx_trunk(pretrained: TorchModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The convolution as a file, and the tensor that its last layer takes."""
    path = tmp_path_factory.mktemp("trunk") / "trunk.onnx"
    export_torch(pretrained, path)
    last = [node for node in load_graph(path).graph if node.op_type == "Gemm"][-1]
    return path, str(last.inputs[0].name)


def table(path: Path, labels: np.ndarray, seed: int = 0, **more: Any) -> Path:
    """Four features that say something about the labels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(len(labels), 4)).astype(np.float32)
    x[:, : labels.reshape(len(labels), -1).shape[1]] += labels.reshape(len(labels), -1)
    np.savez(path, x=x, y=labels, **more)
    return path


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels)))


def adapt(data: Path | DataSpec, out: Path, model: str = CONV, **changes: Any):
    arguments = EIGHT if model == CONV else FOUR if model == MLP else None
    known: dict[str, Any] = {"arguments": arguments, "on": (), "settings": QUICK}
    return adapt_model(model, str(data) if isinstance(data, Path) else data, out, **known | changes)


@pytest.fixture(scope="module")
def out(digit_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the network was adapted to digits by its head."""
    folder = tmp_path_factory.mktemp("run") / "out"
    adapt(digit_file, folder, settings={"epochs": 12, "learning_rate": 0.02}, on=("cpu",))
    return folder


class TestClassification:
    def test_what_is_written(self, out: Path):
        assert sorted(path.name for path in out.iterdir()) == [
            "adaptation.json",
            "adapted.onnx",
            "adapted.safetensors",
            "report.html",
            "splits.json",
        ]
        record = json.loads((out / "adaptation.json").read_text())
        assert record["row_counts"] == {"train": 240, "validation": 80, "test": 80}
        assert {one["name"] for one in record["baselines"]} == {
            "majority class",
            "15-nearest neighbours on frozen features",
            "logistic regression on frozen features",
        }
        assert record["gain"]["low"] <= record["gain"]["estimate"] <= record["gain"]["high"]
        assert record["beats_baselines"] == (record["gain"]["low"] > 0)
        assert record["measurements"]
        page = (out / "report.html").read_text(encoding="utf-8")
        assert "Median latency" in page
        assert "each class" in page

    def test_the_contract_and_the_weights(self, out: Path, digit_file: Path):
        contract = read_onnx(out / "adapted.onnx").contract
        assert (contract.kind, contract.class_names) == (Kind.LOGITS, tuple("0123456789"))
        weights = load_file(out / "adapted.safetensors")
        rows = Rows.load(digit_file).take(slice(0, 5))
        given = open_session(out / "adapted.onnx")(rows.inputs)["logits"]
        module = conv((1, 8, 8), width=4)[0].eval()
        own = {name.removeprefix("trunk.module."): tensor for name, tensor in weights.items() if name.startswith("trunk.module.")}
        last = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)][-1]
        module.load_state_dict(own | {f"{last}.{part}": weights[f"head.{part}"] for part in ("weight", "bias")})
        with torch.inference_mode():
            np.testing.assert_allclose(given, module(torch.from_numpy(rows.inputs["pixels"])).numpy(), atol=1e-4)

    def test_the_temperature_does_not_harm(self, out: Path, digit_file: Path):
        record, splits = (json.loads((out / name).read_text()) for name in ("adaptation.json", "splits.json"))
        rows = Rows.load(digit_file).take(np.array(splits["parts"]["validation"]["rows"]))
        logits = open_session(out / "adapted.onnx")(rows.inputs)["logits"]
        assert record["temperature"] > 0
        assert nll(logits, rows.required_labels()) <= nll(logits * record["temperature"], rows.required_labels()) + 1e-6

    def test_a_finished_folder_is_refused(self, out: Path, digit_file: Path):
        with pytest.raises(ConfigError, match="out holds a finished adaptation: give another folder"):
            adapt(digit_file, out)


def test_a_hugging_face_model_that_does_the_task_keeps_its_head_and_its_zero_shot(bert_folder: Path, tmp_path: Path):
    rng = np.random.default_rng(0)
    lines, names = [], ("negative", "neutral", "positive")
    for number in range(60):
        words = rng.choice(["film", "a", "very", "real", "not"], rng.integers(3, 8))
        text = " ".join([*words, ("bad", "film", "good")[number % 3], *["a"] * (number // 30), *["very"] * (number % 30 // 3)])
        lines.append(json.dumps({"text": text, "label": names[number % 3]}))
    data = tmp_path / "texts.jsonl"
    data.write_text("\n".join(lines))
    adapted = adapt(data, tmp_path / "out", f"hf:{bert_folder}", allow=["duplicates"])
    assert "zero-shot" in {one.name for one in adapted.baselines}
    assert "bert did this task before and keeps its head" in adapted.notes
    assert sorted(adapted.class_names or ()) == sorted(names)
    assert read_onnx(adapted.onnx).tokenizer_json is not None


def test_several_labels(tmp_path: Path):
    data = table(tmp_path / "d.npz", np.random.default_rng(1).integers(0, 2, (200, 2)))
    adapted = adapt(data, tmp_path / "out", MLP)
    assert (adapted.task, adapted.quality) == ("multi-label", "share of labels that are right")
    file = read_onnx(adapted.onnx)
    assert (file.contract.kind, file.contract.class_names) == (Kind.SCORES, ("label 0", "label 1"))
    with np.load(data) as arrays:
        scores = open_session(adapted.onnx)({file.contract.inputs[0].name: 20 * arrays["x"]})["scores"]
    assert scores.shape == (200, 2)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert adapted.temperature is None


def test_numbers(tmp_path: Path):
    data = table(tmp_path / "d.npz", np.random.default_rng(1).normal(size=200))
    adapted = adapt(data, tmp_path / "out", MLP, method="wise-ft", settings={"epochs": 2}, shifted=str(data))
    assert (adapted.task, adapted.quality) == ("regression", "negative squared error")
    assert {one.name for one in adapted.baselines} >= {"mean", "ridge regression on frozen features"}
    assert read_onnx(adapted.onnx).contract.kind is Kind.REGRESSION
    assert not [note for note in adapted.notes if "% on shifted rows" in note], "an error is no share"
    assert len(adapted.mixes) == 11


def test_clicks(tmp_path: Path):
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 20, 300), rng.integers(0, 10, 300)
    pairs = np.unique(np.stack([left, right], 1), axis=0)
    clicked = (rng.random(len(pairs)) < 0.1 + 0.8 * (pairs[:, 1] < 5)).astype(np.int64)
    np.savez(tmp_path / "d.npz", left=pairs[:, 0], right=pairs[:, 1], y=clicked)
    arguments = {"left_size": 20, "right_size": 10, "width": 4}
    with pytest.raises(ConfigError, match="adapt it by --method full"):
        adapt(tmp_path / "d.npz", tmp_path / "out", TOWERS, arguments=arguments, task="click")
    assert not (tmp_path / "out").exists()
    adapted = adapt(tmp_path / "d.npz", tmp_path / "out", TOWERS, arguments=arguments, task="click", method="full")
    swapped = {tuple(pair) for pair in pairs.tolist()} & {(right, left) for left, right in pairs.tolist()}
    assert len(swapped) > 10, "3 with 5 is not 5 with 3, and no duplicate of it"
    assert {one.name for one in adapted.baselines} == {"shares of the labels", "mean by left", "mean by right"}
    assert "keeps its head" in adapted.notes[-1]
    assert adapted.best_baseline == "mean by right"
    file = read_onnx(adapted.onnx)
    given = open_session(adapted.onnx)({"left": pairs[:, 0], "right": pairs[:, 1]})["scores"]
    assert (file.contract.kind, given.shape) == (Kind.SCORES, (len(pairs), 1))
    assert ((given > 0) & (given < 1)).all()
    assert adapted.verdict().startswith(("better than", "NOT shown to be better than mean by right"))


class TestOnnxTrunk:
    def test_a_new_head_over_an_inner_tensor(self, onnx_trunk: tuple[Path, str], digit_file: Path, tmp_path: Path):
        path, tensor = onnx_trunk
        adapted = adapt(digit_file, tmp_path / "out", str(path), features=tensor, settings={"epochs": 8, "learning_rate": 0.02})
        assert adapted.weights is None
        assert read_onnx(adapted.onnx).contract.class_names == tuple("0123456789")
        accuracy = adapted.model.accuracy
        assert accuracy is not None
        assert accuracy.top1.estimate > 0.25
        assert len(adapted.baselines) == 3

    def test_its_output_is_no_embedding(self, onnx_trunk: tuple[Path, str], digit_file: Path, tmp_path: Path):
        with pytest.raises(ConfigError, match="gives logits, and a new head needs an embedding: name a tensor by --features"):
            adapt(digit_file, tmp_path / "out", str(onnx_trunk[0]))
        with pytest.raises(ContractError, match="computes no tensor 'nothing'"):
            adapt(digit_file, tmp_path / "out", str(onnx_trunk[0]), features="nothing")
        assert not (tmp_path / "out").exists()

    def test_its_trunk_cannot_be_trained(self, onnx_trunk: tuple[Path, str], digit_file: Path, tmp_path: Path):
        with pytest.raises(ConfigError, match="is an ONNX file, whose trunk stays as it is: adapt it by --method head"):
            adapt(digit_file, tmp_path / "out", str(onnx_trunk[0]), features=onnx_trunk[1], method="full")
        assert not (tmp_path / "out").exists()

    def test_a_network_has_no_named_tensors(self, digit_file: Path, tmp_path: Path):
        with pytest.raises(ConfigError, match="--features names a tensor of an ONNX file"):
            adapt(digit_file, tmp_path / "out", features="x")

    def test_it_has_its_zero_shot_too(self, tmp_path: Path):
        torch.manual_seed(0)
        output = TensorSpec("logits", "float32", ("batch", 2))
        contract = Contract((TensorSpec("x", "float32", ("batch", 4)),), (output,), Kind.LOGITS, ("a", "b"))
        module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        path = tmp_path / "trunk.onnx"
        export_torch(TorchModel(module, contract, "m"), path)
        tensor = next(node.outputs[0].name for node in load_graph(path).graph if node.op_type == "Relu")
        data = table(tmp_path / "d.npz", np.arange(100) % 2, class_names=np.array(["b", "a"]))
        adapted = adapt(data, tmp_path / "out", str(path), features=tensor)
        assert "zero-shot" in {one.name for one in adapted.baselines}


class TestRows:
    def test_a_class_that_no_training_row_has(self, run: Run, tmp_path: Path):
        data = table(tmp_path / "d.npz", np.arange(90) % 3, class_names=np.array(["a", "b", "c", "d"]))
        line = ("adapt", MLP, "--data", data, "-o", tmp_path / "new" / "out", "--argument", "input_shape=[4]", "--on", "")
        code, _, errors = run(*line)
        assert code == 2
        assert "no training row is of 1 of 4 classes ('d')" in errors.splitlines()[-1]
        assert "--allow missing-class" in errors
        assert not (tmp_path / "new").exists(), "nothing half-written"
        code, out, errors = run(*line, "--allow", "missing-class", "--epochs", "2", "--json")
        assert code == 0, errors
        told = json.loads(out)
        assert told["class_names"] == ["a", "b", "c", "d"]
        assert any("no training row is of 1 of 4 classes" in note for note in told["notes"])

    def test_duplicates_across_parts(self, tmp_path: Path):
        with np.load(table(tmp_path / "one.npz", np.arange(60) % 2)) as arrays:
            np.savez(tmp_path / "d.npz", x=np.tile(arrays["x"], (2, 1)), y=np.tile(arrays["y"], 2))
        with pytest.raises(DataError, match=r"train rows stand among the .* rows too.*--allow duplicates"):
            adapt(tmp_path / "d.npz", tmp_path / "out", MLP)
        assert not (tmp_path / "out").exists(), "mended data may go to the same folder"
        adapted = adapt(tmp_path / "d.npz", tmp_path / "out", MLP, allow=["duplicates"])
        assert sum(adapted.row_counts.values()) < 120
        assert any("were taken out of the earlier parts" in note for note in adapted.notes)

    def test_other_labels_in_the_test_rows(self, tmp_path: Path):
        data = table(tmp_path / "d.npz", np.arange(60) % 2)
        other = table(tmp_path / "t.npz", np.arange(30) % 3, seed=1)
        with pytest.raises(DataError, match=r"t.npz: labels run from 0 to 2, and the training rows have the classes 0 to 1"):
            adapt(data, tmp_path / "out", MLP, test=str(other))
        assert not (tmp_path / "out").exists()

    def test_an_option_that_the_task_has_no_use_for(self, tmp_path: Path):
        data = table(tmp_path / "d.npz", np.random.default_rng(1).normal(size=60))
        with pytest.raises(ConfigError, match="--class-weights is for classes, and the task is regression"):
            adapt(data, tmp_path / "out", MLP, class_weights=True)
        with pytest.raises(ConfigError, match="--label-smoothing is for classes, and the task is regression"):
            adapt(data, tmp_path / "out", MLP, settings={"label_smoothing": 0.1})
        assert not (tmp_path / "out").exists()


class TestResume:
    def test_it_goes_on_as_if_nothing_had_been(self, digit_file: Path, tmp_path: Path):
        settings = {"epochs": 3, "batch_size": 64}
        whole = adapt(digit_file, tmp_path / "whole", method="lp-ft", settings=settings)

        def interrupted(done: int, total: int, detail: str) -> None:
            if "full, loss" in detail and done > total / 2:
                raise KeyboardInterrupt

        out = tmp_path / "out"
        with pytest.raises(KeyboardInterrupt):
            adapt(digit_file, out, method="lp-ft", settings=settings, on_progress=interrupted)
        assert not list(out.glob("*.onnx"))
        assert not list(out.glob(".monograph-*"))
        splits = (out / "splits.json").read_bytes()
        with pytest.raises(ConfigError, match="holds an adaptation that was stopped: go on with it by --resume"):
            adapt(digit_file, out, method="lp-ft", settings=settings)
        with pytest.raises(ConfigError, match="method was 'lp-ft' and is 'full'"):
            adapt(digit_file, out, method="full", settings=settings, resume=True)
        other = tmp_path / "other.npz"
        Rows.load(digit_file).take(slice(0, 390)).save(other)
        with pytest.raises(DataError, match=r"splits.json divides other rows"):
            adapt(other, out, method="lp-ft", settings=settings, resume=True)
        assert (out / "checkpoints").exists()
        resumed = adapt(digit_file, out, method="lp-ft", settings=settings, resume=True)
        assert (out / "splits.json").read_bytes() == splits
        assert whole.weights is not None
        assert resumed.weights is not None
        expected, given = load_file(whole.weights), load_file(resumed.weights)
        assert all(torch.equal(tensor, given[name]) for name, tensor in expected.items())
        assert resumed.stages == whole.stages
        assert not (out / "checkpoints").exists()

    def test_interrupted_before_anything_was_learned(self, digit_file: Path, tmp_path: Path):
        def interrupted(done: int, total: int, detail: str) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            adapt(digit_file, tmp_path / "out", on_progress=interrupted)
        adapt(digit_file, tmp_path / "out", resume=True)
        assert (tmp_path / "out" / "adapted.onnx").exists()

    def test_nothing_to_resume(self, digit_file: Path, tmp_path: Path):
        with pytest.raises(ConfigError, match="holds no adaptation to resume: leave --resume out"):
            adapt(digit_file, tmp_path / "out", resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, "unknown method 'magic': choose from head, .*wise-ft, auto"),
        ({"options": {"rank": 2}}, "method head has no option 'rank'; it has none"),
        ({"method": "lora", "options": {"layers": 2}}, "method lora has no option 'layers'; it has alpha, dropout, rank"),
        ({"method": "last-layers", "options": {"layers": 99}}, "option layers=99: conv has 6 layers below its head"),
        ({"settings": {"speed": 2}}, "a training has no setting 'speed'; it has batch_size, "),
        ({"settings": {"select": "loss"}}, "a training has no setting 'select'"),
        ({"settings": {"label_smoothing": 2}}, "setting label_smoothing is 2: give a share from 0 to below 1"),
        ({"settings": {"learning_rate": -1.0}}, "setting learning_rate is -1.0: give a number above 0"),
        ({"settings": {"epochs": "three"}}, "setting epochs is 'three': give 1 or more"),
        ({"settings": {"schedule": "zigzag"}}, "setting schedule is 'zigzag': choose from one-cycle, cosine, constant"),
        ({"settings": {"mixed_precision": "int4"}}, "setting mixed_precision is 'int4': choose from no, fp16, bf16"),
        ({"budget": "5m"}, "--budget is for --method auto, and the method is head"),
        ({"on": ("toaster",)}, "toaster"),
        ({"task": "clustering"}, "unknown task 'clustering'"),
        ({"allow": ["everything"]}, "unknown problem 'everything' to allow"),
    ],
)
def test_what_is_refused(digit_file: Path, tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        adapt(digit_file, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_pictures_alone_are_flipped(tmp_path: Path):
    from monograph.pipelines.training import Augmentation

    data = table(tmp_path / "d.npz", np.arange(60) % 2)
    with pytest.raises(ContractError, match="only pictures"):
        adapt(data, tmp_path / "out", MLP, augmentation=Augmentation(("flip",)))


def test_a_folder_that_was_there_keeps_what_was_in_it(digit_file: Path, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError):
        adapt(digit_file, tmp_path, method="last-layers", options={"layers": 99})
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_command_line(run: Run, digit_file: Path, tmp_path: Path):
    line = ("adapt", CONV, "--data", digit_file, "--argument", "input_shape=[1,8,8]", "--argument", "width=4", "--on", "")
    code, out, errors = run(*line, "-o", tmp_path / "out", "--epochs", "2", "--method", "head", "--class-weights")
    assert code == 0, errors
    assert "majority class" in out
    assert "report: " in out
    assert "better than" in out
    code, out, errors = run(*line, "-o", tmp_path / "out")
    assert code == 2
    assert "holds a finished adaptation" in errors.splitlines()[-1]
    code, _, errors = run(*line, "-o", tmp_path / "other", "--option", "rank=2")
    assert code == 2
    assert "method head has no option 'rank'" in errors.splitlines()[-1]


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_auto_on_the_verb(digit_file: Path, tmp_path: Path):
    pytest.importorskip("optuna", reason="optuna is not installed: pip install 'monograph[adapt]'")
    adapted = adapt(digit_file, tmp_path / "out", method="auto", budget="1s", settings={"epochs": 2})
    assert adapted.method == "head" or adapted.trials[0].state == "finished"
    assert {one.state for one in adapted.trials[1:]} <= {"finished", "stopped", "out of time"}
    assert len(adapted.trials) == 8
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "what was tried" in page
    shutil.rmtree(tmp_path / "out")
