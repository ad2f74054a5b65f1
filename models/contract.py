"""What a model promises: its inputs, outputs, kind and class names.

The contract travels inside the ONNX file, as JSON under the metadata key ``monograph.contract``, so one file is
enough to run a model rightly. This module needs numpy only: it is read on devices too.

Shape letters: ``b`` batch, ``c`` classes, ``s`` sequence, ``h`` height, ``w`` width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from monograph.errors import ContractError
from monograph.models.bounded import parse_json

CONTRACT_KEY = "monograph.contract"
TOKENIZER_KEY = "monograph.tokenizer"
CONTRACT_VERSION = 1

Array = npt.NDArray[Any]
Dim = int | str


class Kind(StrEnum):
    """What the numbers of the primary output mean."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    REGRESSION = "regression"
    EMBEDDING = "embedding"
    SCORES = "scores"

    @property
    def has_classes(self) -> bool:
        """True where the last axis of the output runs over classes."""
        return self in (Kind.LOGITS, Kind.PROBABILITIES)


@dataclass(frozen=True)
class ImagePreprocessing:
    """From a picture to the model's pixels: ``(value · scale - mean) / std`` per channel, after resizing to the input."""

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str = "NCHW"
    resample: str = "bilinear"
    resize_shorter_side: int | None = None
    """Resize the shorter side to this many pixels and crop the centre; ``None`` stretches to the input size."""
    type: str = "image"

    def __post_init__(self) -> None:
        if self.layout not in ("NCHW", "NHWC"):
            raise ContractError(f"image layout is {self.layout!r}, expected 'NCHW' or 'NHWC'")
        if any(value == 0 for value in self.std):
            raise ContractError(f"image std is {self.std}, expected no zeros: pixels are divided by it")

    @property
    def is_raw(self) -> bool:
        """True where pixels are taken as they are, from 0 to 255."""
        return self.scale == 1 and not any(self.mean) and all(value == 1 for value in self.std)


@dataclass(frozen=True)
class TextPreprocessing:
    """From a string to token ids; the tokenizer itself stands beside the contract, under ``monograph.tokenizer``."""

    role: str
    """Which of the tokenizer's arrays this input takes: ``input_ids``, ``attention_mask`` or ``token_type_ids``."""
    max_length: int = 512
    type: str = "text"


Preprocessing = ImagePreprocessing | TextPreprocessing
_PREPROCESSING: dict[str, type[ImagePreprocessing] | type[TextPreprocessing]] = {
    "image": ImagePreprocessing,
    "text": TextPreprocessing,
}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: a name, a numpy dtype name and a shape in which strings are symbolic dimensions."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    preprocessing: Preprocessing | None = None
    upper_bound: int | None = None
    """For integer inputs: values run over ``[0, upper_bound)``, the size of the vocabulary for example."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not isinstance(self.dtype, str):
            raise ContractError(f"tensor {self.name!r} has dtype {self.dtype!r}, expected a name and a numpy dtype name")
        if self.upper_bound is not None and (not isinstance(self.upper_bound, int) or self.upper_bound < 1):
            raise ContractError(f"tensor {self.name!r} has upper_bound {self.upper_bound!r}, expected a positive number")
        try:
            np.dtype(self.dtype)
        except TypeError as error:
            raise ContractError(f"tensor {self.name!r} has dtype {self.dtype!r}, expected a numpy dtype name") from error
        for dim in self.shape:
            if isinstance(dim, bool) or not isinstance(dim, int | str) or (isinstance(dim, int) and dim < 0):
                raise ContractError(f"tensor {self.name!r} has dimension {dim!r}, expected a size or a name")

    @property
    def batch_is_dynamic(self) -> bool:
        """True where the first dimension may take any size."""
        return bool(self.shape) and isinstance(self.shape[0], str)

    def describe(self) -> str:
        """Return ``name: dtype [b x 3 x 224 x 224]``."""
        return f"{self.name}: {self.dtype} [{' x '.join(str(dim) for dim in self.shape)}]"


@dataclass(frozen=True)
class Contract:
    """What a model promises. The first output is the primary one; ``kind`` and ``class_names`` speak of it."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    kind: Kind
    class_names: tuple[str, ...] | None = None
    assumed: tuple[str, ...] = field(default=(), compare=False)
    """What had to be guessed, each a sentence for the user; empty for a contract that was stated."""

    def __post_init__(self) -> None:
        if not self.inputs or not self.outputs:
            raise ContractError(f"a contract needs inputs and outputs, got {len(self.inputs)} and {len(self.outputs)}")
        names = self.class_names
        if names is not None and len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ContractError(f"class names repeat: {', '.join(twice[:5])}; each class needs a name of its own")
        size = self.output.shape[-1] if self.output.shape else None
        if names is not None and isinstance(size, int) and size != len(names):
            raise ContractError(f"output {self.output.name!r} has {size} classes but {len(names)} class names are given")

    @property
    def output(self) -> TensorSpec:
        """The primary output."""
        return self.outputs[0]

    @property
    def class_count(self) -> int | None:
        """How many classes the primary output has, where that is known."""
        if not self.kind.has_classes:
            return None
        if self.class_names is not None:
            return len(self.class_names)
        size = self.output.shape[-1] if self.output.shape else None
        return size if isinstance(size, int) else None

    @property
    def batch_is_dynamic(self) -> bool:
        """True where every input takes any batch size."""
        return all(spec.batch_is_dynamic for spec in self.inputs)

    def with_class_names(self, names: tuple[str, ...]) -> Self:
        """Return the same contract with these class names."""
        return replace(self, class_names=names)

    def to_json(self) -> str:
        """Return the JSON text that goes under the metadata key ``monograph.contract``."""
        record = asdict(self)
        del record["assumed"]
        return json.dumps({"version": CONTRACT_VERSION} | record, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a contract back.

        Raises:
            ContractError: the text is no contract, or one of a newer version.
        """
        try:
            record = parse_json(text)
            version = record.pop("version")
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            raise ContractError(f"metadata {CONTRACT_KEY!r} is not a contract in JSON: {error}") from error
        if version != CONTRACT_VERSION:
            raise ContractError(f"contract has version {version!r}, this monograph reads {CONTRACT_VERSION}: update monograph")
        try:
            return cls(
                inputs=tuple(_tensor_spec(spec) for spec in record["inputs"]),
                outputs=tuple(_tensor_spec(spec) for spec in record["outputs"]),
                kind=Kind(record["kind"]),
                class_names=None if record["class_names"] is None else tuple(map(str, _list(record["class_names"]))),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ContractError(f"metadata {CONTRACT_KEY!r} is not a contract: {error}") from error


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value


def _tensor_spec(record: Mapping[str, Any]) -> TensorSpec:
    fields = dict(record) | {"shape": tuple(_list(record["shape"]))}
    preprocessing = record.get("preprocessing")
    if preprocessing is not None:
        values: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in preprocessing.items()}
        fields["preprocessing"] = _PREPROCESSING[values["type"]](**values)
    return TensorSpec(**fields)


def random_inputs(contract: Contract, batch_size: int, rng: np.random.Generator, sequence_length: int = 12) -> dict[str, Array]:
    """Draw fresh inputs that the contract allows: standard normal floats, uniform ids and pixels, masks with padding.

    Floats that the contract calls pixels without scaling are whole numbers from 0 to 255, as pictures give them.

    The first dimension becomes ``batch_size`` where it is symbolic; every other symbolic dimension becomes
    ``sequence_length``, the same for all inputs.
    """
    return {spec.name: _random_array(spec, batch_size, rng, sequence_length) for spec in contract.inputs}


def _random_array(spec: TensorSpec, batch_size: int, rng: np.random.Generator, sequence_length: int) -> Array:
    sizes = [batch_size] + [sequence_length] * len(spec.shape)
    shape = [dim if isinstance(dim, int) else size for dim, size in zip(spec.shape, sizes, strict=False)]
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f" and isinstance(spec.preprocessing, ImagePreprocessing) and spec.preprocessing.is_raw:
        return rng.integers(0, 256, shape).astype(dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind in "biu" and "mask" in spec.name:
        return _random_mask(shape, dtype, rng)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind not in "iu":
        raise ContractError(f"input {spec.name!r} has dtype {spec.dtype}, for which no random rows can be made: give --data")
    default = 256 if dtype.itemsize == 1 else 2
    high = min(spec.upper_bound or default, int(np.iinfo(dtype).max) + 1)
    return rng.integers(0, high, shape).astype(dtype)


def _random_mask(shape: list[int], dtype: np.dtype[Any], rng: np.random.Generator) -> Array:
    """Ones followed by padding of a random length; the first row is full, so that no batch is all padding."""
    if len(shape) != 2:
        return np.ones(shape, dtype)
    lengths = rng.integers(1, shape[1] + 1, size=shape[0])
    lengths[:1] = shape[1]
    return (np.arange(shape[1]) < lengths[:, None]).astype(dtype)
