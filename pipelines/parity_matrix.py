"""The parity matrix: the outputs of each target against those of cpu and of PyTorch, on the same rows."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import ConfigError, ParityError
from monograph.models.contract import Contract, random_inputs
from monograph.models.data.rows import Rows
from monograph.models.data.stream import RowStream
from monograph.models.onnx_file import OnnxFile
from monograph.models.sources import Scheme, parse_source
from monograph.runtime.agreement import agreement
from monograph.runtime.job import RawRun
from monograph.runtime.results import Agreement, Measurement

Array = npt.NDArray[Any]
REFERENCE_TARGET = "cpu"
_RANDOM_ROWS = 32
_BATCH_ROWS = 32


@dataclass
class Outputs:
    """What each target gave for one model's rows, collected as the targets run."""

    of_target: dict[str, Array] = field(default_factory=dict)

    def keep(self, target: str, run: RawRun) -> None:
        """Keep a run's outputs."""
        if run.outputs is not None:
            self.of_target[target] = run.outputs


def matrix_targets(on: Sequence[str]) -> list[str]:
    """Return the targets to run: cpu first, which the others are compared with."""
    return [REFERENCE_TARGET, *(name for name in on if name != REFERENCE_TARGET)]


def matrix_rows(rows: Rows | RowStream | None, contract: Contract) -> Rows | RowStream:
    """Return the rows to compare on: those given, else random ones, the same for all targets."""
    return rows or Rows(random_inputs(contract, _RANDOM_ROWS, np.random.default_rng(0)), origin="random rows")


def add_agreements(
    measurements: Sequence[Measurement], outputs: Outputs, file: OnnxFile, rows: Rows | RowStream, reference: str | None
) -> list[Measurement]:
    """Return one model's measurements with how far each target lies from cpu and, where ``reference`` is given, from PyTorch.

    Raises:
        InputError: the reference cannot be loaded.
        ParityError: outputs differ in shape.
    """
    has_classes = file.contract.kind.has_classes
    with _torch_outputs(reference, file.contract, rows) as torch_outputs:
        expected = {REFERENCE_TARGET: outputs.of_target.get(REFERENCE_TARGET), f"PyTorch ({reference})": torch_outputs}
        made = []
        for measurement in measurements:
            got = outputs.of_target.get(measurement.target)
            compared: tuple[Agreement, ...] = ()
            if got is not None:
                compared = tuple(
                    _compare(measurement, values, got, name, has_classes)
                    for name, values in expected.items()
                    if values is not None and name != measurement.target
                )
            made.append(replace(measurement, parity=compared))
        return made


def _compare(measurement: Measurement, expected: Array, got: Array, name: str, has_classes: bool) -> Agreement:
    try:
        return agreement(expected, got, name, has_classes=has_classes)
    except ParityError as error:
        raise ParityError(f"{measurement.model} on {measurement.target}: {error}") from error


def check_reference(reference: str | None) -> None:
    """Refuse a reference that is no PyTorch source, before anything runs.

    Raises:
        ConfigError: it is an ONNX file.
        SourceError: it names no source.
    """
    if reference is not None and parse_source(reference).scheme is Scheme.ONNX:
        raise ConfigError(f"--reference {reference} is an ONNX file: give the PyTorch source, py:package.module:factory or hf:ID")


@contextmanager
def _torch_outputs(reference: str | None, contract: Contract, rows: Rows | RowStream) -> Iterator[Array | None]:
    """Run the PyTorch source on all rows; its outputs lie on disk while the block lasts."""
    if reference is None:
        yield None
        return
    model = _load(reference)
    names = [spec.name for spec in model.contract.inputs]
    own = [spec.name for spec in contract.inputs]
    if len(names) != len(own):
        raise ConfigError(f"--reference {reference} takes {', '.join(names)}, the ONNX file {', '.join(own)}: give its source")
    # PyTorch is given its inputs by position, so only their order counts where the names differ.
    taken = dict(zip(names, names if set(names) == set(own) else own, strict=True))
    row_count = len(rows) if isinstance(rows, Rows) else rows.row_count
    with tempfile.TemporaryDirectory(prefix="monograph-reference-") as folder:
        outputs: Array | None = None
        start = 0
        for batch in rows.batches(_BATCH_ROWS) if isinstance(rows, Rows) else rows.parts(_BATCH_ROWS):
            part = _run(model, {name: batch.inputs[column] for name, column in taken.items()})
            if outputs is None:
                shape = (row_count, *part.shape[1:])
                outputs = np.lib.format.open_memmap(Path(folder) / "outputs.npy", mode="w+", dtype=part.dtype, shape=shape)
            outputs[start : start + len(batch)] = part
            start += len(batch)
        yield outputs


def _run(model: Any, inputs: Mapping[str, Array]) -> Array:
    return np.asarray(model(inputs)[model.contract.output.name])


def _load(reference: str) -> Any:
    source = parse_source(reference)
    if source.scheme is Scheme.HUGGING_FACE:
        from monograph.models.huggingface import load_huggingface

        return load_huggingface(source.location)
    from monograph.models.sources import load_python_model

    return load_python_model(source)
