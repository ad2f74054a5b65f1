"""The model files of a bundle: the model, and what was lowered from it for a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monograph.errors import ConfigError, SourceError
from monograph.export.lowering import LOWERING_KEY, lowering_of
from monograph.models.bounded import parse_json
from monograph.models.contract import CONTRACT_KEY, TOKENIZER_KEY, Contract
from monograph.models.digest import file_sha256, graph_sha256
from monograph.models.files import is_plain_name
from monograph.models.onnx_file import external_data_files, read_onnx
from monograph.models.seen import SEEN_KEY, SeenRows, read_seen
from monograph.pipelines.verify import changes_since_proof
from monograph.runtime.golden import GOLDEN_KEY, Golden, read_golden
from monograph.runtime.session import open_session

MODEL = "model.onnx"
ORT_FORMAT = "ort"
_OWN_FILES = (CONTRACT_KEY, TOKENIZER_KEY, GOLDEN_KEY, SEEN_KEY)
"""Metadata that a bundle holds as files of their own, or, of seen rows, by a digest."""


@dataclass(frozen=True)
class Form:
    """One model file, checked and as it was proven."""

    path: Path
    place: str
    """Its path inside the bundle."""
    contract: Contract
    sha256: str
    size_bytes: int
    metadata: Mapping[str, str]
    golden: Golden
    lowering: str | None
    """How it was made from the bundle's model; None for that itself."""
    beside: Mapping[str, Path]
    """Files that it reads, by their path inside the bundle."""
    seen: SeenRows

    @property
    def records(self) -> dict[str, Any]:
        """What the file says of how it was made, by subject: ``fusion``, ``lowering``, ``proof``."""
        own = {key: text for key, text in self.metadata.items() if key.startswith("monograph.") and key not in _OWN_FILES}
        return {key.removeprefix("monograph."): _json_or_text(text) for key, text in own.items()}


def read_model(path: Path) -> Form:
    """Read the model that is to ship.

    Raises:
        InputError: it cannot be read, is not as it was proven, or holds no golden batches.
    """
    file = read_onnx(path)
    golden = _golden_of(file.metadata, path)
    changes = changes_since_proof(golden, path)
    if changes:
        raise SourceError(f"{path} is not as it was proven, so it does not ship: {changes[0]}")
    beside = {_inside(location, path): source for location, source in external_data_files(path).items()}
    seen_file = _seen_file(file.metadata)
    if seen_file is not None:
        beside[_inside(seen_file, path)] = path.absolute().parent / seen_file
    return Form(path, MODEL, file.contract, file.sha256, file.size_bytes, file.metadata, golden, None, beside, read_seen(file))


def read_lowered(path: Path, model: Form) -> Form:
    """Read a file that was lowered from ``model``.

    Raises:
        InputError: likewise; or it was lowered from another model, or is none that was lowered.
    """
    form = _read_ort(path, model) if path.suffix == ".ort" else _read_lowered_onnx(path, model)
    folder = "lowered/"
    return replace(form, place=folder + path.name, beside={folder + place: source for place, source in form.beside.items()})


def _read_lowered_onnx(path: Path, model: Form) -> Form:
    form = read_model(path)
    name = lowering_of(read_onnx(path))
    if name is None:
        raise ConfigError(f"{path} was not lowered from anything: make it by monograph lower {model.path} --to … -o {path}")
    sources = _sources(form.metadata)
    if model.sha256 not in sources:
        told = f"{sources[0][:12]}…" if sources else "nothing that it names"
        raise ConfigError(
            f"{path} was lowered from a model with SHA-256 {told}, and {model.path} has {model.sha256[:12]}…: lower it from this "
            "one again"
        )
    return replace(form, lowering=name)


def _read_ort(path: Path, model: Form) -> Form:
    """Read ONNX Runtime's format for phones, which keeps the metadata of the file that it was made from."""
    if not path.is_file():
        raise SourceError(f"no such file: {path}")
    metadata = open_session(path).metadata
    golden = _golden_of(metadata, path)
    if golden.graph_sha256 != graph_sha256(model.path):
        raise ConfigError(f"{path} was made from another model than {model.path}: make it by monograph lower … --to ort again")
    return replace(
        model, path=path, contract=Contract.from_json(metadata[CONTRACT_KEY]), sha256=file_sha256(path), metadata=metadata,
        size_bytes=path.stat().st_size, golden=golden, lowering=ORT_FORMAT, beside={},
    )  # fmt: skip


def _golden_of(metadata: Mapping[str, str], path: Path) -> Golden:
    golden = read_golden(metadata, str(path))
    if golden is None or not golden.batches:
        raise SourceError(
            f"{path} holds no golden batches, so no target could be checked by them: write it again, monograph export {path} "
            "-o MODEL.onnx --data D"
        )
    return golden


def _sources(metadata: Mapping[str, str]) -> list[str]:
    """Return the SHA-256 of the model that was lowered, and of those that it was lowered from in turn."""
    digests = []
    record = _json_or_text(metadata.get(LOWERING_KEY, ""))
    while isinstance(record, dict):
        digests.append(str(record.get("source_sha256")))
        record = record.get("before")
    return digests


def _seen_file(metadata: Mapping[str, str]) -> str | None:
    record = _json_or_text(metadata.get(SEEN_KEY, ""))
    return str(record["file"]) if isinstance(record, dict) and "file" in record else None


def _inside(location: str, path: Path) -> str:
    if not all(is_plain_name(part) for part in location.split("/")):
        raise SourceError(
            f"{path} keeps data at {location!r}, which no bundle can hold: save the model again with its data beside it"
        )
    return location


def _json_or_text(text: str) -> Any:
    try:
        return parse_json(text)
    except (ValueError, RecursionError):
        return text
