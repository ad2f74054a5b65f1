"""Products of 8-bit integers in a graph, and whether two of them fit 16 bits together.

On x86 processors without VNNI, ONNX Runtime multiplies unsigned activations by signed weights in pairs and adds each pair in 16
bits, where it saturates. A pair of weights is safe if its sum lies between -128 and 128, since 255 · 128 = 32,640 fits. Which
weights meet in a pair depends on the kernel, so the two largest and the two smallest of each output channel are looked at.
Unsigned weights are widened first, and depthwise convolutions have kernels of their own that add in 32 bits: both are exact.

On 64-bit ARM activations are made signed, so that two products of -128 by -128 wrap around: weights of -128 are not exact there,
in depthwise convolutions with dot products, and in nearly all operators without.

Sources: ``onnxruntime/core/mlas/lib`` of ONNX Runtime 1.32 (``platform.cpp`` chooses the kernels);
https://github.com/microsoft/onnxruntime/issues/6004.

Shape letters: ``k`` summed axis, ``n`` output channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]
_LOWEST = -128
LARGEST_SAFE_PAIR = 128
"""Largest absolute sum of two weights whose products by 255 cannot saturate 16 bits."""
_INTEGER_OPERATORS: dict[str, tuple[int, int]] = {
    "QLinearConv": (3, 5),
    "QLinearMatMul": (3, 5),
    "ConvInteger": (1, 3),
    "MatMulInteger": (1, 3),
    "MatMulIntegerToFloat": (1, 5),
    "DynamicQuantizeMatMul": (1, 3),
    "QGemm": (3, 5),
    "QAttention": (1, 7),
}
"""Positions of the weights and of their zero point, of operators that multiply integers as they are."""
_FLOAT_OPERATORS = ("Conv", "Gemm", "MatMul")
"""Operators that ONNX Runtime multiplies in integers where both operands come out of DequantizeLinear."""
_CONVOLUTIONS = ("Conv", "QLinearConv", "ConvInteger")
_BYTES = (ir.DataType.INT8, ir.DataType.UINT8)


@dataclass(frozen=True)
class Int8Product:
    """One node that multiplies 8-bit activations by 8-bit weights."""

    node: ir.Node
    weight: ir.Value
    """Its integers."""
    zero_point: ir.Value | None

    @property
    def is_signed(self) -> bool:
        """True where the weights are signed."""
        return _dtype(self.weight, self.zero_point) is ir.DataType.INT8

    @property
    def is_depthwise(self) -> bool:
        """True for a convolution of one input channel an output channel."""
        if self.node.op_type not in _CONVOLUTIONS or self.weight.shape is None:
            return False
        group = self.node.attributes.get_int("group", 1)
        return len(self.weight.shape) > 1 and self.weight.shape[1] == 1 and self.weight.shape[0] == group and group > 1

    @property
    def saturates(self) -> bool:
        """True where two products may not fit 16 bits, or where that is not known."""
        if not self.is_signed or self.is_depthwise:
            return False
        tensor = ir.convenience.get_const_tensor(self.weight)
        # Activations on both sides are made unsigned on x86 as the graph is loaded, if they stand between Q and DQ.
        if tensor is None:
            return self.node.op_type in _INTEGER_OPERATORS
        return largest_pair(self._by_channel(tensor.numpy())) > LARGEST_SAFE_PAIR

    @property
    def wraps(self) -> bool:
        """True where weights hold -128, or where that is not known: two products by -128 do not fit 16 bits on 64-bit ARM."""
        if not self.is_signed:
            return False
        tensor = ir.convenience.get_const_tensor(self.weight)
        return self.node.op_type in _INTEGER_OPERATORS if tensor is None else bool((tensor.numpy() == _LOWEST).any())

    def _by_channel(self, weights: Array) -> Array:
        """Return weights as ``[n, k]``."""
        is_transposed = self.node.op_type in ("Gemm", "QGemm") and bool(self.node.attributes.get_int("transB", 0))
        if self.node.op_type in _CONVOLUTIONS or is_transposed:
            return weights.reshape(len(weights), -1)
        return np.moveaxis(weights, -2, -1).reshape(-1, weights.shape[-2]) if weights.ndim > 1 else weights[None]


def int8_products(model: ir.Model) -> Iterator[Int8Product]:
    """Return the nodes of ``model``, subgraphs and functions included, that multiply 8-bit integers."""
    in_functions = (node for function in model.functions.values() for node in function.all_nodes())
    for node in chain(model.graph.all_nodes(), in_functions):
        if node.op_type in _INTEGER_OPERATORS:
            yield from _product(node, node, *_INTEGER_OPERATORS[node.op_type])
        elif node.op_type in _FLOAT_OPERATORS:
            yield from _dequantised_product(node)


def zero_point_index(reader: ir.Node, index: int) -> int | None:
    """Return where ``reader``, whose input ``index`` is a weight's integers, takes their zero point; None where it takes none."""
    if reader.op_type == "DequantizeLinear":
        return 2 if index == 0 else None
    weight, zero_point = _INTEGER_OPERATORS.get(reader.op_type, (None, None))
    return zero_point if index == weight else None


def saturating_nodes(model: ir.Model) -> list[str]:
    """Return the names of the nodes whose products may saturate 16 bits on an x86 processor without VNNI."""
    return [product.node.name or product.node.op_type for product in int8_products(model) if product.saturates]


def largest_pair(weights: Array) -> int:
    """Return the largest absolute sum of two weights of one channel, for ``weights``: int8 ``[n, k]``."""
    if weights.shape[1] < 2:
        return int(np.abs(weights.astype(np.int32)).max(initial=0))
    ordered = np.partition(weights.astype(np.int32), (1, -2), axis=1)
    return int(max(ordered[:, -2:].sum(1).max(initial=0), -ordered[:, :2].sum(1).min(initial=0)))


def _dequantised_product(node: ir.Node) -> Iterator[Int8Product]:
    makers = [value.producer() if value is not None else None for value in node.inputs[:2]]
    if len(makers) == 2 and all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers):
        activation, weight = makers
        assert activation is not None
        assert weight is not None
        if _dtype(activation.inputs[0], _input(activation, 2)) in _BYTES:
            yield from _product(node, weight, 0, 2)


def _product(node: ir.Node, holder: ir.Node, weight_index: int, zero_point_index: int) -> Iterator[Int8Product]:
    weight, zero_point = _input(holder, weight_index), _input(holder, zero_point_index)
    if weight is not None and _dtype(weight, zero_point) in _BYTES:
        yield Int8Product(node, weight, zero_point)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _dtype(value: ir.Value | None, zero_point: ir.Value | None) -> ir.DataType | None:
    """Return the type of ``value``, which its zero point shares."""
    for each in (value, zero_point):
        if each is None:
            continue
        tensor = ir.convenience.get_const_tensor(each)
        if tensor is not None or each.dtype is not None:
            return tensor.dtype if tensor is not None else each.dtype
    maker = None if value is None else value.producer()
    return _dtype(_input(maker, 2), None) if maker is not None and maker.op_type == "QuantizeLinear" else None
