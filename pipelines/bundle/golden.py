"""The golden batches of a bundle, in ``.npz`` files that any numpy reads.

Beside them ``golden/golden.json`` says what goes in, what is to come out, and how near it has to be on each target.

Shape letters: ``b`` batch.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from monograph.errors import SourceError
from monograph.export.lowering import LOWERINGS
from monograph.models.bounded import read_json
from monograph.pipelines.bundle.manifest import canonical_json
from monograph.pipelines.records import to_json
from monograph.runtime.golden import Golden, GoldenBatch, LeftOut
from monograph.runtime.packing import LARGEST_BYTES
from monograph.runtime.session_spec import CPU_PROVIDER
from monograph.runtime.targets import TARGETS, Target

Array = npt.NDArray[Any]
GOLDEN = "golden/golden.json"
GOLDEN_VERSION = 1
_MOST_ARRAYS = 10_000


@dataclass(frozen=True)
class BatchRecord:
    """One batch: the keys of its arrays, by the names of inputs and outputs."""

    batch_size: int
    rows: str
    """``real`` or ``random``."""
    case: str | None
    inputs: Mapping[str, str]
    expected: Mapping[str, str]


@dataclass(frozen=True)
class FormRecord:
    """The golden batches of one model file."""

    file: str
    lowering: str | None
    """How it was made from the model; None for the model itself."""
    arrays: str
    reference: str
    """What gave the outputs, in words."""
    tolerance: float
    """Largest absolute error allowed, as a share of the largest absolute value of the reference, where no target says other."""
    tolerances: Mapping[str, float]
    """By target: the same for each that the file is for."""
    batches: tuple[BatchRecord, ...]
    left_out: tuple[LeftOut, ...] = ()

    def allowed_on(self, target: str) -> float:
        """Return the tolerance on ``target``."""
        return self.tolerances.get(target, self.tolerance)


@dataclass(frozen=True)
class GoldenRecord:
    """All model files of a bundle, the model itself first."""

    forms: tuple[FormRecord, ...] = field(default=())
    version: int = GOLDEN_VERSION


def is_for(lowering: str | None, target: Target) -> bool:
    """Say whether ``target`` is one that a model lowered so, or not at all, is run on.

    A target that takes lowered models is given those of its own family; one that takes any is given all but those compiled
    for another, and quantised ones where the processor's own kernels run them.
    """
    known = LOWERINGS.get(lowering or "")
    if known is not None and known.target is not None:
        return known.target == target.name
    if target.lowering is not None:
        return lowering is not None and (lowering == target.lowering or lowering.startswith(f"{target.lowering}-"))
    is_bound_to_processor = lowering is not None and (known is None or known.is_quantised)
    return not is_bound_to_processor or target.provider == CPU_PROVIDER


def write_form(folder: Path, file: str, lowering: str | None, golden: Golden, tolerances: Mapping[str, float]) -> FormRecord:
    """Write the arrays of one model file's golden batches and return their record.

    Args:
        folder: the bundle.
        file: the model's path inside it.
        lowering: how it was made.
        golden: as the model file carries it.
        tolerances: those that were fixed for a target instead of the proof's own.
    """
    arrays: dict[str, Array] = {}
    batches = tuple(_write_batch(position, batch, arrays) for position, batch in enumerate(golden.batches))
    place = f"golden/{file}.npz"
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    with (folder / place).open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # its flag allow_pickle is no array of ours
    taken = [target.name for target in TARGETS.values() if is_for(lowering, target)]
    allowed = {name: tolerances.get(name, golden.tolerance) for name in sorted(taken)}
    return FormRecord(file, lowering, place, golden.reference, golden.tolerance, allowed, batches, golden.left_out)


def _write_batch(position: int, batch: GoldenBatch, arrays: dict[str, Array]) -> BatchRecord:
    names: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for side, (what, values) in enumerate((("input", batch.inputs), ("expected", batch.expected))):
        for index, (name, array) in enumerate(values.items()):
            key = f"batch_{position}.{what}_{index}"
            names[side][name] = key
            arrays[key] = np.asarray(array, np.str_) if array.dtype.kind in "OST" else array
    return BatchRecord(batch.batch_size, batch.rows, batch.case, *names)


def write_golden(folder: Path, forms: Sequence[FormRecord]) -> None:
    """Write the index of all golden batches."""
    (folder / GOLDEN).write_text(canonical_json(json.loads(to_json(GoldenRecord(tuple(forms))))), encoding="utf-8")


def read_golden_record(folder: Path) -> GoldenRecord:
    """Read the index of a bundle whose files are what its manifest says.

    Raises:
        SourceError: it is missing, damaged, or of a newer version.
    """
    path = folder / GOLDEN
    if not path.is_file():
        raise SourceError(f"{folder} holds no {GOLDEN}: it is no bundle that can be run again; write it by monograph bundle")
    try:
        record = TypeAdapter(GoldenRecord).validate_python(read_json(path))
    except (OSError, ValidationError, ValueError) as error:
        raise SourceError(f"{path} is damaged ({' '.join(str(error).split())[:120]}): write the bundle again") from error
    if record.version != GOLDEN_VERSION:
        raise SourceError(f"{path} is of version {record.version}, this monograph reads {GOLDEN_VERSION}: update monograph")
    for form in record.forms:
        if not any(batch.expected for batch in form.batches):
            raise SourceError(
                f"{path} holds no golden batch for {form.file}, so nothing would be compared: write the bundle again"
            )
        if not all(0 < value < math.inf for value in (form.tolerance, *form.tolerances.values())):
            raise SourceError(f"{path} has a tolerance for {form.file} that is no positive number: write the bundle again")
    return record


def read_form(folder: Path, form: FormRecord) -> Golden:
    """Return the golden batches of one model file.

    Raises:
        SourceError: their arrays are damaged, too large, or not those of the index.
    """
    path = folder / form.arrays
    arrays = _read_arrays(path)
    try:
        batches = tuple(
            GoldenBatch(
                batch.batch_size,
                batch.rows,
                {name: arrays[key] for name, key in batch.inputs.items()},
                {name: arrays[key] for name, key in batch.expected.items()},
                batch.case,
            )
            for batch in form.batches
        )
    except KeyError as error:
        raise SourceError(f"{path} lacks the array {error}: write the bundle again") from error
    return Golden(form.reference, form.tolerance, "", {}, batches, form.left_out)


def _read_arrays(path: Path) -> dict[str, Array]:
    """Read an ``.npz`` file as :func:`write_form` writes it: not compressed, so that it takes no more memory than disk."""
    arrays: dict[str, Array] = {}
    left = LARGEST_BYTES
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                left -= entry.file_size
                if left < 0 or len(arrays) == _MOST_ARRAYS or entry.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{entry.filename} is compressed, or its arrays take more than {LARGEST_BYTES} bytes")
                arrays[entry.filename.removesuffix(".npy")] = _array(archive.read(entry))
    except (OSError, zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
        raise SourceError(f"{path} is damaged ({' '.join(str(error).split())[:120]}): write the bundle again") from error
    return arrays


def _array(data: bytes) -> Array:
    """Return the array of a ``.npy`` file; nothing is unpickled, and no more memory taken than its bytes."""
    stream = BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an array of another version of the format")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise ValueError(f"an array of {dtype} {list(shape)} in {len(data)} bytes")
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if is_fortran else "C")
