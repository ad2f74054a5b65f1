"""Static quantisation by ONNX Runtime: activations calibrated on rows, QuantizeLinear and DequantizeLinear around nodes."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnxruntime.quantization import CalibrationDataReader, DynamicQuantConfig, StaticQuantConfig, quantize, quantize_static

from monograph.errors import ExportError
from monograph.export.opset import convert_opset
from monograph.models.contract import Contract
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import load_graph

QUANTISING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "DequantizeLinear"})
"""Operators of which a quantised graph holds one at least."""
_OLDEST_OPSET = 13
"""QuantizeLinear and DequantizeLinear have a scale a channel since then; ONNX Runtime's tools write it into older graphs too."""


class RowReader(CalibrationDataReader):  # type: ignore[misc] # ONNX Runtime's tools carry no types
    """Rows in batches of the contract's fixed size, the last one filled up from the first rows."""

    def __init__(self, rows: Rows, contract: Contract) -> None:
        first = contract.inputs[0].shape[0] if contract.inputs[0].shape else 1
        self._batch_size = first if isinstance(first, int) else 1
        self._rows = rows
        self._start = 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch, or None after the last."""
        if self._start >= len(self._rows):
            return None
        indices = np.arange(self._start, self._start + self._batch_size) % len(self._rows)
        self._start += self._batch_size
        return dict(self._rows.take(indices).inputs)


def quantise(path: Path, config: StaticQuantConfig | DynamicQuantConfig, out: Path, ranges: Path | None = None) -> Path:
    """Quantise the float model ``path`` by ``config``, calibration included where it needs any; return ``out``.

    ``ranges`` is a file that keeps what a calibration found, for the next of the same graph and rows.

    Raises:
        ExportError: ONNX Runtime cannot quantise it, or its opset is too old and cannot be converted.
    """
    graph = load_graph(path)
    if graph.opset_imports[""] < _OLDEST_OPSET:
        ir.external_data.load_to_model(graph)
        convert_opset(graph, path.name, _OLDEST_OPSET)
        ir.save(graph, path)
    with quiet_tools():
        try:
            if ranges is None or not _KEEPS_RANGES:
                quantize(str(path), str(out), config)
            else:
                _quantise_with_ranges(path, config, out, ranges)
        except (ValueError, RuntimeError, TypeError, KeyError, onnx.checker.ValidationError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ExportError(f"ONNX Runtime cannot quantise the model: {reason}") from error
    return out


_KEEPS_RANGES = "calibration_cache_path" in inspect.signature(quantize_static).parameters
"""Since ONNX Runtime 1.31; older ones calibrate each time."""


def _quantise_with_ranges(path: Path, config: StaticQuantConfig, out: Path, ranges: Path) -> None:
    """Do what ``quantize`` does with ``config``, which has no field for the file of ranges."""
    settings = dict(vars(config))
    reader = settings.pop("calibration_data_reader")
    quantize_static(str(path), str(out), reader, calibration_cache_path=str(ranges), **settings)


@contextlib.contextmanager
def quiet_tools() -> Iterator[None]:
    """ONNX Runtime's tools print and log advice on steps that were done already; what goes wrong is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
