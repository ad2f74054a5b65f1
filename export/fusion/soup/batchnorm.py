"""BatchNorm statistics of a network whose weights were averaged, computed anew on rows.

The mean of members' running means is not the mean of what the averaged layers give, so the statistics of a soup are those of
its own activations (Izmailov et al. 2018, arXiv 1803.05407, section 3.2; Jordan et al. 2022, REPAIR, arXiv 2211.08403). What
enters one BatchNorm depends on all before it: they are set in that order, each on all rows, so that nothing is approximated.

Shape letters: ``b`` batch, ``k`` channels, ``n`` rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from monograph.errors import FusionError
from monograph.models.contract import Contract
from monograph.models.data.rows import Rows
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
_BATCH_SIZE = 64
_MOST_BYTES = 2 << 30
"""Of the activations of all rows that are kept between one BatchNorm and the next."""
_INLINE_BYTES = 1024
"""Shapes must stand in the file itself: ONNX Runtime infers from them before it reads what lies beside it."""
_MEAN, _VARIANCE = 3, 4
"""The inputs of a BatchNormalization that hold its running statistics."""


@dataclass(frozen=True)
class Statistics:
    """What a BatchNorm saw: mean and unbiased variance of each channel, float64 ``[k]`` both.

    PyTorch's ``running_var`` is of the unbiased variance too.
    """

    mean: Array
    variance: Array


def find_batch_norms(model: ir.Model) -> list[ir.Node]:
    """Return the nodes of the main graph, in its order, that normalise by statistics stored in the graph."""
    return [node for node in model.graph if _has_statistics(node)]


def count_hidden_batch_norms(model: ir.Model) -> int:
    """Return how many stand inside an If, Loop or Scan, where they cannot be reached."""
    return sum(_has_statistics(node) for graph in model.graph.subgraphs() for node in graph)


def recompute_statistics(model: ir.Model, contract: Contract, rows: Rows) -> tuple[dict[str, Statistics], Rows]:
    """Set every BatchNorm's statistics to those of ``rows``; return them by the node's output, and the rows that were used.

    Rows that do not fill the last batch of a fixed size are left out, and so are rows whose activations would need more than
    2 GiB between one BatchNorm and the next.

    Raises:
        FusionError: there are too few rows, or an activation is not finite.
    """
    levels = _levels(model.graph)
    used = _as_many_as_fit(model, contract, rows, levels)
    batches = whole_batches(contract, used)
    # What has been computed so far and is still needed, a batch at a time.
    known: list[dict[str, Array]] = [dict(batch.inputs) for batch in batches]
    found: dict[str, Statistics] = {}
    for level in range(max(levels.values(), default=0)):
        frontier = _frontier(model.graph, levels, level)
        known = _advance(model, frontier, known)
        for node in find_batch_norms(model):
            if levels[node] == level + 1:
                statistics = _statistics_of([batch[_name(node.inputs[0])] for batch in known], node)
                _set_statistics(model.graph, node, statistics)
                found[_name(node.outputs[0])] = statistics
    return found, used.take(slice(0, sum(len(batch) for batch in batches)))


def _has_statistics(node: ir.Node) -> bool:
    if node.op_type != "BatchNormalization" or node.domain != "" or len(node.inputs) <= _VARIANCE:
        return False
    training = node.attributes.get("training_mode")
    stored = all(value is not None and value.is_initializer() for value in node.inputs[_MEAN : _VARIANCE + 1])
    return stored and (training is None or training.as_int() == 0)


def _name(value: ir.Value | None) -> str:
    assert value is not None
    return value.name or ""


def _levels(graph: ir.Graph) -> dict[ir.Node, int]:
    """Return for each node through how many BatchNorms in a row, itself included, its result has gone."""
    levels: dict[ir.Node, int] = {}
    for node in graph:
        before = [levels.get(producer, 0) for value in _read_by(node) if (producer := value.producer()) is not None]
        levels[node] = max(before, default=0) + _has_statistics(node)
    return levels


def _read_by(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what a node reads, and what its subgraphs capture."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        graphs = [attribute.as_graph()] if attribute.type is ir.AttributeType.GRAPH else []
        graphs = list(attribute.as_graphs()) if attribute.type is ir.AttributeType.GRAPHS else graphs
        for graph in graphs:
            yield from (value for inner in graph for value in _read_by(inner))
            yield from graph.outputs


def _frontier(graph: ir.Graph, levels: Mapping[ir.Node, int], level: int) -> list[ir.Value]:
    """Return the values, no weights, that are computed up to ``level`` and read behind it."""
    crossing: dict[ir.Value, None] = {}
    for node in graph:
        if levels[node] > level:
            for value in _read_by(node):
                producer = value.producer()
                is_own = value.graph is graph and not value.is_initializer()
                if is_own and (producer is None or levels[producer] <= level):
                    crossing[value] = None
    return list(crossing)


def _advance(model: ir.Model, frontier: Sequence[ir.Value], known: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
    """Compute ``frontier`` from what is known."""
    new = [value for value in frontier if _name(value) not in known[0]]
    if not new:
        return [{_name(value): batch[_name(value)] for value in frontier} for batch in known]
    with TemporaryDirectory(prefix="monograph-soup-") as folder:
        path = Path(folder) / "part.onnx"
        _save_part(model, known[0], new, path)
        session = open_session(path)
        advanced = []
        for batch in known:
            computed = {**batch, **session(batch)}
            advanced.append({_name(value): computed[_name(value)] for value in frontier})
        return advanced


def _save_part(model: ir.Model, given: Mapping[str, Array], wanted: Sequence[ir.Value], path: Path) -> None:
    """Write the part of ``model`` that computes ``wanted`` from arrays such as ``given``."""
    graph = ir.convenience.extract(model.graph, inputs=list(given), outputs=list(wanted))
    for value in graph.inputs:
        array = given[_name(value)]
        value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape([None] * array.ndim)
    save_model(ir.Model(graph, ir_version=model.ir_version), path)


def save_model(model: ir.Model, path: Path) -> None:
    """Write a model for a session of our own, weights of any size beside it."""
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=_INLINE_BYTES)


def _as_many_as_fit(model: ir.Model, contract: Contract, rows: Rows, levels: Mapping[ir.Node, int]) -> Rows:
    """Return as many rows, drawn at random, as can be kept in memory."""
    first = whole_batches(contract, rows)[0]
    frontiers = [_frontier(model.graph, levels, level) for level in range(max(levels.values(), default=0))]
    every = list(dict.fromkeys(value for frontier in frontiers for value in frontier))
    (computed,) = _advance(model, every, [first.inputs])
    sizes = [sum(computed[_name(value)].nbytes for value in frontier) for frontier in frontiers]
    # Old and new ones are held side by side while a step is computed.
    needed = max((a + b for a, b in zip([0, *sizes], sizes, strict=False)), default=0) / len(first)
    return draw_rows(rows, max(len(first), int(_MOST_BYTES / max(needed, 1))))


def draw_rows(rows: Rows, count: int) -> Rows:
    """Return ``count`` rows drawn at random, the same ones every time, in their order; all of them where there are no more.

    Rows often come sorted by class, so the first ones are not like the rest.
    """
    if len(rows) <= count:
        return rows
    return rows.take(np.sort(np.random.default_rng(0).permutation(len(rows))[:count]))


def whole_batches(contract: Contract, rows: Rows) -> list[Rows]:
    """Return the rows in whole batches of the size that the contract fixes, or in batches of a size of our own.

    Raises:
        FusionError: there are too few for one batch of the size that is fixed.
    """
    fixed = [spec.shape[0] for spec in contract.inputs if spec.shape and isinstance(spec.shape[0], int)]
    if not fixed:
        return list(rows.batches(_BATCH_SIZE))
    whole = [batch for batch in rows.batches(int(fixed[0])) if len(batch) == fixed[0]]
    if not whole:
        raise FusionError(f"{rows.origin}: {len(rows)} rows do not fill the fixed batch of {fixed[0]}: give more of them")
    return whole


def _statistics_of(batches: Sequence[Array], node: ir.Node) -> Statistics:
    """Mean and unbiased variance over all but the channel axis of arrays ``[b, k, …]``, in float64."""
    axes = tuple(axis for axis in range(batches[0].ndim) if axis != 1)
    count = sum(batch.size // batch.shape[1] for batch in batches)
    if count < 2:
        raise FusionError(
            f"node {_name(node.outputs[0])!r} sees a single value a channel: give more rows to compute its variance"
        )
    mean = sum(batch.sum(axes, dtype=np.float64) for batch in batches) / count
    shape = [-1 if axis == 1 else 1 for axis in range(batches[0].ndim)]
    squares = sum(((batch.astype(np.float64) - mean.reshape(shape)) ** 2).sum(axes) for batch in batches)
    if not np.isfinite(squares).all():
        raise FusionError(
            f"what node {_name(node.outputs[0])!r} normalises is not finite on these rows: no statistics can be had"
        )
    return Statistics(mean, np.asarray(squares / (count - 1)))


def _set_statistics(graph: ir.Graph, node: ir.Node, statistics: Statistics) -> None:
    """Give the node statistics of its own, though it may have shared them with another."""
    for position, array in ((_MEAN, statistics.mean), (_VARIANCE, statistics.variance)):
        old = node.inputs[position]
        assert old is not None
        assert old.const_value is not None
        dtype = old.const_value.dtype
        tensor = ir.tensor(array.astype(old.const_value.numpy().dtype), dtype=dtype)
        if len(old.uses()) == 1:
            tensor.name = old.name
            old.const_value = tensor
            continue
        name = f"{old.name}/{_name(node.outputs[0])}"
        tensor.name = name
        own = ir.Value(name=name, shape=old.shape, type=ir.TensorType(dtype), const_value=tensor)
        graph.register_initializer(own)
        node.replace_input_with(position, own)
