"""For Qualcomm's Hexagon NPU: fixed sizes, and quantisation by the rules that ONNX Runtime's QNN provider states.

Source: https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html#running-a-model-with-qnn-eps-htp-backend-python
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config, qnn_preprocess_model

from monograph.export.lowering.lowering import Lowering, LoweringJob
from monograph.export.lowering.masks import MARK, soften_masks
from monograph.export.lowering.quantise import RowReader, quantise, quiet_tools
from monograph.export.lowering.static import with_fixed_sizes

_UNSIGNED = {"quant_type": QuantType.QUInt8, "symmetric": False}


def _convert(job: LoweringJob, activations: QuantType) -> Path:
    static = soften_masks(with_fixed_sizes(job), job.folder / "softened.onnx")
    fused = job.folder / "fused.onnx"
    with quiet_tools():
        source = fused if qnn_preprocess_model(str(static), str(fused)) else static
        config = get_qnn_qdq_config(
            str(source),
            RowReader(job.rows, job.contract),
            activation_type=activations,
            weight_type=QuantType.QInt8,
            per_channel=True,
            init_overrides={name: [_UNSIGNED] for name in _layer_norm_scales(source)},
        )
    return quantise(source, config, job.folder / "quantised.onnx")


def _layer_norm_scales(path: Path) -> set[str]:
    """Return the scales of LayerNormalization: the NPU takes the node only with unsigned bytes, the tool gives 16 bits."""
    graph = onnx.load(path).graph
    initializers = {tensor.name for tensor in graph.initializer}
    return {node.input[1] for node in graph.node if node.op_type == "LayerNormalization"} & initializers


def _lowering(name: str, title: str, activations: QuantType) -> Lowering:
    settings = {"activations": activations.name, "weights": "QInt8", "per_channel": True, "calibration": "min-max", "masks": MARK}
    return Lowering(name, title, partial(_convert, activations=activations), settings)


QDQ_HTP = _lowering(
    "qdq-htp", "fixed sizes, 16-bit activations and 8-bit weights as Qualcomm's HTP takes them", QuantType.QUInt16
)
QDQ_HTP_INT8 = _lowering(
    "qdq-htp-int8", "fixed sizes, 8-bit activations and weights as Qualcomm's HTP takes them", QuantType.QUInt8
)
