from collections.abc import Callable

import onnx
import onnx.parser
import pytest

LINEAR = """
<ir_version: 10, opset_import: ["": 18]>
linear (float[batch, 4] x) => (float[batch, 3] logits)
<float[4, 3] W = {0.5, -1.0, 2.0, 1.5, 0.25, -0.75, 3.0, 1.0, -2.0, 0.1, 0.2, 0.3}, float[3] B = {0.5, -0.5, 1.0}>
{
    product = MatMul(x, W)
    logits = Add(product, B)
}
"""


@pytest.fixture
def linear() -> onnx.ModelProto:
    """Logits ``x·W + B``: float32 [batch x 4] to [batch x 3], without a contract."""
    return onnx.parser.parse_model(LINEAR)


@pytest.fixture
def parse() -> Callable[[str], onnx.ModelProto]:
    """Read the text of one graph as a model of opset 18."""

    def parse_graph(text: str) -> onnx.ModelProto:
        return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]> {text}')

    return parse_graph
