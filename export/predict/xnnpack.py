"""What ONNX Runtime's XNNPACK provider takes. No tool predicts it: the rules are read off the provider's own checks."""

from __future__ import annotations

import math
from collections.abc import Mapping

from monograph.export.predict.graph import Node
from monograph.export.predict.rules import (
    FLOAT,
    INT8,
    UINT8,
    Rule,
    RuleBook,
    attribute,
    constant,
    constant_numbers,
    dtype,
    known_axes,
    one_output,
    rank,
    since,
    window_2d,
)

_SOURCE = "https://github.com/microsoft/onnxruntime/blob/{}/onnxruntime/core/providers/xnnpack/{}"
_SOURCES = (
    "https://onnxruntime.ai/docs/execution-providers/Xnnpack-ExecutionProvider.html",
    _SOURCE.format("6479e4bc84441b9266a2ba076d69bf4033d25dbe", "detail/node_support_checker.cc"),
    _SOURCE.format("1b38b5828ef20f49ec4a388570205c1e28092200", "xnnpack_execution_provider.cc"),
    _SOURCE.format("05d54b38707547500f47a513f9e3dc03467df71b", "nn/conv_base.cc"),
    _SOURCE.format("01674dbe6112ff0122b81f2995c1ee8b270790ed", "nn/average_pool.cc"),
    _SOURCE.format("240f69d73eff51b51099808af3f0e6e001681b24", "math/softmax.cc"),
    _SOURCE.format("05d54b38707547500f47a513f9e3dc03467df71b", "math/gemm.cc"),
    _SOURCE.format("06dd1219274bb9bb8a9c5cfb2a92c19c518339e4", "math/matmul.cc"),
    _SOURCE.format("032935e6b58aed06d2ffb131f33d23ce65d2bbf6", "tensor/resize.cc"),
)
_PADDINGS = ("NOTSET", "VALID", "SAME_UPPER")
_MODES = ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel")
_SCALE_TOLERANCE = 1e-4


def _padding(node: Node) -> str | None:
    """Explicit pads go before ``auto_pad``; of the latter, SAME_LOWER has no counterpart."""
    return None if "pads" in node.attributes else attribute("auto_pad", *_PADDINGS, default="NOTSET")(node)


def _larger_than_1x1(node: Node) -> str | None:
    return "a window of 1 x 1" if math.prod(node.attributes.get("kernel_shape", (2,))) == 1 else None


def _gemm_bias(node: Node) -> str | None:
    """The bias is one row of the result, or one number of it."""
    bias, weight = node.input(2), node.input(1)
    if bias is None:
        return "has no bias, it takes a constant one"
    if bias.shape is None or weight is None or weight.shape is None or len(weight.shape) != 2:
        return "the shape of input 1 or 2 is not known"
    if not 1 <= len(bias.shape) <= 2 or bias.shape[0] not in weight.shape:
        return f"the bias has shape {list(bias.shape)}, it takes one value per column"
    return None


def _matmul_ranks(node: Node) -> str | None:
    """A ``[m x k]`` or ``[b x m x k]`` by a matrix ``[k x n]``, or the like with one axis less."""
    first, second = (tensor.shape if (tensor := node.input(position)) is not None else None for position in (0, 1))
    if first is None or second is None:
        return "the rank of a factor is not known"
    if len(second) > 2 or len(first) not in (len(second), len(second) + 1):
        return f"ranks {len(first)} and {len(second)}, it takes up to 3 by a matrix"
    return None


def _last_axis(node: Node) -> str | None:
    data = node.input(0)
    if data is None or not data.shape:
        return "the rank of input 0 is not known"
    last = len(data.shape) - 1
    axis = node.attributes.get("axis", -1 if node.since_version >= 13 else 1)
    # Before version 13 all axes from this one on are flattened into the last.
    if node.since_version >= 13 and axis not in (-1, last):
        return f"over axis {axis}, it takes the last"
    return known_axes(0, last)(node)


def _resized_axes(node: Node) -> str | None:
    """Bilinear over the last two axes of four, by sizes or scales that are constant."""
    data, scales, sizes = node.input(0), node.input(2), node.input(3)
    factors, wanted = constant_numbers(scales), constant_numbers(sizes)
    if not factors and not wanted:
        return "neither scales nor sizes are constant"
    shape = data.shape if data is not None else None
    if shape is None:
        return "the shape of input 0 is not known"
    if wanted and wanted[1] != shape[1]:
        return "resizes the channels"
    if factors and factors[1] != 1:
        return "resizes the channels"
    for factor, size in zip((factors or ())[2:], shape[2:], strict=False):
        if factor < 1 and (size is None or (size * factor) % 1 or (1 / factor) % 1):
            return f"shrinks {size} by {factor}, which does not divide it"
    return None


def _one_pixel_output(node: Node) -> str | None:
    """The two half-pixel modes differ where an axis of the result has one element."""
    shape = node.outputs[0].shape or (None,) * 4
    if node.attributes.get("coordinate_transformation_mode") == "pytorch_half_pixel" and any(
        (size or 1) <= 1 for size in shape[2:]
    ):
        return "pytorch_half_pixel with a result that may be one pixel wide"
    return None


def _same_types(node: Node) -> str | None:
    """Data, weight and result are all int8, or all uint8."""
    types = {node.outputs[0].dtype, *(tensor.dtype for tensor in node.inputs[:2] if tensor is not None)}
    return None if len(types) == 1 and types <= {INT8, UINT8} else "data, weight and result are not of one 8-bit type"


def _softmax_scale(node: Node) -> str | None:
    """The result has the scale 1/256 and the zero point 0; the rules of quantised nodes see both as attributes."""
    scale, zero = node.attributes.get("output_scale"), node.attributes.get("output_zero_point")
    if scale is None or abs(scale - 1 / 256) > _SCALE_TOLERANCE or zero:
        return f"the result has scale {scale} and zero point {zero}, it takes 1/256 and 0"
    return None


_CONV: tuple[Rule, ...] = (
    rank(0, 4), known_axes(0, 1, 2, 3), constant(1), rank(1, 4), constant(2), _padding,
)  # fmt: skip
_POOL: tuple[Rule, ...] = (
    rank(0, 4), known_axes(0, 1, 2, 3), one_output, attribute("ceil_mode", 0, default=0), _padding, window_2d, _larger_than_1x1,
)  # fmt: skip
_RESIZE: tuple[Rule, ...] = (
    since(10, 19), rank(0, 4), known_axes(0, 1), attribute("mode", "linear", default="nearest"),
    attribute("antialias", 0, default=0), attribute("axes", (), default=()),
    attribute("keep_aspect_ratio_policy", "stretch", default="stretch"), attribute("extrapolation_value", 0.0, default=0.0),
    attribute("exclude_outside", 0, default=0), attribute("coordinate_transformation_mode", *_MODES, default="half_pixel"),
    _resized_axes, _one_pixel_output,
)  # fmt: skip
# The versions are those that kernels are registered for: ONNX Runtime takes an open-ended kernel for its first version only.
_FLOAT_OPERATORS: Mapping[str, tuple[Rule, ...]] = {
    "Conv": (since(11, 11), dtype(0, FLOAT), *_CONV),
    "ConvTranspose": (since(11, 11), dtype(0, FLOAT), attribute("output_shape", (), default=()), *_CONV),
    "MaxPool": (since(11, 12), dtype(0, FLOAT, UINT8, INT8), *_POOL),
    "AveragePool": (since(11, 11), dtype(0, FLOAT), *_POOL, attribute("count_include_pad", 0, default=0)),
    "Softmax": (since(1, 13), dtype(0, FLOAT), _last_axis),
    "Gemm": (
        since(7, 13), dtype(0, FLOAT), rank(0, 1, 2), rank(1, 2), constant(1, 2),
        attribute("alpha", 1.0, default=1.0), attribute("beta", 1.0, default=1.0), _gemm_bias,
    ),
    "MatMul": (since(1, 13), dtype(0, FLOAT), _matmul_ranks, constant(1)),
    "Resize": (dtype(0, FLOAT, UINT8, INT8), *_RESIZE),
    "QLinearConv": (since(10, 10), rank(0, 4), known_axes(0, 1, 2, 3), constant(3, 8), rank(3, 4), _padding),
}  # fmt: skip
_QUANTISED: Mapping[str, tuple[Rule, ...]] = {
    "Conv": (since(11, 11), _same_types, *_CONV),
    "ConvTranspose": (since(11, 11), _same_types, *_CONV),
    "MaxPool": (since(11, 12), dtype(0, UINT8, INT8), *_POOL),
    "AveragePool": (since(11, 11), dtype(0, UINT8), *_POOL, attribute("count_include_pad", 1, default=0)),
    "Softmax": (since(1, 13), dtype(0, UINT8), _last_axis, _softmax_scale),
    "Resize": (dtype(0, UINT8, INT8), *_RESIZE),
}

XNNPACK = RuleBook(
    title="XNNPACK, rules of ONNX Runtime's provider as read in its sources",
    provider="XnnpackExecutionProvider",
    operators=_FLOAT_OPERATORS,
    sources=_SOURCES,
    quantised=_QUANTISED,
    fused_activations=frozenset({"Relu", "Clip"}),
    fusing=frozenset({"Conv", "MaxPool", "AveragePool"}),
    enters_branches=True,
    notes=("XNNPACK shares the processor's memory: between partitions data changes its layout, and is not copied to a device",),
)
