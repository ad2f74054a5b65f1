"""How weights are written in 8 bits, and which way holds on every processor.

Full-range signed weights are what most tools write. They are exact on x86 with VNNI and on 64-bit ARM, and saturate on other
x86 processors (see :mod:`monograph.models.int8_products`). Two forms are exact everywhere: unsigned weights around 128, which
keep all 8 bits, and signed ones of 7 bits, which keep the instructions that VNNI brings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from monograph.errors import ConfigError
from monograph.models.int8_products import int8_products, zero_point_index

_ZERO = 128


@dataclass(frozen=True)
class WeightForm:
    """One way to write weights in 8 bits."""

    name: str
    title: str
    largest: int
    """Largest absolute value, counted from the zero point."""
    is_unsigned: bool = False

    @property
    def reduces_range(self) -> bool:
        """True where one bit is left out."""
        return self.largest < 127


U8 = WeightForm("u8", "8 bits around 128", 127, is_unsigned=True)
S7 = WeightForm("s7", "7 bits", 64)
S8 = WeightForm("s8", "8 signed bits", 127)
WEIGHT_FORMS = {form.name: form for form in (U8, S7, S8)}
PORTABLE_FORMS = (U8, S7)
"""Forms that are exact on every processor."""

ANY = "any"
PROCESSORS: dict[str, tuple[WeightForm, ...]] = {ANY: PORTABLE_FORMS, "vnni": (S8,), "arm64": (S8,)}
"""Forms that may be chosen, by the processors that a file is for."""


def forms_for(processors: str) -> tuple[WeightForm, ...]:
    """Return the forms that are exact on ``processors``.

    Raises:
        ConfigError: they are not known.
    """
    if processors not in PROCESSORS:
        raise ConfigError(f"unknown processors {processors!r}: choose from {', '.join(PROCESSORS)}")
    return PROCESSORS[processors]


class UnsignedWeightsPass(ir.passes.InPlacePass):
    """Write signed 8-bit weights of products as unsigned ones around 128: the same numbers, exact on every processor.

    Depthwise convolutions stay signed: their kernels are exact so, and take 0.85 of the time.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite each weight once, however many nodes read it."""
        weights = dict.fromkeys(each.weight for each in int8_products(model) if each.is_signed and not each.is_depthwise)
        changed = [_make_unsigned(weight) for weight in weights]
        return ir.passes.PassResult(model, modified=any(changed))


def _make_unsigned(weight: ir.Value) -> bool:
    readers = [(use.node, zero_point_index(use.node, use.idx)) for use in weight.uses()]
    if weight.const_value is None or weight.graph is None or any(index is None for _, index in readers):
        return False
    zero_points = [node.inputs[index] for node, index in readers if index is not None and index < len(node.inputs)]
    zeros = [value.const_value.numpy() for value in zero_points if value is not None and value.const_value is not None]
    if len(zeros) < len(readers) or any(zero.any() for zero in zeros):
        return False
    name = f"{weight.name}_zero_point_{_ZERO}"
    zero_point = ir.Value(name=name, const_value=ir.tensor(np.full(zeros[0].shape, _ZERO, np.uint8), name=name))
    weight.graph.register_initializer(zero_point)
    weight.const_value = ir.tensor((weight.const_value.numpy().astype(np.int16) + _ZERO).astype(np.uint8), name=weight.name)
    weight.type = zero_point.type = ir.TensorType(ir.DataType.UINT8)
    for node, index in readers:
        assert index is not None
        node.replace_input_with(index, zero_point)
    return True
