"""Eight bits for any provider that takes QDQ graphs: static quantisation with weights scaled by channel."""

from __future__ import annotations

from pathlib import Path

from onnxruntime.quantization import QuantType, StaticQuantConfig

from monograph.export.lowering.float_nodes import guard_float_nodes, kept_nodes, name_nodes
from monograph.export.lowering.lowering import Lowering, LoweringJob
from monograph.export.lowering.masks import MARK, soften_masks
from monograph.export.lowering.quantise import RowReader, quantise
from monograph.export.lowering.static import with_fixed_sizes

_SETTINGS = {
    "activations": "QUInt8",
    "per_channel": True,
    "calibration": "min-max",
    "masks": MARK,
}


def _prepare(job: LoweringJob) -> Path:
    return name_nodes(soften_masks(with_fixed_sizes(job), job.folder / "softened.onnx"))


def _convert(job: LoweringJob) -> Path:
    source = job.prepared or _prepare(job)
    config = StaticQuantConfig(
        RowReader(job.rows, job.contract),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=kept_nodes(job, source),
        per_channel=True,
        reduce_range=job.weights.reduces_range,
    )
    return guard_float_nodes(quantise(source, config, job.folder / "quantised.onnx", job.ranges), job.keep_float)


QDQ_INT8 = Lowering(
    "qdq-int8",
    "fixed sizes, 8-bit activations and weights",
    _convert,
    _SETTINGS,
    chooses_weights=True,
    prepare=_prepare,
)
