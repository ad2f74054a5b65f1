"""What a form of fusion is: how the members' outputs become one output.

Shape letters: ``b`` batch, ``c`` classes, ``k`` classes or other outputs, ``m`` members.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.tape import Tape

from monograph.models.contract import Kind

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Stacking:
    """A linear combiner over the members' log-probabilities or other outputs, side by side: O = [O₁ … Oₘ]·W + b."""

    coefficients: tuple[tuple[float, ...], ...]
    """W ``[m·k, k]``."""
    intercept: tuple[float, ...]
    """b ``[k]``."""

    def sha256(self) -> str:
        """Return a digest of both in float32, as the graph holds them, in hexadecimal."""
        numbers = [np.asarray(array, "<f4").tobytes() for array in (self.coefficients, self.intercept)]
        return hashlib.sha256(b"".join(numbers)).hexdigest()


@dataclass(frozen=True)
class Mixing:
    """The numbers of a fusion, for the members that run."""

    names: tuple[str, ...]
    weights: tuple[float, ...]
    stacking: Stacking | None = None
    class_weights: tuple[tuple[float, ...], ...] | None = None
    """``[m, c]``, classes in the fused order, each column summing to one; for the form that takes them."""


@dataclass(frozen=True)
class Form:
    """One way to fuse: the same arithmetic twice, as ONNX nodes and, for the proof, in numpy."""

    name: str
    formula: str
    source: str
    kinds: tuple[Kind, ...]
    """Kinds of member outputs that it takes."""
    output_kind: Callable[[Kind], Kind]
    """From the first member's kind to the fused graph's."""
    emit_conversion: Callable[[Tape, ir.Value, Kind], ir.Value]
    """Put one member's output ``float32 [b, c]`` into the space in which it is combined."""
    convert: Callable[[Array, Kind], Array]
    """The same in numpy, float64."""
    emit_combination: Callable[[Tape, Sequence[ir.Value], Mixing], ir.Value]
    """From the members' converted outputs, classes in the fused order, to the fused output."""
    combine: Callable[[Sequence[Array], Mixing], Array]
    """The same in numpy, float64."""
    takes_subsets: bool = False
    """True where a member that lacks some classes counts as 0 for them."""
    joins_features: bool = False
    """True where members' outputs may differ in their last dimension, over which they are put side by side."""


def keep(tape: Tape, value: ir.Value, kind: Kind) -> ir.Value:
    """Leave a member's output as it is."""
    del tape, kind
    return value


def keep_array(array: Array, kind: Kind) -> Array:
    """Leave a member's output as it is, in float64."""
    del kind
    return array.astype(np.float64)


def emit_mean(tape: Tape, values: Sequence[ir.Value], mixing: Mixing) -> ir.Value:
    """Emit O = Σ αᵢOᵢ."""
    return emit_weighted_sum(tape, values, mixing.weights, mixing.names)


def mean(arrays: Sequence[Array], mixing: Mixing) -> Array:
    """Return O = Σ αᵢOᵢ in float64."""
    return weighted_sum(arrays, mixing.weights)


def emit_weighted_sum(tape: Tape, values: Sequence[ir.Value], weights: Sequence[float], names: Sequence[str]) -> ir.Value:
    """Emit O = Σ αᵢOᵢ; a weight of one costs no node."""
    scaled = []
    for value, weight, name in zip(values, weights, names, strict=True):
        if weight == 1.0:
            scaled.append(value)
            continue
        scalar = tape.initializer(ir.tensor(np.array(weight, np.float32), name=f"fusion/weight/{name}"))
        scaled.append(tape.op("Mul", [value, scalar]))
    return scaled[0] if len(scaled) == 1 else tape.op("Sum", scaled)


def weighted_sum(arrays: Sequence[Array], weights: Sequence[float]) -> Array:
    """Return O = Σ αᵢOᵢ in float64."""
    result: Array = np.einsum("i,i...->...", np.asarray(weights, np.float64), np.stack(arrays))
    return result
