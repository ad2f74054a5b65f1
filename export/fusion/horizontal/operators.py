"""How each operator is run once for all members.

An operator that is not in ``OPERATORS`` stays apart, as does one whose function raises ``CannotBatchError``.
"""

from __future__ import annotations

from collections.abc import Callable

from monograph.export.fusion.horizontal.axes import (
    concat,
    gather,
    layer_normalization,
    pad,
    reduce,
    slice_,
    softmax,
    split,
    transpose,
)
from monograph.export.fusion.horizontal.call import Call, Given
from monograph.export.fusion.horizontal.elementwise import dropout, elementwise, unary
from monograph.export.fusion.horizontal.products import conv, gemm, group_normalization, matmul, per_channel, resize
from monograph.export.fusion.horizontal.shapes import expand, flatten, reshape, squeeze, unsqueeze

Run = Callable[[Call], list[Given]]
_UNARY = [
    "Abs",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tanh",
    "ThresholdedRelu",
]
_BROADCASTING = [
    "Add",
    "And",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "Pow",
    "PRelu",
    "Sub",
    "Sum",
    "Where",
    "Xor",
]
_PER_CHANNEL = [
    "AveragePool",
    "BatchNormalization",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "InstanceNormalization",
    "LpPool",
    "MaxPool",
]
_REDUCTIONS = [
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
]

OPERATORS: dict[str, Run] = {
    **dict.fromkeys(_UNARY, unary),
    **dict.fromkeys(_BROADCASTING, elementwise),
    **dict.fromkeys(_PER_CHANNEL, per_channel),
    **dict.fromkeys(_REDUCTIONS, reduce),
    "Concat": concat,
    "Conv": conv,
    "ConvTranspose": conv,
    "Dropout": dropout,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "Gemm": gemm,
    "GroupNormalization": group_normalization,
    "LayerNormalization": layer_normalization,
    "LogSoftmax": softmax,
    "MatMul": matmul,
    "Pad": pad,
    "Reshape": reshape,
    "Resize": resize,
    "Slice": slice_,
    "Softmax": softmax,
    "Split": split,
    "Squeeze": squeeze,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
"""By operator of ONNX's own domain, at opset 13 or later."""
