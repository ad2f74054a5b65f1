"""Tiny ONNX models written as text, and what to do with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from scipy.special import softmax

from monograph.export.fusion import Fused, fuse, plan_fusion
from monograph.models.contract import CONTRACT_KEY, Contract, Kind, random_inputs
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
BATCH_SIZES = (1, 2, 5, 16)


@pytest.fixture
def write_model(tmp_path: Path) -> Callable[..., OnnxFile]:
    """Write a model given as onnx.parser text (or as a proto), with ``arrays`` as its initializers, and read it back."""

    def write(
        name: str,
        text: str | onnx.ModelProto,
        arrays: Mapping[str, Array] | None = None,
        *,
        contract: Contract | None = None,
        external: str | None = None,
        checked: bool = True,
    ) -> OnnxFile:
        proto = onnx.parser.parse_model(text) if isinstance(text, str) else text
        proto.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in (arrays or {}).items())
        if contract is not None:
            onnx.helper.set_model_props(proto, {CONTRACT_KEY: contract.to_json()})
        path = tmp_path / f"{name}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        if external is None:
            onnx.save(proto, path)
        else:
            onnx.save(proto, path, save_as_external_data=True, location=external, size_threshold=0)
        if checked:
            onnx.checker.check_model(str(path), full_check=True)
        return read_onnx(path)

    return write


@pytest.fixture
def write_linear(write_model: Callable[..., OnnxFile]) -> Callable[..., OnnxFile]:
    """Write ``logits = x·w + b``: float32 [batch, features] to [batch, classes]."""

    def write(
        name: str,
        *,
        seed: int = 0,
        opset: int = 20,
        features: int = 4,
        classes: int = 3,
        batch: int | str = "batch",
        input_name: str = "x",
        output_name: str = "logits",
        contract: Contract | None = None,
    ) -> OnnxFile:
        rng = np.random.default_rng(seed)
        text = f"""<ir_version: 8, opset_import: ["": {opset}]>
        linear (float[{batch}, {features}] {input_name}) => (float[{batch}, {classes}] {output_name})
        {{ {output_name} = Gemm(w_in, w, b) }}""".replace("w_in", input_name)
        arrays = {
            "w": rng.standard_normal((features, classes), dtype=np.float32),
            "b": rng.standard_normal(classes, dtype=np.float32),
        }
        return write_model(name, text, arrays, contract=contract)

    return write


@pytest.fixture
def fuse_files(tmp_path: Path) -> Callable[..., Fused]:
    """Plan and build ``fused.onnx``; a refusal leaves nothing behind."""

    def build(files: Sequence[OnnxFile], *, rows: Any = None, tolerance: float = 1e-4, **choices: Any) -> Fused:
        folder = tmp_path / "out"
        folder.mkdir(exist_ok=True)
        before = sorted(folder.iterdir())
        try:
            return fuse(plan_fusion(files, **choices), folder / "fused.onnx", rows=rows, tolerance=tolerance)
        except BaseException:
            assert sorted(folder.iterdir()) == before
            raise

    return build


@pytest.fixture
def assert_weighted_sum() -> Callable[..., None]:
    """Assert that the fused file computes Σ αᵢOᵢ (of softmax(Oᵢ) for ``probs``) of its members, run apart, in numpy."""

    def check(fused: Fused, files: Sequence[OnnxFile], *, atol: float = 1e-5, batch_sizes: Sequence[int] = BATCH_SIZES) -> None:
        session = open_session(fused.file.path)
        plan = fused.plan
        contract = fused.file.contract
        fixed = contract.inputs[0].shape[0]
        for batch_size in (fixed,) if isinstance(fixed, int) else batch_sizes:
            inputs = random_inputs(contract, batch_size, np.random.default_rng(batch_size), sequence_length=9)
            expected: Array = np.zeros(())
            for file, member in zip(files, plan.members, strict=True):
                feed = {link.member_input: inputs[link.shared_input].astype(link.dtype) for link in member.input_links}
                output = open_session(file.path)(feed)[file.contract.output.name].astype(np.float64)
                if file.contract.class_names is not None and contract.class_names is not None:
                    output = output[..., [file.contract.class_names.index(name) for name in contract.class_names]]
                if plan.form == "probs" and file.contract.kind is Kind.LOGITS:
                    output = softmax(output, axis=-1)
                expected = expected + member.weight * output
            (got,) = session(inputs).values()
            assert got.dtype == np.float32
            assert got.shape == expected.shape
            np.testing.assert_allclose(got, expected, atol=atol * max(1.0, float(np.abs(expected).max())), rtol=0)

    return check
