"""Eight bits that lose no more than is allowed: the layer that breaks stays in float, and other rows prove it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from monograph.errors import ConfigError, DataError, ExportError, InputError
from monograph.export.lowering import LOWERING_KEY
from monograph.export.lowering.plan import MixedPrecisionPlan
from monograph.export.trace import export_torch
from monograph.models.contract import Kind
from monograph.models.data.digits import optical_digits
from monograph.models.data.load import load_rows
from monograph.models.onnx_file import read_onnx
from monograph.models.seen import read_seen
from monograph.models.students import conv, mlp
from monograph.models.torch_model import TorchModel
from monograph.pipelines.explain import explain_model
from monograph.pipelines.lower import lower_model, plan_lowering
from monograph.pipelines.report.lowering_page import render_lowering_page
from monograph.pipelines.verify import verify_model
from monograph.runtime.runner import run_all_rows
from monograph.runtime.session import open_session

DIGITS = "py:monograph.models.data.digits:optical_digits"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of digits, trained on rows of which most are quantised, searched on and proven on, too."""
    folder = tmp_path_factory.mktemp("digits")
    torch.manual_seed(0)
    module, contract = conv((1, 8, 8), width=8, dropout=0.0)
    rows = load_rows(DIGITS, contract)
    pixels, labels = torch.from_numpy(rows.inputs["pixels"]), torch.from_numpy(rows.labels)
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(6):
        for batch in torch.randperm(1500).split(64):
            loss = torch.nn.functional.cross_entropy(module(pixels[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    module.eval()
    export_torch(TorchModel(module, contract, "digits"), folder / "digits.onnx")
    return folder / "digits.onnx"


@pytest.fixture(scope="module")
def planted(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The same, but that a layer has a weight of 1,000 on a channel that is always zero; return its node as well.

    In 8 bits all other weights of that layer round to zero.
    """
    model = onnx.load(digits)
    first, second = [node for node in model.graph.node if node.op_type == "Conv"][:2]
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def change(name: str, part: object, value: float) -> None:
        array = numpy_helper.to_array(tensors[name]).copy()
        array[part] = value
        tensors[name].CopyFrom(numpy_helper.from_array(array, name))

    change(first.input[2], 0, -20.0)
    change(second.input[1], (slice(None), 0), 1000.0)
    path = tmp_path_factory.mktemp("planted") / "planted.onnx"
    onnx.save(model, path)
    return path, second.name


@pytest.fixture(scope="module")
def mixed(planted: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MixedPrecisionPlan]:
    path = tmp_path_factory.mktemp("mixed") / "mixed.onnx"
    plans: list[MixedPrecisionPlan] = []
    lowered = lower_model(planted[0], path, to="int8-static", calibration=DIGITS, max_drop=6.0, on_plan=plans.append)
    assert lowered.plan == plans[0]
    return path, plans[0]


def test_the_planted_layer_alone_stays_in_float(planted: tuple[Path, str], mixed: tuple[Path, MixedPrecisionPlan]):
    path, plan = mixed
    assert [layer.name for layer in plan.kept] == [planted[1]]
    assert plan.whole.points > 20
    assert max(plan.layers, key=lambda layer: layer.output_error or 0).name == planted[1]
    assert max(plan.layers, key=lambda layer: layer.local_error or 0).name == planted[1]
    weights = {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer if len(tensor.dims) == 4}
    assert sorted(weights.values()).count(onnx.TensorProto.FLOAT) == 1
    assert len(weights) == 3
    assert floats_when_loaded(path) == [planted[1]]
    assert verify_model(path).passed
    assert [file.name for file in path.parent.iterdir()] == [path.name], "what the search remembered is gone"


def floats_when_loaded(path: Path) -> list[str]:
    """Return the convolutions that ONNX Runtime itself leaves in float; it quantises some weights when it loads a graph."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimised"))
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    ort.InferenceSession(str(path), options)
    names = [node.name for node in onnx.load(path.with_suffix(".optimised")).graph.node if node.op_type == "Conv"]
    path.with_suffix(".optimised").unlink()
    weights = {node.name: node.input[1] for node in onnx.load(path).graph.node if node.op_type == "Conv"}
    return [name for name in names if not weights[name].endswith("_DequantizeLinear_Output")]


def test_the_promise_is_proven_on_rows_that_nothing_was_chosen_by(
    planted: tuple[Path, str], mixed: tuple[Path, MixedPrecisionPlan]
):
    path, plan = mixed
    file, source = read_onnx(path), read_onnx(planted[0])
    rows = load_rows(DIGITS, file.contract)
    assert plan.calibration_rows + plan.search_rows + plan.proof_rows == len(rows)
    drawn = np.random.default_rng(1).permutation(len(rows))
    proof = rows.take(drawn[plan.calibration_rows + plan.search_rows :])
    before, after = (
        run_all_rows(open_session(one.path), one.contract, proof).argmax(1) == proof.labels for one in (source, file)
    )
    record = json.loads(file.metadata[LOWERING_KEY])
    loss = record["promise"]["loss"]
    assert (loss["row_count"], loss["lost"], loss["gained"]) == (len(proof), (before & ~after).sum(), (after & ~before).sum())
    assert loss["points"] <= loss["bound_points"] <= 6.0
    assert read_seen(file).uses == {
        "calibration": plan.calibration_rows, "proof of agreement": plan.proof_rows, "search of precision": plan.search_rows
    }  # fmt: skip
    assert (record["plan"]["evaluations"], record["plan"]["rows_evaluated"]) == (plan.evaluations, plan.rows_evaluated)


def test_an_interrupted_search_goes_on(planted: tuple[Path, str], mixed: tuple[Path, MixedPrecisionPlan], tmp_path: Path):
    def interrupt(completed: int, total: int, detail: str) -> None:
        if completed == 3:
            raise KeyboardInterrupt

    choices = {"to": "int8-static", "calibration": DIGITS, "max_drop": 6.0}
    with pytest.raises(KeyboardInterrupt):
        lower_model(planted[0], tmp_path / "m.onnx", **choices, on_progress=interrupt)
    assert [file.name for file in tmp_path.iterdir()] == [".m.onnx.search"]
    lowered = lower_model(planted[0], tmp_path / "m.onnx", **choices)
    assert lowered.plan == replace(mixed[1], reused=3)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_what_holds_in_8_bits_is_not_searched(digits: Path, tmp_path: Path):
    plan = plan_lowering(digits, tmp_path / "m.onnx", to="qdq-int8", calibration=DIGITS, min_agreement=0.8)
    assert (plan.kept, plan.evaluations, plan.reused) == ((), 1, 0)
    assert all(layer.local_error is not None for layer in plan.layers)
    assert list(tmp_path.iterdir()) == []


def test_no_layer_left_to_quantise(planted: tuple[Path, str], tmp_path: Path):
    """int8-dynamic takes the head alone, and 0.6 points leave no room for it on a thousand rows."""
    model = onnx.load(planted[0])
    head = next(node for node in model.graph.node if node.op_type == "Gemm")
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == head.input[1])
    array = numpy_helper.to_array(weights).copy()
    array[:, 0] = 3000.0  # beside which all others round to zero, on a channel that the layer before is about to lose
    weights.CopyFrom(numpy_helper.from_array(array, weights.name))
    last = [node for node in model.graph.node if node.op_type == "Conv"][-1]
    for tensor, value in ((last.input[1], 0.0), (last.input[2], -1.0)):
        found = next(each for each in model.graph.initializer if each.name == tensor)
        array = numpy_helper.to_array(found).copy()
        array[0] = value
        found.CopyFrom(numpy_helper.from_array(array, tensor))
    onnx.save(model, tmp_path / "head.onnx")
    with pytest.raises(ExportError, match="every one of its 1 layers would have to stay in float"):
        lower_model(tmp_path / "head.onnx", tmp_path / "m.onnx", to="int8-dynamic", calibration=DIGITS, max_drop=0.6)
    assert [file.name for file in tmp_path.iterdir()] == ["head.onnx"]


def test_a_model_without_classes(tmp_path: Path):
    from sklearn.datasets import load_diabetes

    table = load_diabetes()
    features = (table.data / table.data.std(0)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=features, y=((table.target - table.target.mean()) / table.target.std())[:, None])
    torch.manual_seed(0)
    module, contract = mlp((10,), 1, width=16, dropout=0.0)
    export_torch(TorchModel(module, replace(contract, kind=Kind.REGRESSION), "numbers"), tmp_path / "numbers.onnx")
    choices = {"to": "int8-static", "calibration": str(tmp_path / "rows.npz")}
    lowered = lower_model(tmp_path / "numbers.onnx", tmp_path / "m.onnx", **choices, max_drop=5.0)
    assert lowered.promise is not None
    assert lowered.promise.loss.lost is None
    assert lowered.promise.loss.bound_points <= 5
    with pytest.raises(ConfigError, match=r"numbers\.onnx has no classes"):
        lower_model(tmp_path / "numbers.onnx", tmp_path / "n.onnx", **choices, min_agreement=0.9)


def test_which_layer_broke_it(planted: tuple[Path, str], tmp_path: Path):
    from monograph.export.lowering import AgreementBound

    anything = AgreementBound(top1=0.0, cosine=-1.0)
    lower_model(planted[0], tmp_path / "broken.onnx", to="int8-static", calibration=DIGITS, bound=anything)
    explained = explain_model(planted[0], tmp_path / "broken.onnx", data=DIGITS, has_timing=False)
    broke = explained.explanation.broke
    assert broke.node == planted[1]
    assert broke.local.relative_error > 0.3
    before = [layer for layer in explained.explanation.layers if layer.accumulated.relative_error < 0.3]
    assert before, "what comes before it is near the source"
    page = render_lowering_page(explained)
    assert f"The error is largest at {planted[1]}." in page


@pytest.mark.parametrize(("to", "largest"), [("fp16", 0.01), ("static-batch", 1e-5), ("int8-dynamic", 0.2)])
def test_any_lowered_model_is_compared(digits: Path, tmp_path: Path, to: str, largest: float):
    lower_model(digits, tmp_path / "l.onnx", to=to, calibration=DIGITS)
    explanation = explain_model(digits, tmp_path / "l.onnx", data=DIGITS, has_timing=False).explanation
    assert len(explanation.layers) >= 8
    assert explanation.layers[-1].tensor == "logits"
    assert max(layer.accumulated.relative_error for layer in explanation.layers) <= largest


@pytest.mark.slow
def test_both_are_timed_in_turns(digits: Path, tmp_path: Path):
    lower_model(digits, tmp_path / "l.onnx", to="int8-static", calibration=DIGITS)
    explained = explain_model(digits, tmp_path / "l.onnx", data=DIGITS)
    assert explained.speed is not None
    assert len(explained.speed.ratio.p50_s) == 6
    assert "QLinearConv" in {one.operator for one in explained.speed.operators if one.lowered_s > one.source_s}
    assert "Times" in render_lowering_page(explained)


def test_files_that_share_no_tensor(digits: Path, tmp_path: Path):
    torch.manual_seed(1)
    module, contract = mlp((1, 8, 8), width=4)
    export_torch(TorchModel(module, contract, "other"), tmp_path / "other.onnx")
    model = onnx.load(tmp_path / "other.onnx")
    for node in model.graph.node:
        node.output[:] = [name if name == "logits" else f"{name}_x" for name in node.output]
        node.input[:] = [f"{name}_x" if any(name == n.removesuffix("_x") for m in model.graph.node for n in m.output) else name
                         for name in node.input]  # fmt: skip
    del model.graph.value_info[:]
    for node in model.graph.node:
        if "logits" in node.output:
            node.output[0] = "numbers"
    model.graph.output[0].name = "numbers"
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ConfigError, match=r"other\.onnx and digits\.onnx share no tensor"):
        explain_model(digits, tmp_path / "other.onnx", has_timing=False)


def unlabelled(tmp_path: Path) -> str:
    np.savez(tmp_path / "rows.npz", x=optical_digits()["x"])
    return str(tmp_path / "rows.npz")


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"to": "int8-static", "max_drop": 1.0, "min_agreement": 0.9}, ConfigError, "give one of them"),
        ({"to": "int8-static", "max_drop": -1.0}, ConfigError, "--max-drop -1"),
        ({"to": "int8-static", "max_drop": float("nan")}, ConfigError, "--max-drop nan"),
        ({"to": "int8-static", "min_agreement": 1.0}, ConfigError, "--min-agreement 1"),
        ({"to": "fp16", "max_drop": 1.0}, ConfigError, "fp16 is not quantised"),
        ({"to": "ort", "max_drop": 1.0}, ConfigError, "ort is not quantised"),
        ({"to": "qdq-htp", "max_drop": 1.0}, ConfigError, "qdq-htp cannot leave layers in float"),
        ({"to": "int8-static", "max_drop": 1.0, "calibration": None}, ConfigError, "give --calibration DATA"),
        ({"to": "int8-static", "max_drop": 0.1}, DataError, "it takes 3,983 in all, 2,703 of them to prove"),
    ],
)
def test_wrong_input(digits: Path, tmp_path: Path, choices: dict[str, object], error: type[InputError], message: str):
    with pytest.raises(error, match=message):
        lower_model(digits, tmp_path / "m.onnx", **{"calibration": DIGITS, **choices})
    assert list(tmp_path.iterdir()) == []


def test_rows_without_labels(digits: Path, tmp_path: Path):
    with pytest.raises(DataError, match="no labels"):
        lower_model(digits, tmp_path / "m.onnx", to="int8-static", calibration=unlabelled(tmp_path), max_drop=1.0)
    assert not (tmp_path / "m.onnx").exists()


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from monograph.__main__ import main; sys.argv[0] = 'monograph'; main()"
    return subprocess.run([sys.executable, "-c", code, "lower", *arguments], capture_output=True, text=True, check=False)


def test_the_command_plans_then_writes_then_explains(planted: tuple[Path, str], tmp_path: Path):
    path, out = str(planted[0]), str(tmp_path / "m.onnx")
    done = command(
        path, "-o", out, "--to", "int8-static", "--calibration", DIGITS, "--max-drop", "6", "--explain", "--no-timing",
        "--report", str(tmp_path / "page.html"), "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [layer["name"] for layer in told["lowered"]["plan"]["layers"] if layer["stays_float"]] == [planted[1]]
    assert told["explained"]["explanation"]["broke"]["node"] != planted[1]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "page.html"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --to"),
        (["--explain"], "no such file"),
        (["--dry-run", "--to", "int8-static"], "give --max-drop or --min-agreement"),
        (["--report", "r.html", "--to", "int8-static"], "--report is the page of --explain"),
        (["--max-drop", "1", "--explain"], "give --to int8-static"),
    ],
)
def test_options_that_contradict_each_other(digits: Path, tmp_path: Path, arguments: list[str], message: str):
    done = command(str(digits), "-o", str(tmp_path / "m.onnx"), *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
