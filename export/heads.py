"""A new head for a model that exists as ONNX only: trained in PyTorch on what the trunk gives, then merged into its graph.

The trunk's nodes and weights stay as they are; those that only its old outputs needed are left out.

Shape letters: ``b`` batch, ``n`` rows, ``s`` sequence, ``d`` features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import Sequential
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass
from onnx_ir.tape import Tape

from monograph.errors import ContractError, ExportError, SourceError, WorkerError
from monograph.export.fusion.adapters import Cast
from monograph.export.fusion.align import InputLink
from monograph.export.fusion.members import detach, ir_dtype, keep_caches, load_member, take_apart
from monograph.export.fusion.plan import Member
from monograph.export.parity import TOLERANCE, Computation, open_when_run, run_each
from monograph.export.trace import DEFAULT_OPSET, PROOF_KEY, Exported, export_torch, write_proven
from monograph.models.contract import CONTRACT_KEY, Contract, Dim, Kind, TensorSpec, random_inputs
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile, load_graph
from monograph.models.seen import SEEN_KEY, read_seen, seen_metadata
from monograph.models.torch_model import TorchModel
from monograph.runtime.apart import ApartSession, too_large
from monograph.runtime.golden import GOLDEN_KEY
from monograph.runtime.runner import run_all_rows
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]

_OLDEST_DYNAMO_OPSET = 18
"""For an older trunk the head is traced by TorchScript: a trunk that nobody can export again is not converted."""
_SHOWN_TENSORS = 8
_PROBED_SIZES = ((2, 12), (3, 19))
"""Batch and sequence: an axis that differs between the two is symbolic."""


def attach_head(
    trunk: OnnxFile,
    head: TorchModel,
    path: Path,
    *,
    features: str,
    rows: Rows | None = None,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Merge ``trunk`` up to its tensor ``features`` and ``head`` into one graph, prove it, and only then write ``path``.

    The first input of ``head`` takes the features, float32 ``[b, d]`` or ``[b, s, d]``; each further one takes the trunk's
    own input of the same name. The result has the trunk's inputs, tokenizer and seen rows, and the head's outputs, kind and
    class names. It is proven equal to the trunk in ONNX Runtime followed by the head in PyTorch.

    Raises:
        ContractError: the trunk has no such tensor, or the head does not fit it.
        ExportError: PyTorch cannot express the head, or the graphs cannot be one.
        FusionError: the head cannot be brought to the trunk's opset.
        ParityError: the graph does not compute what both do; ``path`` is as it was before.
    """
    with TemporaryDirectory(prefix="monograph-") as folder, _readable(trunk, features) as readable:
        apart = too_large(trunk.size_bytes)
        run = ApartSession(readable) if apart else _run_when_called(readable, features)
        spec = _spec(trunk, features, run)
        contract = _joined_contract(trunk, head, spec)
        exported = export_torch(
            head,
            Path(folder) / "head.onnx",
            opset=min(_opset(trunk), DEFAULT_OPSET),
            dynamo=_opset(trunk) >= _OLDEST_DYNAMO_OPSET,
            tolerance=tolerance,
        )
        proof = write_proven(
            _joined_graph(trunk, exported, spec, contract),
            path,
            contract,
            _TrunkThenHead(run, head, features),
            names=(f"{trunk.path.name} in ONNX Runtime and {head.name} in PyTorch", path.name),
            rows=rows,
            # Without float16 kernels ONNX Runtime computes in float32 and rounds only what leaves the graph: the features.
            tolerance=max(tolerance, float(np.finfo(np.float16).eps)) if spec.dtype == "float16" else tolerance,
            tokenizer_json=trunk.tokenizer_json,
            metadata=seen_metadata(read_seen(trunk), path),
            candidate=ApartSession if apart else open_when_run,
        )
    return Exported(path, contract, proof, exported.route)


def trunk_outputs(trunk: OnnxFile, features: str, rows: Rows) -> Array:
    """Return the tensor ``features`` of the trunk for every row: :func:`open_trunk`, asked once."""
    return open_trunk(trunk, features)(rows)


def open_trunk(trunk: OnnxFile, features: str) -> Callable[[Rows], Array]:
    """Load the trunk, and return what gives its tensor ``features`` for rows: float32 ``[n, d]`` or ``[n, s, d]``.

    What is returned raises ``ContractError`` where the tensor is not one row of floats a row, and ``WorkerError`` where the trunk
    does not run on the rows.

    Raises:
        ContractError: the trunk has no such tensor.
    """
    contract = replace(trunk.contract, outputs=(TensorSpec(features, "float32", ()),), kind=Kind.EMBEDDING, class_names=None)
    with _readable(trunk, features) as path:
        run = open_session(path).only(features)

    def run_batch(inputs: Mapping[str, Array]) -> dict[str, Array]:
        output = run(inputs)[features]
        _check_floats(trunk, features, output.dtype.name)
        if output.shape[:1] != inputs[contract.inputs[0].name].shape[:1]:
            raise _not_by_rows(trunk, features, output.shape)
        return {features: output.astype(np.float32, copy=False)}

    return lambda rows: run_all_rows(run_batch, contract, rows)


def features_spec(trunk: OnnxFile, features: str) -> TensorSpec:
    """Return name, dtype and shape of the tensor ``features`` of the trunk; what the contract does not tell is tried out.

    Raises:
        ContractError: the trunk has no such tensor, it is not one row of floats a row, or its shape cannot be found.
    """
    with _readable(trunk, features) as path:
        return _spec(trunk, features, ApartSession(path) if too_large(trunk.size_bytes) else _run_when_called(path, features))


class _TrunkThenHead:
    """The reference of the proof: the features as the trunk's own file gives them, then the head as PyTorch computes it."""

    def __init__(self, trunk: Computation, head: TorchModel, features: str) -> None:
        self.trunk, self.head, self.features = trunk, head, features

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute one batch."""
        return next(self.over([inputs]))

    def over(self, batches: Sequence[Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
        """Compute batch by batch; a trunk that runs apart is loaded once for all."""
        taken = self.head.contract.inputs[0].name
        for inputs, given in zip(batches, run_each(self.trunk, batches), strict=True):
            yield self.head({**inputs, taken: given[self.features].astype(np.float32, copy=False)})


@contextmanager
def _readable(trunk: OnnxFile, features: str) -> Iterator[Path]:
    """Yield a file of the trunk that has ``features`` as an output: its own, or a copy for a while."""
    model = load_graph(trunk.path)
    value = _find(model.graph, trunk, features)
    if value.is_graph_output():
        yield trunk.path
        return
    value.shape = None  # what an exporter noted of an inner tensor may hold for its own batch only
    model.graph.outputs.append(value)
    with TemporaryDirectory(prefix="monograph-") as folder:
        copy = Path(folder) / trunk.path.name
        ir.save(model, copy, external_data=f"{copy.name}.data")
        yield copy


def _find(graph: ir.Graph, trunk: OnnxFile, features: str) -> ir.Value:
    """Return the tensor called ``features``, which a node of ``graph`` itself gives.

    Raises:
        ContractError: there is none.
    """
    made = {value.name: value for node in graph for value in node.outputs if value.name}
    if features in made:
        return made[features]
    outputs = [value.name or "" for value in graph.outputs]
    inner = [name for name, value in made.items() if not value.is_graph_output()]
    shown = inner[-_SHOWN_TENSORS:]
    raise ContractError(
        f"{trunk.path.name} computes no tensor {features!r}: its outputs are {', '.join(outputs)}"
        + (
            f", {'the last of ' if len(shown) < len(inner) else ''}its {len(inner)} inner tensors {', '.join(shown)}"
            if inner
            else ""
        )
        + "; name one of them"
    )


def _run_when_called(path: Path, features: str) -> Computation:
    session = cache(lambda: open_session(path).only(features))
    return lambda inputs: session()(inputs)


def _spec(trunk: OnnxFile, features: str, run: Computation) -> TensorSpec:
    """Return what the contract says of an output where that is all, else what the tensor is on random rows of two sizes."""
    symbols = {dim for spec in trunk.contract.inputs for dim in spec.shape if isinstance(dim, str)}
    declared = next((spec for spec in trunk.contract.outputs if spec.name == features), None)
    is_known = declared is not None and len(declared.shape) > 1 and isinstance(declared.shape[-1], int)
    if declared is None or not is_known or not all(isinstance(dim, int) or dim in symbols for dim in declared.shape):
        declared = _tried_out(trunk, features, run)
    spec = TensorSpec(features, declared.dtype, declared.shape)
    _check_floats(trunk, features, spec.dtype)
    if spec.shape[:1] not in {own.shape[:1] for own in trunk.contract.inputs}:
        raise _not_by_rows(trunk, features, spec.shape)
    return spec


def _tried_out(trunk: OnnxFile, features: str, run: Computation) -> TensorSpec:
    rng = np.random.default_rng(0)
    try:
        batches = [random_inputs(trunk.contract, batch_size, rng, length) for batch_size, length in _PROBED_SIZES]
        first, second = (given[features] for given in run_each(run, batches))
    except (ContractError, SourceError, WorkerError) as error:
        raise ContractError(
            f"the shape of {features!r} in {trunk.path.name} cannot be found, as that does not run on random rows: {error}"
        ) from error
    named: dict[tuple[int, ...], list[str]] = {}
    """The names that inputs give to axes of these two sizes."""
    for spec in trunk.contract.inputs:
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str):
                names = named.setdefault(tuple(inputs[spec.name].shape[axis] for inputs in batches), [])
                names += [dim] if dim not in names else []
    shape: list[Dim] = []
    for axis, sizes in enumerate(zip(first.shape, second.shape, strict=True)):
        names = named.get(sizes, [])
        # Height and width, say, are drawn alike: which of them an axis is cannot be told.
        name = names[0] if len(names) == 1 or (names and axis == 0) else f"{features}_dim_{axis}"
        shape.append(name if sizes[0] != sizes[1] else int(sizes[0]))
    return TensorSpec(features, first.dtype.name, tuple(shape))


def _check_floats(trunk: OnnxFile, features: str, dtype: str) -> None:
    if np.dtype(dtype).kind != "f":
        raise ContractError(f"{features!r} in {trunk.path.name} has dtype {dtype}, expected floats: name another tensor")


def _not_by_rows(trunk: OnnxFile, features: str, shape: Sequence[Dim]) -> ContractError:
    return ContractError(
        f"{features!r} in {trunk.path.name} has the shape [{' x '.join(map(str, shape))}], expected the rows on its first axis: "
        "name another tensor"
    )


def _joined_contract(trunk: OnnxFile, head: TorchModel, spec: TensorSpec) -> Contract:
    """Return the trunk's inputs with the head's outputs, whose dimensions are called as the trunk calls them.

    Raises:
        ContractError: the head takes something else than the trunk has, or gives what is called as an input is.
    """
    own = {each.name: each for each in trunk.contract.inputs}
    first, *further = head.contract.inputs
    if lacking := [wanted.name for wanted in further if wanted.name not in own]:
        raise ContractError(
            f"{head.name} takes {lacking[0]!r} beside the features, but {trunk.path.name} has the inputs {', '.join(own)}: "
            "call it as one of them"
        )
    dims: dict[str, Dim] = {}
    for wanted, given in (*((each, own[each.name]) for each in further), (first, spec)):
        dtype = "float32" if given is spec else given.dtype
        if wanted.dtype != dtype or not _takes(wanted.shape, given.shape, dims):
            there = replace(given, dtype=dtype).describe()
            raise ContractError(
                f"{head.name} takes {wanted.describe()}, but {trunk.path.name} has {there} for it: make the head for that"
            )
    if taken := [each.name for each in head.contract.outputs if each.name in own]:
        raise ContractError(f"{head.name} calls an output {taken[0]!r}, which is an input of {trunk.path.name}: rename it")
    outputs = tuple(
        replace(each, shape=tuple(dims.get(dim, dim) if isinstance(dim, str) else dim for dim in each.shape))
        for each in head.contract.outputs
    )
    return replace(head.contract, inputs=trunk.contract.inputs, outputs=outputs, assumed=())


def _takes(wanted: Sequence[Dim], given: Sequence[Dim], dims: dict[str, Dim]) -> bool:
    """Return whether ``wanted`` is as wide or wider than ``given``; note in ``dims`` what its symbolic dimensions are."""
    if len(wanted) != len(given):
        return False
    for own, other in zip(wanted, given, strict=True):
        if isinstance(own, int):
            if own != other:
                return False
            continue
        known = dims.setdefault(own, other)
        if isinstance(known, int) and isinstance(other, int) and known != other:
            return False
    return True


def _joined_graph(trunk: OnnxFile, head: Exported, spec: TensorSpec, contract: Contract) -> ir.Model:
    """Append the exported ``head`` to the trunk's graph; weights of both stay on disk until it is saved."""
    model = load_member(_part(trunk.path, trunk.path.name), _opset(trunk))
    graph = model.graph
    prefix = _free_prefix(graph)
    shared = _shared_values(graph, trunk, spec)
    first, *further = head.contract.inputs
    steps = () if spec.dtype == "float32" else (Cast("float32"),)
    links = [InputLink(first.name, spec.name, "float32", steps)]
    links += [InputLink(each.name, each.name, each.dtype) for each in further]
    member = _part(head.path, "the head", head.contract.output.name, tuple(links))
    part = load_member(member, _opset(trunk))
    for domain, version in part.opset_imports.items():
        if model.opset_imports.setdefault(domain, version) != version:
            raise ExportError(
                f"the head needs version {version} of the operators {domain!r}, {trunk.path.name} version "
                f"{model.opset_imports[domain]}: make the head of other operators"
            )
    tape = Tape()
    detach(part, member, shared, tape, prefix)
    for node in tape.nodes:
        node.name = f"{prefix}{node.op_type}_features"
        node.outputs[0].name = f"{node.name}_output"
    outputs, nodes, weights = list(part.graph.outputs), list(part.graph), list(part.graph.initializers.values())
    take_apart(part.graph)
    graph.outputs.clear()
    for weight in weights:
        graph.register_initializer(weight)
    graph.extend([*tape.nodes, *nodes])
    _give_outputs(graph, outputs, nodes, prefix)
    model.ir_version = max(model.ir_version, part.ir_version)
    Sequential(RemoveUnusedNodesPass(), RemoveUnusedOpsetsPass())(model)
    _name_all(graph, contract.outputs)
    keep_caches(graph)
    for key in (CONTRACT_KEY, PROOF_KEY, GOLDEN_KEY, SEEN_KEY):  # they speak of the trunk's file
        model.metadata_props.pop(key, None)
    return model


def _part(path: Path, name: str, output: str = "", links: tuple[InputLink, ...] = ()) -> Member:
    """Return a file as that which fusions load and connect."""
    return Member(name, path, "", 0, 1.0, Kind.EMBEDDING, output, links, None)


def _opset(trunk: OnnxFile) -> int:
    """Return the opset of the result: the trunk's, where it has operators of the standard at all."""
    return trunk.opset or DEFAULT_OPSET


def _shared_values(graph: ir.Graph, trunk: OnnxFile, spec: TensorSpec) -> dict[str, ir.Value]:
    """Return what the head can be fed, each with a type and a shape."""
    values = {value.name or "": value for value in graph.inputs} | {spec.name: _find(graph, trunk, spec.name)}
    for own in (*trunk.contract.inputs, spec):
        value = values[own.name]
        value.type = ir.TensorType(ir_dtype(own.dtype))
        value.shape = ir.Shape(own.shape) if own is spec or value.shape is None else value.shape
    return values


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield every value of ``graph`` and its subgraphs."""
    for part in (graph, *graph.subgraphs()):
        yield from (*part.inputs, *part.initializers.values())
    for node in graph.all_nodes():
        yield from node.outputs


def _free_prefix(graph: ir.Graph) -> str:
    """Return ``head/``, with as many strokes as it takes for no name of ``graph`` to begin so."""
    names = {item.name or "" for items in (_values(graph), graph.all_nodes()) for item in items}
    prefix = "head/"
    while any(name.startswith(prefix) for name in names):
        prefix += "/"
    return prefix


def _give_outputs(graph: ir.Graph, outputs: Sequence[ir.Value], nodes: Sequence[ir.Node], prefix: str) -> None:
    """Make ``outputs`` those of ``graph``; a value that the head only passes on, or gives twice, is copied."""
    for position, value in enumerate(outputs):
        if value.producer() not in nodes or value in graph.outputs:
            copy = ir.node("Identity", [value], name=f"{prefix}Identity_output_{position}")
            graph.append(copy)
            value = copy.outputs[0]
        graph.outputs.append(value)


def _name_all(graph: ir.Graph, outputs: Sequence[TensorSpec]) -> None:
    """Name the outputs; where the trunk still has a tensor of such a name, that one gets another. Nodes without names get one."""
    taken = {value.name or "" for value in _values(graph)}
    names = {spec.name for spec in outputs}
    for value in list(_values(graph)):
        if value.name in names:
            name = f"trunk/{value.name}"
            while name in taken:
                name = f"{name}/"
            taken.add(name)
            value.name = name
    for value, spec in zip(graph.outputs, outputs, strict=True):
        value.name, value.type, value.shape = spec.name, ir.TensorType(ir_dtype(spec.dtype)), ir.Shape(spec.shape)
    for position, node in enumerate(graph.all_nodes()):
        node.name = node.name or f"trunk/{node.op_type}_{position}"
