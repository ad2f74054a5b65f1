"""How sure a member is of a row. A new gate is two functions and one entry in ``GATES``.

Shape letters: ``b`` batch, ``c`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.tape import Tape
from scipy.special import softmax

from monograph.models.contract import Kind

Array = npt.NDArray[Any]
_TINY = float(np.finfo(np.float32).tiny)
"""In place of a probability of 0, whose logarithm is not finite."""


@dataclass(frozen=True)
class Gate:
    """A score of how sure a row is, higher is surer: the same twice, as ONNX nodes and, for the proof, in numpy."""

    name: str
    formula: str
    source: str
    emit: Callable[[Tape, ir.Value, int], ir.Value]
    """From probabilities ``float32 [b, c]`` and ``c`` to the score ``float32 [b]``."""
    score: Callable[[Array], Array]
    """The same in numpy, float64."""


def _emit_max_probability(tape: Tape, probabilities: ir.Value, class_count: int) -> ir.Value:
    del class_count
    return _squeeze(tape, _emit_largest(tape, probabilities, 1))


def _max_probability(probabilities: Array) -> Array:
    return np.asarray(probabilities.max(axis=1))


def _emit_margin(tape: Tape, probabilities: ir.Value, class_count: int) -> ir.Value:
    del class_count
    signs = tape.op("Constant", [], {"value": ir.tensor(np.array([1, -1], np.float32))})
    axes = tape.op("Constant", [], {"value_ints": [-1]})
    differences = tape.op("Mul", [_emit_largest(tape, probabilities, 2), signs])
    return tape.op("ReduceSum", [differences, axes], {"keepdims": 0})


def _margin(probabilities: Array) -> Array:
    largest = np.sort(probabilities, axis=1)
    return np.asarray(largest[:, -1] - largest[:, -2])


def _emit_entropy(tape: Tape, probabilities: ir.Value, class_count: int) -> ir.Value:
    axes = tape.op("Constant", [], {"value_ints": [-1]})
    products = tape.op("Mul", [probabilities, emit_log(tape, probabilities)])
    share = tape.op("Div", [tape.op("ReduceSum", [products, axes], {"keepdims": 0}), emit_scalar(tape, math.log(class_count))])
    return tape.op("Add", [share, emit_scalar(tape, 1.0)])


def _entropy(probabilities: Array) -> Array:
    terms = probabilities * np.log(np.maximum(probabilities, _TINY))
    return np.asarray(1.0 + terms.sum(axis=1) / math.log(probabilities.shape[1]))


def _emit_largest(tape: Tape, values: ir.Value, count: int) -> ir.Value:
    """ReduceMax would do for one, but takes its axis in two ways, by the opset."""
    k = tape.op("Constant", [], {"value_ints": [count]})
    return tape.op_multi_out("TopK", [values, k], {"axis": -1}, num_outputs=2)[0]


def _squeeze(tape: Tape, value: ir.Value) -> ir.Value:
    return tape.op("Squeeze", [value, tape.op("Constant", [], {"value_ints": [-1]})])


def emit_scalar(tape: Tape, number: float) -> ir.Value:
    """Emit a float32 constant of no dimensions."""
    return tape.op("Constant", [], {"value_float": number})


def emit_log(tape: Tape, probabilities: ir.Value) -> ir.Value:
    """Emit the logarithm, finite at 0 too."""
    return tape.op("Log", [tape.op("Max", [probabilities, emit_scalar(tape, _TINY)])])


_CHOW = "https://doi.org/10.1109/TIT.1970.1054406"  # Chow 1970, the optimal reject rule
_MARGIN = "https://doi.org/10.1007/3-540-44816-0_31"  # Scheffer et al. 2001, the margin between the two best
_BRANCHYNET = "https://arxiv.org/abs/1709.01686"  # Teerapittayanon et al. 2016, exits by entropy
GATES: dict[str, Gate] = {
    gate.name: gate
    for gate in (
        Gate("max-probability", "max p", _CHOW, _emit_max_probability, _max_probability),
        Gate("margin", "max p − second p", _MARGIN, _emit_margin, _margin),
        Gate("entropy", "1 + Σ p·ln p / ln c", _BRANCHYNET, _emit_entropy, _entropy),
    )
}


def emit_calibrated(tape: Tape, output: ir.Value, kind: Kind, temperature: float) -> tuple[ir.Value, ir.Value]:
    """Emit a member's output over its temperature, as logits (or as they come, for probabilities) and as probabilities.

    Temperature scaling is softmax(z / T) (Guo et al. 2017, arXiv 1706.04599); for probabilities z is their logarithm.
    """
    if kind is Kind.PROBABILITIES:
        if temperature == 1:
            return output, output
        output = emit_log(tape, output)
    if temperature != 1:
        output = tape.op("Div", [output, emit_scalar(tape, temperature)])
    return output, tape.op("Softmax", [output], {"axis": -1})


def calibrated(output: Array, kind: Kind, temperature: float) -> tuple[Array, Array]:
    """Return what :func:`emit_calibrated` emits, in float64."""
    wide = output.astype(np.float64)
    if kind is Kind.PROBABILITIES:
        if temperature == 1:
            return wide, wide
        wide = np.log(np.maximum(wide, _TINY))
    wide = wide / temperature
    return wide, np.asarray(softmax(wide, axis=-1))
