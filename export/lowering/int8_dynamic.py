"""Eight-bit weights of matrix products and embeddings; activations get their range from each batch, so no rows calibrate.

What is given for a row therefore depends a little on the rows beside it. Convolutions stay in float: ONNX Runtime's ConvInteger
took 5 to 30 times as long as its float Conv for small students (x86-64 with AVX512-VNNI).
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxruntime.quantization import DynamicQuantConfig, QuantType

from monograph.errors import ExportError
from monograph.export.lowering.float_nodes import kept_nodes, name_nodes
from monograph.export.lowering.lowering import Lowering, LoweringJob
from monograph.export.lowering.quantise import QUANTISING, quantise
from monograph.export.lowering.static import fold_constants, in_memory

_OPERATORS = ("MatMul", "Gather")
"""A Gemm is made a MatMul first."""
_FROM_GEMM = "_MatMul"
"""What ONNX Runtime adds to the name of such a Gemm."""
_SETTINGS = {"per_channel": True, "operators": [*_OPERATORS]}


def _prepare(job: LoweringJob) -> Path:
    return name_nodes(fold_constants(in_memory(job.source), job.folder))


def _convert(job: LoweringJob) -> Path:
    source = job.prepared or _prepare(job)
    kept = kept_nodes(job, source)
    config = DynamicQuantConfig(
        weight_type=QuantType.QInt8,
        op_types_to_quantize=[*_OPERATORS],
        nodes_to_exclude=[*kept, *(f"{name}{_FROM_GEMM}" for name in kept)],
        per_channel=True,
        reduce_range=job.weights.reduces_range,
    )
    path = quantise(source, config, job.folder / "quantised.onnx")
    if not any(node.op_type in QUANTISING for node in onnx.load(path, load_external_data=False).graph.node):
        raise ExportError(
            f"{job.source.path.name} has no matrix product by weights and no embedding, which alone int8-dynamic quantises: "
            "take int8-static, which takes convolutions"
        )
    return path


INT8_DYNAMIC = Lowering(
    "int8-dynamic",
    "8-bit weights of matrix products and embeddings, activations quantised as they come; sizes stay free",
    _convert,
    _SETTINGS,
    fixes_sizes=False,
    prepare=_prepare,
    operators=(*_OPERATORS, "Gemm"),
    ranges_at_run_time=True,
    chooses_weights=True,
)
