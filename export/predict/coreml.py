"""What ONNX Runtime's CoreML provider takes, in both of CoreML's formats.

The lists in ONNX Runtime's package, and on top the limits that the provider checks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

from monograph.errors import ConfigError
from monograph.export.predict.graph import Node
from monograph.export.predict.operator_lists import (
    COREML_MLPROGRAM,
    COREML_NEURALNETWORK,
    listed_operators,
    onnxruntime_version,
)
from monograph.export.predict.rules import (
    BOOL,
    FLOAT,
    FLOAT16,
    INT32,
    INT64,
    Rule,
    RuleBook,
    attribute,
    constant,
    constant_numbers,
    dtype,
    known_axes,
    one_output,
    ones,
    output_dtype,
    rank,
    ranks_up_to,
    since,
    window_2d,
)

MLPROGRAM, NEURALNETWORK = "MLProgram", "NeuralNetwork"
_SOURCE = "https://github.com/microsoft/onnxruntime/blob/{}/onnxruntime/core/providers/coreml/builders/{}"
_SOURCES = (
    "https://onnxruntime.ai/docs/execution-providers/CoreML-ExecutionProvider.html",
    "onnxruntime/tools/mobile_helpers/coreml_supported_*_ops.md",
    _SOURCE.format("023187ccd85973b127b6d373fc4c09f1acfb6925", "impl/base_op_builder.cc"),
    _SOURCE.format("01960e76929aebc09126ae0d6d1acab676d6caa9", "helper.cc"),
    _SOURCE.format("02d9b9eb9f2edfbac96f673bc75a3d54deca6b07", "impl/gemm_op_builder.cc"),
    _SOURCE.format("08dc5afad4811071290d4de6050f01eb05ba76bc", "impl/pool_op_builder.cc"),
    _SOURCE.format("0d112605d54a266463940435990e99a837d77a8e", "impl/reshape_op_builder.cc"),
    _SOURCE.format("0dccf6427b342a41de6f90d91c2352afee1c479f", "impl/slice_op_builder.cc"),
    _SOURCE.format("142b6dfc9033e9c52d34efbb523b2c2666e5507d", "impl/normalization_op_builder.cc"),
    _SOURCE.format("03b8ffc10b9a2712c29320a2d6ad04f770faae2f", "impl/cast_op_builder.cc"),
)
_LARGEST_RANK = 5
_LARGEST_SIZE = 16384
"""CoreML fails to load a model in which an axis is longer: https://github.com/apple/coremltools/issues/1003."""


def _sizes(node: Node) -> str | None:
    for position, tensor in enumerate(node.inputs):
        for axis, size in enumerate((tensor.shape or ()) if tensor is not None else ()):
            if size is not None and size > _LARGEST_SIZE:
                return f"axis {axis} of input {position} has size {size}, it takes up to {_LARGEST_SIZE}"
            if size == 0 and tensor is not None and not tensor.is_constant:
                return f"input {position} is empty"
    return None


def _static_data(node: Node) -> str | None:
    data = node.input(0)
    return (
        known_axes(0, *range(len(data.shape)))(node) if data is not None and data.shape is not None else "the shape is not known"
    )


def _bias_shape(node: Node) -> str | None:
    """One number, or a row of the result."""
    weight, bias = node.input(1), node.input(2)
    if bias is None or weight is None or weight.shape is None or bias.shape is None:
        return None
    columns = weight.shape[0 if node.attributes.get("transB", 0) else 1]
    fits = (), (1,), (columns,), (1, columns)
    return None if bias.shape in fits else f"the bias has shape {list(bias.shape)}, it takes one value or one per column"


def _new_shape(node: Node) -> str | None:
    sizes = constant_numbers(node.input(1))
    if not sizes:
        return "the new shape is not constant, or empty"
    if len(sizes) > _LARGEST_RANK:
        return f"the new shape has rank {len(sizes)}, it takes up to {_LARGEST_RANK}"
    if node.attributes.get("allowzero", 0) and 0 in sizes:
        return "the new shape has a 0 that means 0"
    return None


def _padded_axes(node: Node) -> str | None:
    amounts = constant_numbers(node.input(1))
    if amounts is None:
        return "input 1 is not a constant"
    half = len(amounts) // 2
    outer = [*amounts[: half - 2], *amounts[half : 2 * half - 2]] if half > 2 and node.input(3) is None else []
    return "pads other axes than the last two" if any(outer) else None


def _slope(node: Node) -> str | None:
    slope = node.input(1)
    if slope is None or slope.shape is None:
        return "the shape of input 1 is not known"
    is_fit = math.prod(size or 0 for size in slope.shape) == 1 or (len(slope.shape) == 3 and slope.shape[1:] == (1, 1))
    return None if is_fit else f"the slope has shape {list(slope.shape)}, it takes [channels, 1, 1] or one value"


def _indices_with_an_axis(node: Node) -> str | None:
    indices = node.input(1)
    return "the index is a scalar" if indices is not None and indices.shape == () else None


_POOL: tuple[Rule, ...] = (
    rank(0, 4), window_2d, one_output, ones("dilations"), attribute("ceil_mode", 0, default=0),
    attribute("storage_order", 0, default=0),
)  # fmt: skip
_GEMM: tuple[Rule, ...] = (
    attribute("transA", 0, default=0), attribute("alpha", 1.0, default=1.0), attribute("beta", 1.0, default=1.0),
    constant(1, 2), _bias_shape,
)  # fmt: skip
_BOTH: Mapping[str, tuple[Rule, ...]] = {
    "Gemm": _GEMM,
    "MaxPool": _POOL,
    "AveragePool": _POOL,
    "GlobalAveragePool": (rank(0, 4),),
    "GlobalMaxPool": (rank(0, 4),),
    "Softmax": (_static_data,),
    "Reshape": (since(5), _static_data, _new_shape),
    "Slice": (since(10), _static_data, constant(1, 2, 3, 4)),
    "Split": (constant(1),),
    "Squeeze": (constant(1),),
    "Unsqueeze": (constant(1),),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax"), (constant(1),)),
    "Pow": (dtype(1, FLOAT),),
    "Clip": (constant(1, 2),),
}
_NEURALNETWORK: Mapping[str, tuple[Rule, ...]] = {
    "Conv": (rank(0, 3, 4), rank(1, 3, 4), constant(1, 2)),
    "MatMul": (rank(0, 2), rank(1, 2), constant(1)),
    "BatchNormalization": (constant(1, 2, 3, 4), one_output),
    "DepthToSpace": (attribute("mode", "DCR", default="DCR"),),
    "Pad": (attribute("mode", "constant", default="constant"), constant(1, 2, 3), _padded_axes),
    "PRelu": (constant(1), _slope),
    "Gather": (_indices_with_an_axis,),
    "Shape": (attribute("start", 0, default=0), attribute("end", None, default=None)),
    "Resize": (
        rank(0, 4), attribute("coordinate_transformation_mode", "asymmetric", default="half_pixel"),
        attribute("mode", "linear", "nearest", default="nearest"), attribute("exclude_outside", 0, default=0), constant(2, 3),
    ),
}  # fmt: skip
_NORMALISATION: tuple[Rule, ...] = (one_output, attribute("stash_type", 1, default=1), constant(1, 2))
_MLPROGRAM: Mapping[str, tuple[Rule, ...]] = {
    "Conv": (rank(0, 3, 4), constant(2)),
    "ConvTranspose": (
        constant(1, 2), attribute("auto_pad", "NOTSET", "VALID", default="NOTSET"), attribute("output_shape", (), default=()),
    ),
    "GatherND": (attribute("batch_dims", 0, default=0),),
    "DepthToSpace": (attribute("mode", "DCR", "CRD", default="DCR"),),
    "GridSample": (rank(0, 4),),
    "Resize": (rank(0, 4), constant(2, 3)),
    **dict.fromkeys(("LayerNormalization", "GroupNormalization", "InstanceNormalization"), _NORMALISATION),
    "Cast": (output_dtype(FLOAT, FLOAT16, INT32, INT64, BOOL),),
    "Where": (dtype(1, FLOAT, FLOAT16),),
}  # fmt: skip
_TYPES: Mapping[str, tuple[int, ...]] = {
    "Cast": (FLOAT, FLOAT16, INT32, INT64, BOOL),
    "Shape": (FLOAT, FLOAT16, INT32, INT64),
    "Slice": (FLOAT, FLOAT16, INT64),
    "And": (BOOL,),
    "Where": (BOOL,),
}


@cache
def coreml(model_format: str = MLPROGRAM) -> RuleBook:
    """Return the rule book of one of CoreML's formats: ``MLProgram`` or ``NeuralNetwork``.

    Raises:
        ConfigError: it is neither.
    """
    if model_format not in (MLPROGRAM, NEURALNETWORK):
        raise ConfigError(f"ModelFormat={model_format}: choose from {MLPROGRAM}, {NEURALNETWORK}")
    is_program = model_format == MLPROGRAM
    own = _MLPROGRAM if is_program else _NEURALNETWORK
    floats = (FLOAT, FLOAT16) if is_program else (FLOAT,)
    operators = {
        operator: (dtype(0, *_TYPES.get(operator, floats)), *_BOTH.get(operator, ()), *own.get(operator, ()))
        for operator in listed_operators(COREML_MLPROGRAM if is_program else COREML_NEURALNETWORK)
    }
    systems = "macOS 12, iOS 15" if is_program else "macOS 10.15, iOS 13"
    return RuleBook(
        title=f"CoreML {model_format}, list of onnxruntime {onnxruntime_version()}, rules of its provider, {systems} or later",
        provider="CoreMLExecutionProvider",
        operators=operators,
        sources=_SOURCES,
        general=(ranks_up_to(_LARGEST_RANK), _sizes),
        notes=("CoreML decides itself what runs on the Neural Engine, the GPU or the processor",),
    )
