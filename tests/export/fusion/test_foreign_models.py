"""Models that nobody here wrote: the backend tests of the installed onnx package.

``fuse(m, m)`` either computes what ``m`` does or is refused with one line; nothing else may come out of it. Members that
take and give arrays of one shape are fused in threes: all weight on one is that one, their order does not matter, and a
fusion of a fusion is one fusion.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from monograph.errors import InputError, MonographError
from monograph.export.fusion import Fused, fuse, plan_fusion
from monograph.models.contract import CONTRACT_KEY, Kind, random_inputs
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.runtime.session import open_session

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
FEWEST_CASES = 800
TRIPLE_COUNT = 40
UNPROVABLE = ("bernoulli", "random", "multinomial", "training_dropout", "gradient", "adam", "adagrad", "momentum")
"""They draw random numbers, or train."""


def fuse_with_itself(path: Path, folder: Path) -> bool:
    """True where the fusion equals the model, False where it was refused."""
    fused = _fused_or_refused(path, folder / "fused.onnx")
    if fused is None:
        return False
    inputs = random_inputs(fused.file.contract, 3, np.random.default_rng(0))
    (got,) = open_session(fused.file.path)(inputs).values()
    expected = open_session(path)(inputs)[fused.plan.members[0].output].astype(np.float64)
    assert got.shape == expected.shape
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(got[~finite], expected[~finite])
    scale = float(np.abs(expected[finite]).max(initial=0.0))
    assert float(np.abs(got[finite] - expected[finite]).max(initial=0.0)) <= max(1e-4, fused.plan.rounding) * scale
    fused.file.path.unlink()
    return True


def _fused_or_refused(path: Path, output: Path) -> Fused | None:
    try:
        file = read_onnx(path)
        return fuse(plan_fusion([file, file], names=("one", "two")), output)
    except InputError as refusal:
        message = str(refusal)
    assert "\n" not in message
    assert not output.exists()
    return None


def fused_count(paths: Sequence[Path], folder: Path) -> int:
    failures = []
    fused = 0
    for path in paths:
        try:
            fused += fuse_with_itself(path, folder)
        except Exception as error:  # noqa: BLE001 - all that went wrong is shown at once
            failures.append(f"{path.parent.name}: {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)
    return fused


@pytest.mark.parametrize("kind", ["pytorch-converted", "pytorch-operator", "simple"])
def test_models_of_old_exporters(kind: str, tmp_path: Path):
    """Opset 6 to 9 for the most part, IR version 3, initializers among the inputs, names that are numbers."""
    paths = sorted((DATA / kind).glob("*/model.onnx"))
    assert len(paths) > 20
    assert fused_count([path for path in paths if "gradient" not in str(path)], tmp_path) > len(paths) / 4


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", "inception_v1"])
def test_whole_networks(name: str, tmp_path: Path):
    assert fuse_with_itself(DATA / "light" / f"light_{name}.onnx", tmp_path)


@pytest.fixture(scope="module")
def cases() -> dict[str, onnx.ModelProto]:
    """All operators that onnx has; its test models are made on the fly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        return {case.name: case.model for case in collect_testcases(None)}


@pytest.mark.slow
def test_one_operator_each(cases: dict[str, onnx.ModelProto], tmp_path: Path):
    floats = [name for name in sorted(cases) if _is_float_in_and_out(cases[name]) and not _is_left_out(name)]
    paths = []
    for name in floats:
        path = tmp_path / name / "model.onnx"
        path.parent.mkdir()
        onnx.save(cases[name], path)
        paths.append(path)
    assert len(paths) > FEWEST_CASES
    assert fused_count(paths, tmp_path) > len(paths) * 0.7


def _is_float_in_and_out(model: onnx.ModelProto) -> bool:
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    graph = model.graph
    return bool(graph.input) and all(value.type.tensor_type.elem_type in floats for value in (graph.input[0], graph.output[0]))


def _is_left_out(name: str) -> bool:
    return any(word in name for word in UNPROVABLE)


class Trio:
    """Three members for one kind of input, what they compute, and what their fusions do, on the same rows."""

    def __init__(self, paths: Sequence[Path], folder: Path) -> None:
        self.files = [read_onnx(path) for path in paths]
        self.folder = folder
        self.count = 0

    def fuse(self, files: Sequence[OnnxFile], weights: Sequence[float]) -> Fused:
        self.count += 1
        names = [f"m{index}" for index in range(len(files))]
        return fuse(plan_fusion(files, names=names, weights=weights, combine="mean"), self.folder / f"{self.count}.onnx")

    def outputs(self, file: OnnxFile) -> np.ndarray:
        (inputs,) = random_inputs(replace(file.contract, inputs=file.contract.inputs[:1]), 1, np.random.default_rng(0)).values()
        session = open_session(file.path)
        return session({file.contract.inputs[0].name: inputs})[file.contract.output.name].astype(np.float64)

    def check(self) -> None:
        a, b, c = self.files
        ours = [self.outputs(file) for file in self.files]
        flat = self.outputs(self.fuse([a, b, c], (0.2, 0.3, 0.5)).file)
        assert_close(flat, 0.2 * ours[0] + 0.3 * ours[1] + 0.5 * ours[2], "the weighted mean")
        assert_close(self.outputs(self.fuse([a, b], (1, 0)).file), ours[0], "all weight on the first")
        assert_close(self.outputs(self.fuse([b, c, a], (0.3, 0.5, 0.2)).file), flat, "another order")
        nested = self.fuse([self.fuse([a, b], (0.4, 0.6)).file, c], (0.5, 0.5)).file
        assert_close(self.outputs(nested), flat, "a fusion of a fusion")


def assert_close(got: np.ndarray, expected: np.ndarray, what: str) -> None:
    assert got.shape == expected.shape, what
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(got[~finite], expected[~finite], what)
    scale = max(1e-30, float(np.abs(expected[finite]).max(initial=0.0)))
    np.testing.assert_allclose(got[finite] / scale, expected[finite] / scale, rtol=0, atol=1e-5, err_msg=what)


@pytest.mark.slow
def test_three_whole_networks(tmp_path: Path):
    """Each gives probabilities of 1,000 classes for a picture of 224 x 224."""
    paths = [DATA / "light" / f"light_{name}.onnx" for name in ("shufflenet", "inception_v1", "inception_v2")]
    trio = Trio([with_embedding(path, tmp_path / path.name) for path in paths], tmp_path / "out")
    trio.check()


def with_embedding(path: Path, target: Path) -> Path:
    """Give the model a contract by which its output is numbers only, so that they are mixed as they are."""
    file = read_onnx(path)
    proto = onnx.load(path)
    contract = replace(file.contract, kind=Kind.EMBEDDING, assumed=())
    onnx.helper.set_model_props(proto, {CONTRACT_KEY: contract.to_json()})
    onnx.save(proto, target)
    return target


@pytest.mark.slow
def test_operators_in_threes(cases: dict[str, onnx.ModelProto], tmp_path: Path):
    """Operators with one float input and an output of the same shape, a triple after the other through each group."""
    failures: list[str] = []
    done = 0
    for names in triples(cases):
        folder = tmp_path / names[0]
        folder.mkdir()
        for name in names:
            onnx.save(cases[name], folder / f"{name}.onnx")
        try:
            Trio([with_embedding(folder / f"{name}.onnx", folder / f"{name}-e.onnx") for name in names], folder / "out").check()
            done += 1
        except (AssertionError, MonographError) as error:
            failures.append(f"{', '.join(names)}: {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)
    assert done == TRIPLE_COUNT


def triples(cases: dict[str, onnx.ModelProto]) -> list[list[str]]:
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, model in sorted(cases.items()):
        if _is_float_in_and_out(model) and not _is_left_out(name) and len(model.graph.input) == len(model.graph.output) == 1:
            groups.setdefault(tuple(map(_signature, (model.graph.input[0], model.graph.output[0]))), []).append(name)
    found = [names[i : i + 3] for names in groups.values() for i in range(0, len(names) - 2, 3)]
    return found[:: max(1, len(found) // TRIPLE_COUNT)][:TRIPLE_COUNT]


def _signature(value: onnx.ValueInfoProto) -> tuple[object, ...]:
    tensor = value.type.tensor_type
    return (tensor.elem_type, *(dim.dim_value for dim in tensor.shape.dim))
