"""Half precision: weights and arithmetic in float16, inputs and outputs as they were."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
from onnxruntime.transformers.float16 import convert_float_to_float16

from monograph.export.lowering.lowering import Lowering, LoweringJob
from monograph.export.lowering.quantise import quiet_tools
from monograph.export.lowering.static import in_memory

TOLERANCE = 2e-2
"""Of the reference's scale. float16 has 11 bits, one part in 2,048 a step, and errors add up over the layers."""


def _convert(job: LoweringJob) -> Path:
    with quiet_tools():
        half = convert_float_to_float16(ir.to_proto(in_memory(job.source)), keep_io_types=True)
    path = job.folder / "half.onnx"
    onnx.save(half, path)
    return path


FP16 = Lowering(
    "fp16", "weights and arithmetic in half precision", _convert, {"keep_io_types": True}, fixes_sizes=False, tolerance=TOLERANCE
)
