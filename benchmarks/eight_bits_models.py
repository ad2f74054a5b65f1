"""The six models of ``eight_bits.py``, each a float ONNX file with rows of its own: made once, kept by the hash of their recipe.

- ``lite0``: EfficientNet-Lite0 with ImageNet weights and a new head for clothes (``monograph.adapt_model``, head only), at 64
  pixels.
- ``minilm``: all-MiniLM-L6-v2 with a new head for tweets (``monograph.adapt_model``, head only), cut at 32 tokens.
- ``mobile``: the student of ``pipelines/mobile.yaml``, taught on labels alone.
- ``separable``: ``separable_conv`` of ``monograph.models.students``.
- ``transformer``: a small transformer that learns from ``minilm`` (``monograph.distill_model``).
- ``reader``: PP-OCR's text recogniser as the wheel ``rapidocr`` has it (Apache-2.0), on lines of text drawn here. What it decides
  is the text that CTC reads.

Rows are disjoint: training, ``calibration`` (of the training rows), ``validation`` (all choices) and ``test`` (figures alone).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from eight_bits_text import draw_lines

from monograph.errors import MissingPackageError
from monograph.export.trace import export_torch
from monograph.models.contract import CONTRACT_KEY, Contract, Kind, TensorSpec
from monograph.models.data.fashion import fashion_mnist
from monograph.models.data.rows import Rows
from monograph.models.data.split import stratified_split
from monograph.models.data.tweets import SENTIMENTS, tweets
from monograph.models.files import staging_folder
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.models.students import STUDENTS
from monograph.models.torch_model import TorchModel
from monograph.pipelines.adapt import adapt_model
from monograph.pipelines.data import DataSpec
from monograph.pipelines.distill import distill_model
from monograph.pipelines.training import TrainingSettings, train
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
FLOAT_FILE = "float.onnx"
ROW_PARTS = ("calibration", "validation", "test")
_BATCH_ROWS = 32
_CALIBRATION_ROWS = 256
_TOKENS = 32
_READER_WIDTH = 192
_PADDING = -1
_RECIPE_VERSION = 3


@dataclass(frozen=True)
class Prepared:
    """A float model with the rows that it is calibrated, searched and tested on."""

    name: str
    file: OnnxFile
    rows: Mapping[str, Path]
    """npz by the name of the part, as the model takes them; labels int64 ``[n]``, of the reader ``[n, t]`` padded with -1."""
    is_text: bool = False

    @property
    def reads_steps(self) -> bool:
        """Whether it gives classes a step, which CTC reads, and not classes a row."""
        return self.name == "reader"

    def load(self, part: str, count: int | None = None) -> Rows:
        """Return the rows of ``part``, the first ``count`` of them."""
        rows = Rows.load(self.rows[part])
        return rows.take(slice(0, count))


@dataclass(frozen=True)
class _Recipe:
    make: Callable[[Path, Path], None]
    """Write the float file and the parts of the rows into a folder, with another to work in."""
    settings: Mapping[str, Any]
    is_text: bool = False


def prepare(name: str, folder: Path) -> Prepared:
    """Return the model called ``name``, made where ``folder`` does not hold it yet.

    Raises:
        MissingPackageError: what carries its weights or rows is not installed.
    """
    recipe = RECIPES[name]
    text = json.dumps([name, _RECIPE_VERSION, recipe.settings], sort_keys=True)
    kept = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with staging_folder(folder) as staging:
            made, work = staging / "made", staging / "work"
            made.mkdir()
            work.mkdir()
            recipe.make(made, work)
            made.rename(kept)
    return Prepared(name, read_onnx(kept / FLOAT_FILE), {part: kept / f"{part}.npz" for part in ROW_PARTS}, recipe.is_text)


def decide(model: Prepared, path: Path, rows: Rows) -> list[Any]:
    """Return what the file at ``path`` decides for each row, by ONNX Runtime here: a class, or the classes that were read."""
    session = open_session(path, spinning=False)
    name = model.file.contract.output.name
    made: list[Any] = []
    for batch in rows.batches(_BATCH_ROWS):
        made += decisions(session(batch.inputs)[name].argmax(-1))
    return made


def decisions(best: Array) -> list[Any]:
    """Return decisions of the best classes ``[n]``, or ``[n, t]`` of steps."""
    return best.tolist() if best.ndim == 1 else [read_steps(steps) for steps in best]


def read_steps(steps: Array) -> list[int]:
    """Return what CTC reads: no repetitions, then no blanks, which are class 0 (Graves et al. 2006)."""
    changes = np.concatenate([[True], steps[1:] != steps[:-1]])
    return [int(one) for one in steps[changes & (steps != 0)]]


def right(made: list[Any], rows: Rows) -> Array:
    """Return which decisions are right, bool ``[n]``."""
    labels = rows.required_labels()
    if labels.ndim == 1:
        return np.asarray(np.array(made) == labels)
    return np.array(
        [one == [part for part in label if part != _PADDING] for one, label in zip(made, labels.tolist(), strict=True)]
    )


def _save(rows: Rows, parts: Mapping[str, slice | Array], folder: Path) -> None:
    for part, indices in parts.items():
        chosen = rows.take(indices)
        if part == "calibration":
            chosen = replace(chosen, labels=None)
        chosen.save(folder / f"{part}.npz")


def _clothes(counts: Mapping[str, int]) -> dict[str, Array]:
    """Return which rows of Fashion-MNIST each part has."""
    order = np.random.default_rng(0).permutation(70_000)
    ends = np.cumsum(list(counts.values()))
    return dict(zip(counts, np.split(order, ends)[: len(counts)], strict=True))


_CLOTHES = {"train": 20_000, "validation": 4_000, "test": 6_000}
_LARGE_CLOTHES = {"train": 3_000, "choice": 600, "probe": 600, "validation": 3_000, "test": 6_000}


def _lite0(made: Path, work: Path) -> None:
    data, parts = fashion_mnist(), _clothes(_LARGE_CLOTHES)
    for part, indices in parts.items():
        colour = np.repeat(data["x"][indices][..., None], 3, axis=3)
        np.savez(work / f"{part}.npz", x=colour, y=data["y"][indices], class_names=data["class_names"])
    adapted = adapt_model(
        "py:monograph.models.examples:efficientnet_lite0",
        DataSpec(str(work / "train.npz")),
        work / "adapted",
        validation=DataSpec(str(work / "choice.npz")),
        test=DataSpec(str(work / "probe.npz")),
        method="head",
        arguments={"size": 64},
        on=(),
    )
    adapted.onnx.rename(made / FLOAT_FILE)
    file = read_onnx(made / FLOAT_FILE)
    for part, name in (("calibration", "train"), ("validation", "validation"), ("test", "test")):
        limit = _CALIBRATION_ROWS if part == "calibration" else None
        DataSpec(str(work / f"{name}.npz")).load(file.contract, None, limit=limit).save(made / f"{part}.npz")


def _student(made: Path, work: Path, *, network: str, arguments: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    data = fashion_mnist()
    module, contract = STUDENTS[network](input_shape=(1, 28, 28), **arguments)
    contract = contract.with_class_names(tuple(map(str, data["class_names"])))
    pixels = data["x"][:, None].astype(np.float32) / 255
    rows = Rows({contract.inputs[0].name: pixels}, data["y"])
    parts = _clothes(_CLOTHES)
    model = TorchModel(module, contract, network)
    train(model, rows.take(parts["train"][2_000:]), rows.take(parts["train"][:2_000]), TrainingSettings(**settings))
    export_torch(model, made / FLOAT_FILE)
    _save(rows, {**parts, "calibration": parts["train"][-_CALIBRATION_ROWS:]}, work)
    for part in ROW_PARTS:
        (work / f"{part}.npz").rename(made / f"{part}.npz")


_TWEETS = {"train": 5_000, "choice": 1_000, "probe": 1_000, "validation": 4_000, "test": 6_000}


def _tweets(work: Path) -> dict[str, Path]:
    """Write the tweets of each part as JSON lines; no tweet stands in two."""
    table = tweets()
    _, once = np.unique(table["text"], return_index=True)
    once.sort()
    drawn = stratified_split(Rows({"row": once}, table["y"][once]), _TWEETS, seed=0)
    files = {}
    for name, part in drawn.items():
        files[name] = work / f"{name}.jsonl"
        rows = [{"text": str(table["text"][row]), "label": SENTIMENTS[table["y"][row]]} for row in part.inputs["row"]]
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return files


def _write_tweets(files: Mapping[str, Path], made: Path) -> None:
    file = read_onnx(made / FLOAT_FILE)
    for part, name in (("calibration", "train"), ("validation", "validation"), ("test", "test")):
        limit = _CALIBRATION_ROWS if part == "calibration" else None
        DataSpec(str(files[name])).load(file.contract, file.tokenizer_json, limit=limit).save(made / f"{part}.npz")


def _adapt_minilm(files: Mapping[str, Path], out: Path) -> Path:
    return adapt_model(
        "py:monograph.models.examples:minilm",
        str(files["train"]),
        out,
        validation=str(files["choice"]),
        test=str(files["probe"]),
        method="head",
        arguments={"max_length": _TOKENS},
        allow=("duplicates",),
        on=(),
    ).onnx


def _minilm(made: Path, work: Path) -> None:
    files = _tweets(work)
    _adapt_minilm(files, work / "adapted").rename(made / FLOAT_FILE)
    _write_tweets(files, made)


_STUDENT_OF_TWEETS = {
    "max_length": _TOKENS,
    "width": 384,
    "depth": 1,
    "heads": 3,
    "attention_width": 96,
    "feed_forward_width": 256,
    "normed_embeddings": True,
}


def _transformer(made: Path, work: Path) -> None:
    files = _tweets(work)
    taught = distill_model(
        [str(_adapt_minilm(files, work / "teacher"))],
        "transformer",
        str(files["train"]),
        work / "taught",
        validation=str(files["choice"]),
        test=str(files["probe"]),
        student_arguments=_STUDENT_OF_TWEETS,
        settings=TrainingSettings(epochs=3, batch_size=64, learning_rate=1.5e-3, select="top1"),
        on=(),
    )
    taught.onnx.rename(made / FLOAT_FILE)
    _write_tweets(files, made)


_LINES = {"calibration": 32, "validation": 500, "test": 1_000}


def _reader(made: Path, work: Path) -> None:
    spec = find_spec("rapidocr")  # its file is read, its code is not run
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(
            "PP-OCR comes with the package rapidocr, which is not installed: pip install --no-deps rapidocr"
        )
    (path,) = Path(spec.submodule_search_locations[0]).glob("models/*_rec_*.onnx")
    proto = onnx.load(path)
    characters = next(entry.value for entry in proto.metadata_props if entry.key == "character").splitlines()
    names = ["", *characters, " "]  # the blank of CTC comes first
    contract = Contract(
        (TensorSpec("x", "float32", ("batch", 3, 48, _READER_WIDTH)),),
        (TensorSpec(proto.graph.output[0].name, "float32", ("batch", "steps", len(names))),),
        Kind.PROBABILITIES,
    )
    for axis, dim in enumerate(contract.inputs[0].shape):
        place = proto.graph.input[0].type.tensor_type.shape.dim[axis]
        if isinstance(dim, int):
            place.dim_value = dim
        else:
            place.dim_param = dim
    onnx.helper.set_model_props(proto, {CONTRACT_KEY: contract.to_json()})
    onnx.save(proto, made / FLOAT_FILE)
    numbers = {name: number for number, name in enumerate(names)}
    lines = draw_lines(sum(_LINES.values()), _READER_WIDTH, seed=0)
    labels = np.full((len(lines), max(len(line.text) for line in lines)), _PADDING)
    for row, line in enumerate(lines):
        labels[row, : len(line.text)] = [numbers[character] for character in line.text]
    rows = Rows({"x": np.stack([line.pixels for line in lines])}, labels)
    _save(rows, dict(zip(_LINES, _slices(_LINES.values()), strict=True)), made)


def _slices(counts: Any) -> Iterator[slice]:
    start = 0
    for count in counts:
        yield slice(start, start + count)
        start += count


_MOBILE = {"network": "conv", "arguments": {"width": 16, "dropout": 0.0}}
_MOBILE_SETTINGS = {"epochs": 6, "batch_size": 128, "learning_rate": 0.008, "select": "top1"}
_SEPARABLE = {"network": "separable_conv", "arguments": {"width": 24, "dropout": 0.1}}
_SEPARABLE_SETTINGS = {"epochs": 4, "batch_size": 128, "learning_rate": 0.008, "select": "top1"}

RECIPES: dict[str, _Recipe] = {
    "lite0": _Recipe(_lite0, {"parts": _LARGE_CLOTHES}),
    "minilm": _Recipe(_minilm, {"parts": _TWEETS, "tokens": _TOKENS}, is_text=True),
    "mobile": _Recipe(
        partial(_student, **_MOBILE, settings=_MOBILE_SETTINGS), {"parts": _CLOTHES, **_MOBILE, "training": _MOBILE_SETTINGS}
    ),
    "separable": _Recipe(
        partial(_student, **_SEPARABLE, settings=_SEPARABLE_SETTINGS),
        {"parts": _CLOTHES, **_SEPARABLE, "training": _SEPARABLE_SETTINGS},
    ),
    "transformer": _Recipe(_transformer, {"parts": _TWEETS, "student": _STUDENT_OF_TWEETS}, is_text=True),
    "reader": _Recipe(_reader, {"parts": _LINES, "width": _READER_WIDTH}),
}
