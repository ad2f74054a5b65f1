"""For Qualcomm's Hexagon NPU: fixed sizes, and quantisation by the rules that ONNX Runtime's QNN provider states.

Source: https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html#running-a-model-with-qnn-eps-htp-backend-python
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from onnxruntime.quantization import QuantType
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config, qnn_preprocess_model

from monograph.export.lowering.lowering import Lowering, LoweringJob
from monograph.export.lowering.masks import MARK, soften_masks
from monograph.export.lowering.quantise import RowReader, quantise, quiet_tools
from monograph.export.lowering.static import with_fixed_sizes


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
        )
    return quantise(source, config, job.folder / "quantised.onnx")


def _lowering(name: str, title: str, activations: QuantType) -> Lowering:
    settings = {"activations": activations.name, "weights": "QInt8", "per_channel": True, "calibration": "min-max", "masks": MARK}
    return Lowering(name, title, partial(_convert, activations=activations), settings)


QDQ_HTP = _lowering(
    "qdq-htp", "fixed sizes, 16-bit activations and 8-bit weights as Qualcomm's HTP takes them", QuantType.QUInt16
)
QDQ_HTP_INT8 = _lowering(
    "qdq-htp-int8", "fixed sizes, 8-bit activations and weights as Qualcomm's HTP takes them", QuantType.QUInt8
)
