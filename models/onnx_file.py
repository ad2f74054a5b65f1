"""ONNX files: read with suspicion, written whole.

A file is checked before anything else touches it: it parses, the ONNX checker accepts it, and its external data lies
inside its own folder.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from monograph.errors import ContractError, SourceError
from monograph.models.contract import CONTRACT_KEY, TOKENIZER_KEY, Contract, Dim
from monograph.models.files import STAGING_PREFIX, publish, sha256_of_files, staging_folder
from monograph.models.inference import infer_contract
from monograph.models.onnx_lazy import LARGE_TENSOR_BYTES, absolute, lies_in_own_file, load_proto, save_proto
from monograph.models.onnx_normal import default_domain, densify, sparse_tensors, unify_domains, uses_long_name

# A provider's compiled binary stands in an attribute EPContext that the standard keeps for text: onnx-ir keeps its bytes.
logging.getLogger("onnx_ir.serde").addFilter(lambda record: "'ep_cache_context'" not in record.getMessage())

LARGEST_INLINE_BYTES = 1_900_000_000
"""Protobuf ends at 2 GiB; the rest of the graph needs some room."""


@dataclass(frozen=True)
class OnnxFile:
    """A checked ONNX file with its contract."""

    path: Path
    contract: Contract
    sha256: str
    """Over the file and its external data."""
    size_bytes: int
    """Of the file and its external data."""
    opset: int
    metadata: Mapping[str, str]

    @property
    def tokenizer_json(self) -> str | None:
        """The tokenizer that travels with a text model."""
        return self.metadata.get(TOKENIZER_KEY)


def read_onnx(path: Path) -> OnnxFile:
    """Check an ONNX file and read its contract; one without a contract gets an inferred one.

    Raises:
        SourceError: the file is missing, damaged, or reaches outside its folder.
        ContractError: its contract cannot be read or does not fit its graph.
    """
    proto = _checked_proto(path)
    files = [path, *_external_files(proto, path)]
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    if CONTRACT_KEY in metadata:
        contract = Contract.from_json(metadata[CONTRACT_KEY])
        _check_contract_fits(contract, proto, path)
    else:
        contract = infer_contract(proto, path.name)
    return OnnxFile(
        path=path,
        contract=contract,
        sha256=sha256_of_files(files),
        size_bytes=sum(file.stat().st_size for file in files),
        opset=next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0),
        metadata=metadata,
    )


def size_on_disk(path: Path) -> int:
    """Return the bytes of a checked file and its external data."""
    return sum(file.stat().st_size for file in model_files(path))


def external_data_files(path: Path) -> dict[str, Path]:
    """Return the external data files of a checked file, by the location that its tensors call them."""
    tensors = [
        tensor for tensor in _tensors_of(load_proto(path)) if uses_external_data(tensor) and not lies_in_own_file(tensor, path)
    ]
    locations = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return {location: path.absolute().parent / location for location in sorted(locations)}


def _checked_proto(path: Path) -> onnx.ModelProto:
    if not path.exists():
        raise SourceError(f"no such file: {path}")
    if not path.is_file():
        raise SourceError(f"{path} is a folder, expected an .onnx file (for a Hugging Face folder write hf:{path})")
    try:
        proto = load_proto(path)
    except (DecodeError, OSError) as error:
        raise SourceError(
            f"{path} ({path.stat().st_size} bytes) is not an ONNX file, or is cut short: export or copy it again"
        ) from error
    if not proto.graph.output:
        raise SourceError(f"{path} ({path.stat().st_size} bytes) holds no ONNX graph: export or copy it again")
    _external_files(proto, path)
    _check_imports(proto, path)
    try:
        _run_checker(proto, path)
    except (onnx.checker.ValidationError, UnicodeDecodeError, RuntimeError) as error:  # the latter two of damaged names and paths
        first_line = str(error).strip().splitlines()[0]
        raise SourceError(f"{path} is not a valid ONNX model: {first_line}") from error
    return proto


def _run_checker(proto: onnx.ModelProto, path: Path) -> None:
    """Run ONNX's checker, which reads a file whole: on a large one without its weights, which were checked before."""
    if not (uses_long_name(proto) or any(lies_in_own_file(tensor, path) for tensor in proto.graph.initializer)):
        onnx.checker.check_model(str(path))
        return
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    for tensor in _tensors_of(bare):
        if uses_external_data(tensor):
            tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0], raw_data=b""))
    unify_domains(bare)
    onnx.checker.check_model(bare)


def _check_imports(proto: onnx.ModelProto, path: Path) -> None:
    """Operators of one domain cannot mean two things; '' and 'ai.onnx' are one."""
    versions: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = default_domain(entry.domain)
        if versions.setdefault(domain, entry.version) != entry.version:
            raise SourceError(
                f"{path} imports the operators {domain or 'ai.onnx'!r} at the versions {versions[domain]} and {entry.version}: "
                "export it again, at one"
            )


def model_files(path: Path) -> list[Path]:
    """Return an ONNX file and its external data; raises SourceError as :func:`read_onnx` does for the latter."""
    return [path, *_external_files(load_proto(path), path)]


def _external_files(proto: onnx.ModelProto, path: Path) -> list[Path]:
    """Return the external data files, each of them inside the model's folder and long enough.

    Raises:
        SourceError: a location is absolute, leaves the folder (through a link too), is missing, or is too short.
    """
    folder = path.absolute().parent.resolve()
    needed_bytes: dict[Path, int] = {}
    for tensor in _tensors_of(proto):
        if not uses_external_data(tensor):
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        try:
            target = (folder / location).resolve()
            is_there = target.is_file()
            start, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
        except (OSError, RuntimeError, ValueError) as error:
            raise SourceError(f"{path}: tensor {tensor.name!r} has external data that cannot be found: {error}") from error
        if not location or Path(location).is_absolute() or folder not in target.parents:
            raise SourceError(
                f"{path}: tensor {tensor.name!r} wants external data at {location!r}, outside the model's folder: "
                "save the model again with its data beside it"
            )
        if not is_there:
            raise SourceError(f"{path}: external data file {location!r} is missing: copy it beside the model")
        if start < 0 or 0 < length < _size_bytes(tensor):
            raise SourceError(
                f"{path}: tensor {tensor.name!r} wants {length} bytes at {start}, its shape needs {_size_bytes(tensor)}"
            )
        end = start + max(length, _size_bytes(tensor))
        needed_bytes[target] = max(needed_bytes.get(target, 0), end)
    for target, size in needed_bytes.items():
        if target.stat().st_size < size:
            raise SourceError(
                f"{path}: external data file {target.name!r} has {target.stat().st_size} bytes, the model needs {size}: "
                "copy it again"
            )
    return sorted(set(needed_bytes) - {path.resolve()})


def _size_bytes(tensor: onnx.TensorProto) -> int:
    return int(ir.DataType(tensor.data_type).bitwidth * math.prod(tensor.dims) + 7) // 8


def _tensors_of(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [*_all_tensors(proto.graph), *(tensor for function in proto.functions for tensor in _all_tensors(function))]


def _all_tensors(graph: onnx.GraphProto | onnx.FunctionProto) -> list[onnx.TensorProto]:
    tensors = list(graph.initializer) if isinstance(graph, onnx.GraphProto) else []
    tensors += sparse_tensors(graph)
    for node in graph.node:
        for attribute in node.attribute:
            tensors.extend([attribute.t] if attribute.HasField("t") else attribute.tensors)
            for subgraph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                tensors.extend(_all_tensors(subgraph))
    return tensors


def _check_contract_fits(contract: Contract, proto: onnx.ModelProto, path: Path) -> None:
    actual = infer_contract(proto, path.name)
    remedy = f"the file was edited after it was made; remove the metadata {CONTRACT_KEY!r} or export again"
    for side, promised_specs, actual_specs in (
        ("inputs", contract.inputs, actual.inputs),
        ("outputs", contract.outputs, actual.outputs),
    ):
        promised = {spec.name: spec for spec in promised_specs}
        found = {spec.name: spec for spec in actual_specs}
        if not set(promised) <= set(found) or (side == "inputs" and set(promised) != set(found)):
            raise ContractError(
                f"{path}: the contract names the {side} {sorted(promised)} but the graph has {sorted(found)}: {remedy}"
            )
        for name, spec in promised.items():
            if spec.dtype != found[name].dtype or not _shapes_agree(spec.shape, found[name].shape):
                raise ContractError(
                    f"{path}: the contract says {spec.describe()} but the graph has {found[name].describe()}: {remedy}"
                )


def _shapes_agree(promised: tuple[Dim, ...], found: tuple[Dim, ...]) -> bool:
    """A graph may leave a shape out, or any of its sizes."""
    if not found:
        return True
    if len(promised) != len(found):
        return False
    return all(a == b for a, b in zip(promised, found, strict=True) if isinstance(a, int) and isinstance(b, int))


def load_graph(path: Path) -> ir.Model:
    """Load the graph of a checked file, sparse tensors made dense; external tensors stay on disk until they are needed.

    Raises:
        SourceError: a sparse tensor cannot be made dense.
    """
    proto = load_proto(path)
    folder = path.absolute().parent.resolve()
    for graph in (proto.graph, *proto.functions):
        for tensor in sparse_tensors(graph):
            if uses_external_data(tensor):
                load_external_data_for_tensor(tensor, str(folder))
    densify(proto, path.name)
    unify_domains(proto)
    model = ir.serde.deserialize_model(proto)
    for part in _parts(model):
        _map_external(part, lambda tensor: absolute(tensor, folder))
    return model


def _parts(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    """Yield the graph, the functions, and the subgraphs of both."""
    owners: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for owner in owners:
        yield owner
        yield from owner.subgraphs()


def _map_external(part: ir.Graph | ir.Function, change: Callable[[ir.ExternalTensor], ir.TensorProtocol]) -> None:
    """Replace the external tensors of ``part``, not of its subgraphs, by what ``change`` makes of them."""
    for value in part.initializers.values() if isinstance(part, ir.Graph) else ():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = change(value.const_value)
    for node in part:
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(name, change(attribute.value))


def write_onnx(
    model: ir.Model,
    path: Path,
    metadata: Mapping[str, str],
    prove: Callable[[Path], Mapping[str, str]],
) -> None:
    """Write ``model`` beside ``path``, prove the written file, add what the proof returns to its metadata, then rename.

    Weights go into the file itself up to 1.9 GB, else into one data file beside it.

    Raises:
        ParityError: ``prove`` refused the file; ``path`` is as it was before.
    """
    path = path.absolute()
    model.metadata_props.update(metadata)
    with staging_folder(path.parent) as folder:
        staged = folder / path.name
        _save(model, staged)
        _run_checker(load_proto(staged), staged)
        proven = prove(staged)
        if proven:
            add_metadata(staged, proven)
        for file in sorted(folder.iterdir(), key=lambda file: file == staged):
            publish(file, path.parent / file.name)


def _save(model: ir.Model, path: Path) -> None:
    """Write the weights with the model, never more than one of the large ones in memory."""
    weights = [
        value.const_value for graph in model.graphs() for value in graph.initializers.values() if value.const_value is not None
    ]
    inline = sum(tensor.nbytes for tensor in weights) <= LARGEST_INLINE_BYTES
    on_disk = {
        value.name or "": value.const_value
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor) and value.const_value.nbytes >= LARGE_TENSOR_BYTES
    }
    kept = set(map(id, on_disk.values() if inline else weights))
    for part in _parts(model):
        # What is read now keeps the new file free of its sources' folders.
        _map_external(part, lambda tensor: tensor if id(tensor) in kept else _in_memory(tensor))
    if inline:
        save_proto(ir.to_proto(model), path, on_disk)
    else:
        # The name of the folder is random: a new version never overwrites the data that the old model file still reads.
        ir.save(model, path, external_data=f"{path.name}.{path.parent.name.removeprefix(STAGING_PREFIX)}.data")


def _in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)


def add_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Add to the metadata of a checked file, over entries of the same names; the graph stays as it was proven."""
    proto = load_proto(path)
    onnx.helper.set_model_props(proto, {entry.key: entry.value for entry in proto.metadata_props} | dict(metadata))
    here = [ir.from_proto(tensor) for tensor in proto.graph.initializer if lies_in_own_file(tensor, path)]
    on_disk = {tensor.name or "": absolute(tensor, path.parent) for tensor in here if isinstance(tensor, ir.ExternalTensor)}
    named = path.with_name(f"{path.name}.named")
    save_proto(proto, named, on_disk)
    publish(named, path)
