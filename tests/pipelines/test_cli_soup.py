"""``fuse --soup`` as a person meets it."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import numpy_helper

from monograph.export.trace import export_torch
from monograph.models.contract import CONTRACT_KEY, Contract, Kind, TensorSpec
from monograph.models.data.load import load_rows
from monograph.models.data.split import stratified_split
from monograph.models.students import conv
from monograph.models.torch_model import TorchModel
from monograph.pipelines.cli import _exit_code
from monograph.pipelines.training import TrainingSettings, train
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = _exit_code(["fuse", *(str(argument) for argument in arguments)])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


def weight_of(path: Path) -> Array:
    (tensor,) = onnx.load(str(path)).graph.initializer
    return numpy_helper.to_array(tensor)


@pytest.fixture
def world(tmp_path: Path) -> Mapping[str, Path]:
    """Linear classifiers: two near each other, one elsewhere; and rows labelled as the first two together see them."""
    paths: dict[str, Path] = {}
    start = np.random.default_rng(0).standard_normal((4, 3))
    turned = {"a": 0.0, "b": 0.1, "far": None}
    for seed, (name, step) in enumerate(turned.items()):
        noise = np.random.default_rng(1 + seed).standard_normal((4, 3))
        weight = -start if step is None else start + step * noise
        proto = onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["": 20]>
            m (float[batch, 4] x) => (float[batch, 3] logits) { logits = MatMul(x, w) }"""
        )
        proto.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), "w"))
        outputs = (TensorSpec("logits", "float32", ("batch", 3)),)
        contract = Contract((TensorSpec("x", "float32", ("batch", 4)),), outputs, Kind.LOGITS, ("p", "q", "r"))
        onnx.helper.set_model_props(proto, {CONTRACT_KEY: contract.to_json()})
        paths[name] = tmp_path / f"{name}.onnx"
        onnx.save(proto, paths[name])
    x = np.random.default_rng(9).standard_normal((200, 4), dtype=np.float32)
    paths["rows"] = tmp_path / "rows.npz"
    noise = np.random.default_rng(10).gumbel(size=(200, 3))
    np.savez(paths["rows"], x=x, y=(x @ (weight_of(paths["a"]) + weight_of(paths["b"])) + noise).argmax(1))
    return paths


def test_uniform(run: Run, world: Mapping[str, Path], tmp_path: Path):
    code, out, _ = run(world["a"], world["b"], "--soup", "-o", tmp_path / "soup.onnx")
    assert code == 0
    assert "soup of 2 of 2 members" in out
    assert "equal at batch 1, 2, 5, 16" in out
    expected = (weight_of(world["a"]).astype(np.float64) + weight_of(world["b"])) / 2
    np.testing.assert_array_equal(weight_of(tmp_path / "soup.onnx"), expected.astype(np.float32))


def test_weights_and_measured_barrier(run: Run, world: Mapping[str, Path], tmp_path: Path):
    arguments = ("--soup", "--weights", "3,1", "--normalize", "--data", world["rows"], "--json")
    code, out, _ = run(world["a"], world["b"], "-o", tmp_path / "soup.onnx", *arguments)
    assert code == 0
    plan = json.loads(out)["plan"]
    assert [member["weight"] for member in plan["members"]] == [0.75, 0.25]
    assert plan["connection"]["lines"][0]["row_count"] == 200


def test_greedy(run: Run, world: Mapping[str, Path], tmp_path: Path):
    arguments = ("--soup", "--fit", world["rows"], "--max-barrier", "100", "--json")
    code, out, _ = run(world["far"], world["a"], world["b"], "-o", tmp_path / "soup.onnx", *arguments)
    assert code == 0
    fit = json.loads(out)["plan"]["fit"]
    assert fit["weights"][0] == 0
    assert fit["accuracy"] >= max(fit["member_accuracy"])
    assert fit["steps"][-1] == fit["steps"][-1] | {"member": "far", "added": False}


def test_labels_are_numbered_as_the_member_does_that_names_its_classes(run: Run, world: Mapping[str, Path], tmp_path: Path):
    for name, class_names in (("a", None), ("b", ("r", "p", "q"))):
        proto = onnx.load(str(world[name]))
        contract = replace(Contract.from_json(proto.metadata_props[0].value), class_names=class_names)
        onnx.helper.set_model_props(proto, {CONTRACT_KEY: contract.to_json()})
        onnx.save(proto, world[name])
    with np.load(world["rows"]) as rows:
        lines = [",".join([*map(str, x), "rpq"[y]]) for x, y in zip(rows["x"], rows["y"], strict=True)]
        logits = rows["x"] @ weight_of(world["a"])
        expected = float((logits.argmax(1) == rows["y"]).mean())
    table = tmp_path / "rows.csv"
    table.write_text("\n".join(["k,l,m,n,label", *lines]))
    code, out, _ = run(world["a"], world["b"], "--soup", "--fit", table, "--dry-run", "--json")
    assert code == 0
    plan = json.loads(out)["plan"]
    assert plan["fit"]["member_accuracy"][0] == pytest.approx(expected)
    assert plan["contract"]["class_names"] == ["r", "p", "q"]


def test_dry_run_writes_nothing(run: Run, world: Mapping[str, Path], tmp_path: Path):
    before = sorted(tmp_path.iterdir())
    code, out, _ = run(world["a"], world["b"], "--soup", "--fit", world["rows"], "--dry-run")
    assert code == 0
    assert "greedy soup fitted on 200 rows" in out
    assert "barrier 0.00 points" in out
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        (("a", "far"), [], "a and far do not seem to share an initialisation: the cosine of their weights is -1.000"),
        (("a", "far"), ["--data", "rows"], "a and far do not share an initialisation: on the line between their weights"),
        (("a", "b"), ["--fit", "rows", "--weights", "1,0"], "--weights and --fit exclude each other"),
        (("a", "b"), ["--combine", "probs"], "--combine does not go with --soup, which mixes weights, not outputs"),
        (("a", "b"), ["--cascade"], "--cascade does not go with --soup"),
        (("a", "b"), ["--weights", "0.5"], "1 weights (0.5) for 2 members"),
        (("a", "b"), ["--max-barrier", "-1"], "--max-barrier -1 is no number of points"),
        (("a",), [], "a fusion needs two or more members"),
    ],
)
def test_refused(run: Run, world: Mapping[str, Path], tmp_path: Path, members: tuple[str, ...], options: list[str], message: str):
    before = sorted(tmp_path.iterdir())
    files = [world[member] for member in members]
    given = [str(world[option]) if option in world else option for option in options]
    code, out, err = run(*files, "--soup", "-o", tmp_path / "soup.onnx", *given)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert sorted(tmp_path.iterdir()) == before


def test_a_barrier_without_a_soup(run: Run, world: Mapping[str, Path], tmp_path: Path):
    code, _, err = run(world["a"], world["b"], "-o", tmp_path / "fused.onnx", "--max-barrier", "5")
    assert code == 2
    assert "--max-barrier speaks of a soup: add --soup" in err


def _keep_batch_norm(module: torch.nn.Module, contract: Contract, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (torch.zeros(2, 1, 28, 28),),
            path,
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_axes={"pixels": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=18,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
        )
    proto = onnx.load(str(path))
    onnx.helper.set_model_props(proto, {CONTRACT_KEY: contract.to_json()})
    onnx.save(proto, path)


@pytest.fixture(scope="module")
def convs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convolutional classifiers of MNIST: two fine-tuned from one checkpoint, one of another initialisation.

    ``NAME.onnx`` is what ``monograph export`` writes, where BatchNorm is folded; ``NAME_bn.onnx`` keeps it.
    """
    folder = tmp_path_factory.mktemp("convs")
    torch.manual_seed(0)
    base, contract = conv(width=8)
    rows = load_rows("py:monograph.models.data.digits:mnist", contract)
    contract = contract.with_class_names(rows.class_names or ())
    sizes = {"base": 600, "left": 400, "right": 400, "validation": 600, "test": 1000}
    parts = stratified_split(rows, sizes, seed=0)
    for name in ("validation", "test"):
        parts[name].save(folder / f"{name}.npz")

    def fit(module: torch.nn.Module, part: str, epochs: int, learning_rate: float, seed: int) -> torch.nn.Module:
        settings = TrainingSettings(epochs=epochs, learning_rate=learning_rate, seed=seed)
        train(TorchModel(module, contract, part), parts[part], parts["validation"], settings)
        return module

    fit(base, "base", 4, 1e-2, 0)
    torch.manual_seed(1)
    modules = {
        "left": fit(copy.deepcopy(base), "left", 3, 3e-3, 1),
        "right": fit(copy.deepcopy(base), "right", 3, 3e-3, 2),
        "stranger": fit(conv(width=8)[0], "base", 4, 1e-2, 3),
    }
    for name, module in modules.items():
        export_torch(TorchModel(module, contract, name), folder / f"{name}.onnx", dynamo=False)
        _keep_batch_norm(module, contract, folder / f"{name}_bn.onnx")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "_bn"])
def test_trained_networks(run: Run, convs: Path, tmp_path: Path, kind: str):
    left, right, stranger = (convs / f"{name}{kind}.onnx" for name in ("left", "right", "stranger"))
    validation = convs / "validation.npz"
    soup = tmp_path / "soup.onnx"
    code, out, _ = run(left, right, "--soup", "--data", validation, "-o", soup, "--json")
    assert code == 0
    result = json.loads(out)
    assert result["plan"]["batch_norm_count"] == (3 if kind else 0)
    said = "statistics of 3 BatchNorm nodes are recomputed on 600 rows" if kind else "no BatchNorm statistics to recompute"
    assert any(said in note for note in result["plan"]["notes"])
    with np.load(convs / "test.npz") as test:
        pixels, labels = test["pixels"], test["y"]

    def accuracy(path: Path) -> float:
        return float((open_session(path)({"pixels": pixels})["logits"].argmax(1) == labels).mean())

    assert accuracy(soup) > (accuracy(left) + accuracy(right)) / 2

    code, out, err = run(left, stranger, "--soup", "--data", validation, "-o", tmp_path / "none.onnx")
    assert (code, out) == (2, "")
    assert "do not share an initialisation: on the line between their weights accuracy falls" in err
    code, out, err = run(left, stranger, "--soup", "-o", tmp_path / "none.onnx")
    assert (code, out) == (2, "")
    assert "do not seem to share an initialisation" in err
    assert not (tmp_path / "none.onnx").exists()

    code, out, _ = run(stranger, left, right, "--soup", "--fit", validation, "--max-barrier", "100", "-o", soup, "--json")
    assert code == 0
    weights = json.loads(out)["plan"]["fit"]["weights"]
    assert weights in ([0, 0.5, 0.5], [0, 1, 0], [0, 0, 1], [1, 0, 0])
    assert json.loads(out)["plan"]["fit"]["gain"]["best_member"].endswith(kind)
