"""Attention masks that quantise: where a masked place is marked by the most negative float, no step is left for the others.

min-max calibration spreads its steps from the least value to the largest. With -3.4e38 among them every score is zero. e^-100 is
zero beside any score that a softmax lets through, and leaves steps enough.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

_MASKED = -1e4
"""What is less is no score but a mark: half precision's own mark is -65,504."""
MARK = -100.0
_BOUNDS = frozenset({"Clip", "Max", "Min", "Pad"})
"""Operators in which the most negative float means no bound."""


def soften_masks(path: Path, out: Path) -> Path:
    """Write the model with every constant below -10,000 that marks a masked place set to -100; return ``out``."""
    model = onnx.load(path)
    bounds = {name for node in model.graph.node if node.op_type in _BOUNDS for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or tensor.name in bounds:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size and values.min() < _MASKED:
            tensor.CopyFrom(numpy_helper.from_array(np.where(values < _MASKED, np.float32(MARK), values), tensor.name))
    onnx.save(model, out)
    return out
