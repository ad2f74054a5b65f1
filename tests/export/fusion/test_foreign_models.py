"""Models that nobody here wrote: the backend tests of the installed onnx package.

``fuse(m, m)`` either computes what ``m`` does or is refused with one line; nothing else may come out of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from monograph.errors import InputError
from monograph.export.fusion import Fused, fuse, plan_fusion
from monograph.models.contract import random_inputs
from monograph.models.onnx_file import read_onnx
from monograph.runtime.session import open_session

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
SAMPLE_SIZE = 60
UNPROVABLE = ("bernoulli", "random", "multinomial", "training_dropout", "gradient", "adam", "adagrad", "momentum")
"""They draw random numbers, or train."""
UNFUSABLE = ("with_past_and_present",)
"""ONNX Runtime's Attention wants the cache as an output where it is an input; a fusion has one output."""


def fuse_with_itself(path: Path, folder: Path) -> bool:
    """True where the fusion equals the model, False where it was refused."""
    fused = _fused_or_refused(path, folder / "fused.onnx")
    if fused is None:
        return False
    inputs = random_inputs(fused.file.contract, 3, np.random.default_rng(0))
    (got,) = open_session(fused.file.path, spinning=False)(inputs).values()
    expected = open_session(path, spinning=False)(inputs)[fused.plan.members[0].output].astype(np.float64)
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


@pytest.mark.slow
def test_one_operator_each(tmp_path: Path):
    """A sample over all operators that onnx has; its test models are made on the fly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = {case.name: case.model for case in collect_testcases(None)}
    floats = [name for name in sorted(cases) if _is_float_in_and_out(cases[name]) and not _is_left_out(name)]
    paths = []
    for name in floats[:: len(floats) // SAMPLE_SIZE][:SAMPLE_SIZE]:
        path = tmp_path / name / "model.onnx"
        path.parent.mkdir()
        onnx.save(cases[name], path)
        paths.append(path)
    assert len(paths) == SAMPLE_SIZE
    assert fused_count(paths, tmp_path) > SAMPLE_SIZE * 0.7


def _is_float_in_and_out(model: onnx.ModelProto) -> bool:
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    graph = model.graph
    return bool(graph.input) and all(value.type.tensor_type.elem_type in floats for value in (graph.input[0], graph.output[0]))


def _is_left_out(name: str) -> bool:
    return any(word in name for word in (*UNPROVABLE, *UNFUSABLE))
