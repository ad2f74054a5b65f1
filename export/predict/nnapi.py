"""What ONNX Runtime's NNAPI provider takes: the list in its package, and on top the limits that the provider checks.

Android API level 30 or later is assumed. NNAPI is deprecated since Android 15, and still there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

from monograph.export.predict.graph import Node
from monograph.export.predict.operator_lists import NNAPI, listed_operators, onnxruntime_version
from monograph.export.predict.rules import (
    FLOAT,
    INT8,
    INT32,
    INT64,
    UINT8,
    Rule,
    RuleBook,
    attribute,
    constant,
    constant_numbers,
    dtype,
    one_output,
    ones,
    output_dtype,
    rank,
    ranks_up_to,
    since,
    static_inputs,
    window_2d,
)

_SOURCE = "https://github.com/microsoft/onnxruntime/blob/{}/onnxruntime/core/providers/nnapi/nnapi_builtin/builders/{}"
_SOURCES = (
    "https://onnxruntime.ai/docs/execution-providers/NNAPI-ExecutionProvider.html",
    "onnxruntime/tools/mobile_helpers/nnapi_supported_ops.md",
    _SOURCE.format("194144dfd419cbee29d18e57bed734fc883ae833", "impl/base_op_builder.cc"),
    _SOURCE.format("3873a55bd346d2993e0c4cfa2df665e9e0f621cd", "impl/gemm_op_builder.cc"),
    _SOURCE.format("06ad719a1f253895c64e4ad14eb4e1184abee0d4", "impl/softmax_op_builder.cc"),
    _SOURCE.format("22eab88d834d0515a75fb10497dd98b9914b37fa", "impl/clip_op_builder.cc"),
    _SOURCE.format("28a4cfeeef64e3729d5fbd089f9555fd3a91a607", "impl/pool_op_builder.cc"),
    _SOURCE.format("0257ca874eff35a329a68cbcbd7c5b59c528599a", "impl/reduction_op_builder.cc"),
    _SOURCE.format("0bd42bd53f3c24a93d0621afcb3b791531d6e4c4", "impl/resize_op_builder.cc"),
    _SOURCE.format("03124e9f03068a6e3ca616df1ac6135214531490", "helper.cc"),
)
_LARGEST_RANK = 4
_CLIPS = ([0.0, 6.0], [-1.0, 1.0])


def _clip(node: Node) -> str | None:
    """NNAPI has RELU6 and RELU1, and no other bounds."""
    if node.since_version < 11:
        bounds: list[float] | None = [node.attributes.get("min", -math.inf), node.attributes.get("max", math.inf)]
    else:
        numbers = [constant_numbers(node.input(position)) for position in (1, 2)]
        bounds = None if None in numbers else [value[0] for value in numbers if value]
    return None if bounds in _CLIPS else f"clips to {bounds or 'what is not constant'}, it takes [0, 6] or [-1, 1]"


def _gemm(node: Node) -> str | None:
    """``A·B' + C``, or ``A·B + C`` with a constant B; C is a row of the result."""
    weight, bias = node.input(1), node.input(2)
    transposed = node.attributes.get("transB", 0) != 0
    if weight is None or weight.shape is None or (not transposed and not weight.is_constant):
        return "input 1 is not a constant, and transB is 0"
    if bias is None:
        return None
    columns = weight.shape[0 if transposed else 1]
    if not bias.shape or bias.shape[-1] != columns or any(size != 1 for size in bias.shape[:-1]):
        return f"the bias has shape {list(bias.shape or ())}, it takes one value per column"
    return None


def _matmul(node: Node) -> str | None:
    """Two matrices of which the second is constant, or two stacks of matrices with equal leading axes."""
    first, second = node.input(0), node.input(1)
    if first is None or second is None or first.shape is None or second.shape is None:
        return "the rank of a factor is not known"
    if len(first.shape) >= 3 and len(first.shape) == len(second.shape) and first.shape[:-2] == second.shape[:-2]:
        return None
    if len(first.shape) != 2 or len(second.shape) != 2:
        return f"ranks {len(first.shape)} and {len(second.shape)}, it takes two matrices, or stacks with equal leading axes"
    return constant(1)(node)


def _dilated_groups(node: Node) -> str | None:
    weight, group = node.input(1), node.attributes.get("group", 1)
    is_grouped = group != 1 and weight is not None and weight.shape is not None and weight.shape[1] != 1
    return ones("dilations")(node) if is_grouped else None


def _even_split(node: Node) -> str | None:
    data = node.input(0)
    shape = data.shape if data is not None else None
    size = shape[node.attributes.get("axis", 0)] if shape else None
    if size is None:
        return "the split axis is not known"
    parts = constant_numbers(node.input(1)) or node.attributes.get("split")
    is_even = len(set(parts)) == 1 if parts else size % len(node.outputs) == 0
    return None if is_even else "splits into unequal parts"


def _padding_amounts(node: Node) -> str | None:
    amounts = constant_numbers(node.input(1))
    if amounts is None:
        return "input 1 is not a constant"
    return "pads by a negative amount" if min(amounts, default=0) < 0 else None


def _resized(node: Node) -> str | None:
    mode = node.attributes.get("coordinate_transformation_mode", "half_pixel")
    if node.attributes.get("mode", "nearest") == "nearest":
        if mode != "asymmetric" or node.attributes.get("nearest_mode", "round_prefer_floor") != "floor":
            return "nearest with another mode than asymmetric and floor"
    elif mode not in ("half_pixel", "align_corners", "asymmetric"):
        return f"coordinate_transformation_mode is {mode}, it takes half_pixel, align_corners or asymmetric"
    given = [tensor for position in (2, 3) if (tensor := node.input(position)) is not None and tensor.shape != (0,)]
    return None if given and given[-1].is_constant else "neither scales nor sizes are constant"


def _slope(node: Node) -> str | None:
    slope = node.input(1)
    if slope is None or slope.shape is None:
        return "the shape of input 1 is not known"
    is_fit = math.prod(size or 0 for size in slope.shape) == 1 or (len(slope.shape) == 3 and slope.shape[1:] == (1, 1))
    return None if is_fit else f"the slope has shape {list(slope.shape)}, it takes [channels, 1, 1] or one value"


def _gather_indices(node: Node) -> str | None:
    """NNAPI counts in int32; int64 indices are turned into it where they are constant."""
    indices = node.input(1)
    if indices is None or indices.dtype == INT32 or indices.is_constant:
        return None
    return "the indices are int64 and not constant"


_POOL: tuple[Rule, ...] = (
    rank(0, 4), window_2d, one_output, ones("dilations"), attribute("ceil_mode", 0, default=0),
    attribute("storage_order", 0, default=0), attribute("count_include_pad", 0, default=0),
)  # fmt: skip
_CONV: tuple[Rule, ...] = (rank(0, 4), rank(1, 4), constant(1, 2), _dilated_groups)
_GEMM: tuple[Rule, ...] = (
    since(7), rank(0, 2), rank(1, 2), attribute("transA", 0, default=0), attribute("alpha", 1.0, default=1.0),
    attribute("beta", 1.0, default=1.0), _gemm,
)  # fmt: skip
_RESIZE: tuple[Rule, ...] = (
    since(11), rank(0, 4), attribute("mode", "linear", "nearest", default="nearest"), attribute("antialias", 0, default=0),
    attribute("exclude_outside", 0, default=0), attribute("axes", (), default=()),
    attribute("keep_aspect_ratio_policy", "stretch", default="stretch"), _resized,
)  # fmt: skip
_SCALES: tuple[Rule, ...] = (constant(1, 2),)
_RULES: Mapping[str, tuple[Rule, ...]] = {
    "Conv": _CONV,
    "Gemm": _GEMM,
    "MatMul": (_matmul,),
    "Clip": (_clip,),
    "Softmax": (rank(0, 2, 4),),
    "MaxPool": _POOL,
    "AveragePool": _POOL,
    "GlobalAveragePool": (rank(0, 4),),
    "GlobalMaxPool": (rank(0, 4),),
    "BatchNormalization": (constant(1, 2, 3, 4), one_output),
    "ReduceMean": (rank(0, 1, 2, 3, 4), constant(1)),
    "Reshape": (since(5), constant(1)),
    "Squeeze": (constant(1),),
    "Unsqueeze": (constant(1),),
    "Slice": (since(10), constant(1, 2, 3, 4)),
    "Split": (constant(1), _even_split),
    "Pad": (since(11), attribute("mode", "constant", default="constant"), _padding_amounts, constant(2, 3)),
    "Resize": _RESIZE,
    "DepthToSpace": (rank(0, 4), attribute("mode", "DCR", default="DCR")),
    "LRN": (rank(0, 4),),
    "PRelu": (constant(1), _slope),
    "QuantizeLinear": (*_SCALES, output_dtype(UINT8)),
    "DequantizeLinear": _SCALES,
    "QLinearConv": (rank(0, 4), rank(3, 4), constant(1, 2, 3, 4, 5, 6, 7, 8)),
    "QLinearMatMul": (constant(1, 2, 4, 5, 6, 7),),
    "com.microsoft:QLinearAdd": (constant(1, 2, 4, 5, 6, 7),),
    "com.microsoft:QLinearSigmoid": (constant(1, 2, 3, 4),),
    "com.microsoft:QLinearAveragePool": (rank(0, 4), constant(1, 2, 3, 4)),
}
_TYPES: Mapping[str, tuple[int, ...]] = {
    "Cast": (FLOAT, INT32),
    "Add": (FLOAT, INT32),
    "Sub": (FLOAT, INT32),
    "Mul": (FLOAT, INT32),
    "Div": (FLOAT, INT32),
    "Gather": (FLOAT, INT32, INT64),
    "DequantizeLinear": (UINT8,),
    "QLinearConv": (UINT8,),
    "QLinearMatMul": (UINT8,),
    "com.microsoft:QLinearAdd": (UINT8,),
    "com.microsoft:QLinearSigmoid": (UINT8,),
    "com.microsoft:QLinearAveragePool": (UINT8,),
    **dict.fromkeys(("MaxPool", "Concat", "Transpose", "Resize"), (FLOAT, UINT8)),
}
_EXTRA: Mapping[str, tuple[Rule, ...]] = {"Cast": (output_dtype(FLOAT, INT32),), "Gather": (_gather_indices,)}
_WEIGHTS = (dtype(0, UINT8), dtype(1, UINT8, INT8), output_dtype(UINT8))
_QUANTISED: Mapping[str, tuple[Rule, ...]] = {
    "Conv": (*_WEIGHTS, *_CONV),
    "Gemm": (*_WEIGHTS, *_GEMM),
    "MatMul": (*_WEIGHTS, rank(0, 2), rank(1, 2), constant(1)),
    "Add": (dtype(0, UINT8), dtype(1, UINT8), output_dtype(UINT8)),
    "Mul": (dtype(0, UINT8), dtype(1, UINT8), output_dtype(UINT8)),
    "AveragePool": (dtype(0, UINT8), *_POOL),
    "Resize": (dtype(0, UINT8), *_RESIZE),
    "Softmax": (dtype(0, UINT8), rank(0, 2, 4)),
    "Reshape": (dtype(0, UINT8), constant(1)),
    "Transpose": (dtype(0, UINT8),),
    "Concat": (dtype(0, UINT8),),
}


@cache
def nnapi() -> RuleBook:
    """Return the rule book of the installed ONNX Runtime's list."""
    operators = {
        operator: (dtype(0, *_TYPES.get(operator, (FLOAT,))), *_RULES.get(operator, ()), *_EXTRA.get(operator, ()))
        for operator in listed_operators(NNAPI)
    }
    return RuleBook(
        title=f"NNAPI, list of onnxruntime {onnxruntime_version()}, rules of its provider, Android API level 30 or later",
        provider="NnapiExecutionProvider",
        operators=operators,
        sources=_SOURCES,
        general=(static_inputs, ranks_up_to(_LARGEST_RANK)),
        quantised=_QUANTISED,
        not_alone=frozenset({"Reshape", "Flatten", "Identity"}),
        notes=("Android's own drivers may refuse what ONNX Runtime hands them; then NNAPI's slow reference runs it",),
    )
