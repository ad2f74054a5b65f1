"""ONNX files: read with suspicion, written whole.

A file is checked before anything else touches it: it parses, the ONNX checker accepts it, and its external data lies
inside its own folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx.external_data_helper import uses_external_data

from monograph.errors import ContractError, SourceError
from monograph.models.contract import CONTRACT_KEY, TOKENIZER_KEY, Contract, Dim
from monograph.models.files import STAGING_PREFIX, publish, sha256_of_files, staging_folder
from monograph.models.inference import infer_contract

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


def _checked_proto(path: Path) -> onnx.ModelProto:
    if not path.exists():
        raise SourceError(f"no such file: {path}")
    if not path.is_file():
        raise SourceError(f"{path} is a folder, expected an .onnx file (for a Hugging Face folder write hf:{path})")
    try:
        proto = onnx.load(str(path), format="protobuf", load_external_data=False)
    except (DecodeError, OSError) as error:
        raise SourceError(
            f"{path} ({path.stat().st_size} bytes) is not an ONNX file, or is cut short: export or copy it again"
        ) from error
    if not proto.graph.output:
        raise SourceError(f"{path} ({path.stat().st_size} bytes) holds no ONNX graph: export or copy it again")
    _external_files(proto, path)
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, UnicodeDecodeError, RuntimeError) as error:  # the latter two of damaged names and paths
        first_line = str(error).strip().splitlines()[0]
        raise SourceError(f"{path} is not a valid ONNX model: {first_line}") from error
    return proto


def _external_files(proto: onnx.ModelProto, path: Path) -> list[Path]:
    """Return the external data files, each of them inside the model's folder and long enough.

    Raises:
        SourceError: a location is absolute, leaves the folder (through a link too), is missing, or is too short.
    """
    folder = path.absolute().parent.resolve()
    needed_bytes: dict[Path, int] = {}
    for tensor in [*_all_tensors(proto.graph), *(tensor for function in proto.functions for tensor in _all_tensors(function))]:
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
    return sorted(needed_bytes)


def _size_bytes(tensor: onnx.TensorProto) -> int:
    return int(ir.DataType(tensor.data_type).bitwidth * math.prod(tensor.dims) + 7) // 8


def _all_tensors(graph: onnx.GraphProto | onnx.FunctionProto) -> list[onnx.TensorProto]:
    tensors = list(graph.initializer) if isinstance(graph, onnx.GraphProto) else []
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
    """Load the graph of a checked file; external tensors stay on disk until they are needed.

    Raises:
        SourceError: the graph holds sparse initializers, which onnx-ir would drop without a word, or a function holds
            external data, which would be left behind.
    """
    proto = onnx.load(str(path), format="protobuf", load_external_data=False)
    if proto.graph.sparse_initializer:
        names = ", ".join(tensor.values.name for tensor in proto.graph.sparse_initializer[:3])
        raise SourceError(f"{path} has sparse initializers ({names}): densify them first, for example by onnxruntime's optimizer")
    if any(uses_external_data(tensor) for function in proto.functions for tensor in _all_tensors(function)):
        raise SourceError(f"{path} has external data inside a function: inline its functions first, by onnx.inliner")
    return ir.load(path)


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
        onnx.checker.check_model(str(staged))
        proven = prove(staged)
        if proven:
            _add_metadata(staged, proven)
        for file in sorted(folder.iterdir(), key=lambda file: file == staged):
            publish(file, path.parent / file.name)


def _save(model: ir.Model, path: Path) -> None:
    size_bytes = sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )
    if size_bytes > LARGEST_INLINE_BYTES:
        # The name of the folder is random: a new version never overwrites the data that the old model file still reads.
        ir.save(model, path, external_data=f"{path.name}.{path.parent.name.removeprefix(STAGING_PREFIX)}.data")
        return
    # Reading external tensors now keeps the new file free of its sources' folders.
    ir.external_data.load_to_model(model)
    for node in model.graph.all_nodes():
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(attribute.value.numpy().copy()))
    ir.save(model, path)


def _add_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    proto = onnx.load(str(path), format="protobuf", load_external_data=False)
    onnx.helper.set_model_props(proto, {entry.key: entry.value for entry in proto.metadata_props} | dict(metadata))
    path.write_bytes(proto.SerializeToString())
