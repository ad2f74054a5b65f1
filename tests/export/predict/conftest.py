"""One-node graphs for rules, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from monograph.export.predict import RuleBook
from monograph.export.predict.coreml import coreml
from monograph.export.predict.graph import show
from monograph.export.predict.nnapi import nnapi
from monograph.export.predict.predict import judge
from monograph.export.predict.xnnpack import XNNPACK

Array = npt.NDArray[Any]
BOOKS: Mapping[str, Callable[[], RuleBook]] = {
    "xnnpack": lambda: XNNPACK,
    "nnapi": nnapi,
    "mlprogram": coreml,
    "neuralnetwork": lambda: coreml("NeuralNetwork"),
}


@pytest.fixture
def write_text(tmp_path: Path) -> Callable[..., Path]:
    """Write a graph given as ``(inputs) => (outputs) { nodes }``, with ``arrays`` as its initializers."""

    def write(text: str, arrays: Mapping[str, Array] | None = None, opset: int = 18) -> Path:
        proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> g {text}')
        proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in (arrays or {}).items())
        path = tmp_path / "model.onnx"
        onnx.save(proto, path)
        onnx.checker.check_model(str(path), full_check=True)
        return path

    return write


@pytest.fixture
def reason(write_text: Callable[..., Path]) -> Callable[..., str | None]:
    """Say why a provider refuses the node that gives ``y``, or None where it takes it."""

    def ask(book: str, text: str, arrays: Mapping[str, Array] | None = None, opset: int = 18) -> str | None:
        nodes = show(write_text(text, arrays, opset), {}).nodes
        reasons = judge(nodes, BOOKS[book]())
        return reasons[next(node.name for node in nodes if "y" in {output.name for output in node.outputs})]

    return ask
