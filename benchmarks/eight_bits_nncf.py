"""NNCF's accuracy control on one ONNX file, by an interpreter that has ``nncf``; run by ``eight_bits.py``, not by hand.

``python benchmarks/eight_bits_nncf.py REQUEST.json`` reads ``Request``'s fields, writes the quantised file and, beside it, how
often models were evaluated, on how many rows, and how many sessions were opened. It imports neither monograph nor torch.

NNCF as its users get it, with settings of its own: ``model_type`` of transformers; ``overflow_fix`` for processors whose 8-bit
products saturate (half of the range of weights, as the portable files have it); and one scale for all channels of activations,
without which ONNX Runtime runs no depthwise convolution of its. Its decision is on the
point estimate of the drop; it knows no bound. Its telemetry goes out by default and is off here.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ |= {"NNCF_CI": "1", "CI": "true", "ORT_DISABLE_TELEMETRY": "1"}  # before the import: no telemetry

import nncf  # type: ignore[import-not-found]
import numpy as np
import onnx
import onnxruntime as ort
from nncf.quantization.advanced_parameters import QuantizationParameters  # type: ignore[import-not-found]

Array = np.ndarray[Any, Any]
_BATCH_ROWS = 32
_SAVE_EVERY_S = 5.0


@dataclass(frozen=True)
class Request:
    """What is asked, and where things lie."""

    model: str
    calibration: str
    """npz of the model's inputs."""
    validation: str
    """npz of the model's inputs, and ``y``: int64 ``[n]``, or ``[n, t]`` for a decision a step, padded with -1."""
    max_drop: float
    """As a share of the rows."""
    output: str
    is_transformer: bool = False


@dataclass
class Counts:
    """What the search cost so far."""

    evaluations: int = 0
    """Of a model on more than one row."""
    rows_evaluated: int = 0
    sessions: int = 0
    seconds: float = 0.0
    is_done: bool = False


class Validation:
    """NNCF's ``validation_fn``: the share of rows that are right, and for each row whether it is."""

    def __init__(self, path: Path) -> None:
        self.counts, self._path, self._began, self._saved = Counts(), path, time.monotonic(), 0.0

    def __call__(self, model: onnx.ModelProto, items: Iterable[dict[str, Array]]) -> tuple[float, list[float]]:
        """Evaluate ``model`` on labelled rows."""
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        right: list[float] = []
        for batch in _batches(items):
            inputs = {value.name: np.concatenate([item[value.name] for item in batch]) for value in session.get_inputs()}
            labels = np.concatenate([item["y"] for item in batch])
            right += is_right(session.run(None, inputs)[0], labels).astype(float).tolist()
        self.counts.sessions += 1
        self.counts.evaluations += len(right) > 1
        self.counts.rows_evaluated += len(right)
        self.save()
        return float(np.mean(right)), right

    def save(self, *, is_done: bool = False) -> None:
        """Write the counts down now and then, so that a search that is stopped leaves them."""
        self.counts.seconds, self.counts.is_done = time.monotonic() - self._began, is_done
        if is_done or self.counts.seconds - self._saved > _SAVE_EVERY_S:
            self._saved = self.counts.seconds
            self._path.write_text(json.dumps(asdict(self.counts)), encoding="utf-8")


def is_right(outputs: Array, labels: Array) -> Array:
    """Return which rows are right: their best class, or all of the classes that CTC leaves of the best of each step."""
    best = outputs.argmax(-1)
    if best.ndim == 1:
        return np.asarray(best == labels)
    return np.array([read(steps) == [one for one in label if one >= 0] for steps, label in zip(best, labels, strict=True)])


def read(steps: Array) -> list[int]:
    """Return what CTC reads: no repetitions, then no blanks, which are class 0 (Graves et al. 2006)."""
    return [int(one) for place, one in enumerate(steps) if one != 0 and (place == 0 or one != steps[place - 1])]


def _batches(items: Iterable[dict[str, Array]]) -> Iterator[list[dict[str, Array]]]:
    batch: list[dict[str, Array]] = []
    for item in items:
        batch.append(item)
        if len(batch) == _BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _dataset(path: str) -> Any:
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    count = len(next(iter(arrays.values())))
    items = [{name: array[row : row + 1] for name, array in arrays.items()} for row in range(count)]
    return nncf.Dataset(items, lambda item: {name: array for name, array in item.items() if name != "y"})


def main() -> int:
    """Quantise, and write the file and the counts."""
    request = Request(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    validation = Validation(Path(request.output).with_suffix(".counts.json"))
    made = nncf.quantize_with_accuracy_control(
        onnx.load(request.model),
        calibration_dataset=_dataset(request.calibration),
        validation_dataset=_dataset(request.validation),
        validation_fn=validation,
        max_drop=request.max_drop,
        drop_type=nncf.DropType.ABSOLUTE,
        model_type=nncf.ModelType.TRANSFORMER if request.is_transformer else None,
        advanced_quantization_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.ENABLE,
            # By default depthwise convolutions get a scale a channel of activations, which ONNX Runtime's QLinearConv refuses.
            activations_quantization_params=QuantizationParameters(per_channel=False),
        ),
    )
    onnx.save(made, request.output)
    validation.save(is_done=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
