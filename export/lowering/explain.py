"""Where a lowered model departs from its source: the error of every tensor that both graphs have, in order.

Each tensor is compared twice. *Accumulated*: as the lowered model computes it, with all errors before it. *Local*: as the
lowered node computes it from the source's own tensors, so that what went wrong before does not count; the layer with the
largest local error is where it breaks. Tensors correspond by name, and one that is quantised is compared as it is read,
dequantised.

Shape letters: ``n`` rows.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from monograph.errors import ConfigError
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile
from monograph.runtime.runner import scoring_batch_size
from monograph.runtime.session import Session, open_session

Array = npt.NDArray[Any]
_GIVEN, _MEASURED = "__given", "__measured"
_BATCH_ROWS = 8
"""Every tensor of as many rows is held at once."""
_NOISELESS_DB = 200.0
"""What equal tensors are given, and more than any two of 64 bits have."""
_WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FLOATS = (np.float16, np.float32, np.float64)


@dataclass(frozen=True)
class TensorError:
    """How far two tensors lie apart, over all rows."""

    sqnr_db: float
    """Signal to quantisation noise, 20·log10(‖source‖/‖difference‖); 200 where they are equal."""
    relative_error: float
    """‖difference‖/‖source‖."""
    cosine: float
    max_abs: float
    """Largest absolute difference."""


@dataclass(frozen=True)
class ExplainedLayer:
    """One tensor that both graphs have, with the node of the lowered graph that computes it."""

    tensor: str
    node: str
    operator: str
    """Of the source's node, after the one that it was folded into."""
    local: TensorError
    accumulated: TensorError


@dataclass(frozen=True)
class Explanation:
    """A lowered model beside its source, tensor by tensor."""

    source: str
    lowered: str
    row_count: int
    layers: tuple[ExplainedLayer, ...]
    """In the order of the lowered graph."""
    broke: ExplainedLayer
    """The layer with the largest local error; of several the first."""
    unmatched: int
    """Tensors of the source that the lowered model does not have: fused, folded or rewritten."""

    def describe(self) -> str:
        """Return which layer broke it, as a sentence."""
        worst, last = self.broke, self.layers[-1]
        if worst.local.relative_error == 0:
            return f"all {len(self.layers)} tensors that {self.lowered} shares with {self.source} are equal"
        return (
            f"the error is largest at {worst.node} ({worst.operator}): with inputs in float it alone is off by "
            f"{worst.local.relative_error:.2%} ({worst.local.sqnr_db:.1f} dB); at {last.tensor}, all together come to "
            f"{last.accumulated.relative_error:.2%} ({last.accumulated.sqnr_db:.1f} dB)"
        )


@dataclass
class _Sums:
    """Of all batches so far."""

    signal: float = 0.0
    noise: float = 0.0
    other: float = 0.0
    dot: float = 0.0
    max_abs: float = 0.0

    def add(self, expected: Array, got: Array) -> None:
        a, b = expected.astype(np.float64).ravel(), got.astype(np.float64).ravel()
        finite = np.isfinite(a) & np.isfinite(b)
        a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
        difference = a - b
        self.signal += float(a @ a)
        self.other += float(b @ b)
        self.noise += float(difference @ difference)
        self.dot += float(a @ b)
        self.max_abs = max(self.max_abs, float(np.abs(difference).max(initial=0.0)))

    def error(self) -> TensorError:
        tiny = np.finfo(np.float64).tiny
        relative = math.sqrt(self.noise / max(self.signal, tiny)) if self.noise else 0.0
        norms = math.sqrt(self.signal * self.other)
        return TensorError(
            sqnr_db=min(-20 * math.log10(relative), _NOISELESS_DB) if relative > 0 else _NOISELESS_DB,
            relative_error=relative,
            cosine=min(self.dot / norms, 1.0) if norms > 0 else 1.0,
            max_abs=self.max_abs,
        )


@dataclass
class _Pair:
    """What is summed of one tensor."""

    local: _Sums = field(default_factory=_Sums)
    accumulated: _Sums = field(default_factory=_Sums)


def explain(source: OnnxFile, lowered: OnnxFile, rows: Rows, folder: Path, *, reference: Path | None = None) -> Explanation:
    """Run both graphs on ``rows`` and compare the tensors that both have.

    Args:
        source: the model that was lowered.
        lowered: what it became.
        rows: as the contract of ``lowered`` takes them.
        folder: for the graphs with more outputs; the caller removes it.
        reference: the graph of ``source`` in another form whose tensors are compared; that of the file by default.

    Raises:
        ConfigError: the graphs share no tensor.
    """
    plain, other = onnx.load(reference or source.path), onnx.load(lowered.path)
    nodes = {name: node for node in plain.graph.node for name in node.output if name}
    shared = [name for node in other.graph.node for name in node.output if name in nodes]
    if not shared:
        raise ConfigError(
            f"{lowered.path.name} and {source.path.name} share no tensor: give the model that was lowered to {lowered.path.name}"
        )
    sums = _compare(plain, other, shared, rows, lowered, folder)
    makers = {name: node for node in other.graph.node for name in node.output}
    layers = tuple(
        ExplainedLayer(
            name, makers[name].name or name, _operator(nodes[name], makers[name]), pair.local.error(), pair.accumulated.error()
        )
        for name, pair in sums.items()
    )
    if not layers:
        raise ConfigError(
            f"no float tensor of {lowered.path.name} has the size of its namesake in {source.path.name}: give the model that it "
            "was lowered from"
        )
    broke = max(layers, key=lambda layer: layer.local.relative_error)
    return Explanation(source.path.name, lowered.path.name, len(rows), layers, broke, len(nodes) - len(layers))


def _operator(before: onnx.NodeProto, after: onnx.NodeProto) -> str:
    """Return what computes a tensor: an activation that was folded into what is before it is named with that."""
    is_folded = after.op_type in _WITH_WEIGHTS and before.op_type != after.op_type
    return f"{after.op_type} + {before.op_type}" if is_folded else str(before.op_type)


def _compare(
    plain: onnx.ModelProto, other: onnx.ModelProto, shared: Sequence[str], rows: Rows, lowered: OnnxFile, folder: Path
) -> dict[str, _Pair]:
    """Run the source, the lowered model, and the lowered model on the source's tensors, a few rows at a time."""
    reads = {name: _read_as(other.graph, name) for name in shared}
    expected_session = _open(_with_outputs(plain, shared), folder / "source.onnx")
    whole_session = _open(_with_outputs(other, list(reads.values())), folder / "lowered.onnx")
    forced_session: Session | None = None
    sums: dict[str, _Pair] = {}
    for batch in _batches(rows, lowered):
        inputs = {name: batch[name] for name in expected_session.input_names if name in batch}
        expected = expected_session(inputs)
        whole = whole_session({name: batch[name] for name in whole_session.input_names})
        matched = {
            name: whole[read]
            for name, read in reads.items()
            if expected[name].dtype in _FLOATS and whole[read].dtype in _FLOATS and expected[name].shape == whole[read].shape
        }
        if forced_session is None:
            dtypes = {name: array.dtype for name, array in matched.items()}
            forced_session = _open(_on_given_tensors(other, dtypes), folder / "forced.onnx")
            sums = {name: _Pair() for name in matched}
        given = {
            name: batch[name] if name in batch else expected[base := name.removesuffix(_GIVEN)].astype(matched[base].dtype)
            for name in forced_session.input_names
        }
        forced = forced_session(given)
        for name, pair in sums.items():
            pair.accumulated.add(expected[name], matched[name])
            pair.local.add(expected[name], forced[f"{name}{_MEASURED}"])
    return sums


def _batches(rows: Rows, lowered: OnnxFile) -> Iterator[dict[str, Array]]:
    """Yield inputs; a fixed batch is filled up with the first rows."""
    first = lowered.contract.inputs[0].shape[0] if lowered.contract.inputs[0].shape else 1
    size = first if isinstance(first, int) else min(_BATCH_ROWS, scoring_batch_size(lowered.contract))
    for start in range(0, len(rows), size):
        indices = np.arange(start, start + size)
        yield dict(rows.take(indices % len(rows) if isinstance(first, int) else indices[indices < len(rows)]).inputs)


def _open(model: onnx.ModelProto, path: Path) -> Session:
    onnx.save(model, path)
    return open_session(path)


def _read_as(graph: onnx.GraphProto, name: str) -> str:
    """Return the tensor by which others read ``name``: dequantised, where it is quantised; else itself."""
    for quantise in graph.node:
        if quantise.op_type == "QuantizeLinear" and quantise.input[0] == name:
            for dequantise in graph.node:
                if dequantise.op_type == "DequantizeLinear" and dequantise.input[0] == quantise.output[0]:
                    return str(dequantise.output[0])
    return name


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return the model with more tensors as outputs; ONNX Runtime infers their types."""
    changed = copy.deepcopy(model)
    there = {value.name for value in changed.graph.output}
    changed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in there)
    return changed


def _on_given_tensors(model: onnx.ModelProto, dtypes: Mapping[str, np.dtype[Any]]) -> onnx.ModelProto:
    """Return the lowered model whose nodes take the source's tensors, as inputs, and whose outputs are what they make of them."""
    changed = copy.deepcopy(model)
    graph = changed.graph
    measured = [_measure(model.graph, name) for name in dtypes]
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in dtypes:
                node.input[place] = f"{name}{_GIVEN}"
    del graph.output[:]
    for (name, dtype), nodes in zip(dtypes.items(), measured, strict=True):
        elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        graph.input.append(onnx.helper.make_tensor_value_info(f"{name}{_GIVEN}", elem_type, None))
        graph.node.extend(nodes)
        graph.output.append(onnx.ValueInfoProto(name=f"{name}{_MEASURED}"))
    used = {name for node in graph.node for name in node.input}
    unused = [value for value in graph.input if value.name not in used]
    for value in unused:
        graph.input.remove(value)
    return changed


def _measure(graph: onnx.GraphProto, name: str) -> list[onnx.NodeProto]:
    """Return the nodes that hand out ``name`` as others read it: quantised and dequantised again, or as it is."""
    out = f"{name}{_MEASURED}"
    pairs = [
        (quantise, dequantise)
        for quantise in graph.node
        if quantise.op_type == "QuantizeLinear" and quantise.input[0] == name
        for dequantise in graph.node
        if dequantise.op_type == "DequantizeLinear" and dequantise.input[0] == quantise.output[0]
    ]
    if not pairs:
        return [onnx.helper.make_node("Identity", [name], [out], name=out)]
    nodes = [copy.deepcopy(node) for node in pairs[0]]
    nodes[0].output[0] = nodes[1].input[0] = f"{out}_quantised"
    nodes[1].output[0] = out
    for node in nodes:
        node.name = f"{node.name}{_MEASURED}"
    return nodes
