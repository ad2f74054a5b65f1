"""Models by name: ``file.onnx``, ``hf:ID_OR_FOLDER``, ``py:package.module:factory``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monograph.errors import ConfigError, ContractError, SourceError
from monograph.models.bounded import parse_json
from monograph.models.contract import Contract, Dim, Kind, TensorSpec, random_inputs
from monograph.models.factories import import_factory

if TYPE_CHECKING:
    from monograph.models.torch_model import TorchModel


class Scheme(StrEnum):
    """Where a model comes from."""

    ONNX = "onnx"
    HUGGING_FACE = "hf"
    PYTHON = "py"


@dataclass(frozen=True)
class Source:
    """A model by name."""

    scheme: Scheme
    text: str
    """As the user wrote it."""

    @property
    def path(self) -> Path:
        """The file of an ONNX source."""
        return Path(self.text)

    @property
    def location(self) -> str:
        """What follows the scheme."""
        return self.text.partition(":")[2]

    @property
    def name(self) -> str:
        """A short name: the file's stem, the folder's or the factory's name."""
        if self.scheme is Scheme.ONNX:
            return self.path.stem
        return self.location.rstrip("/").rpartition(":" if self.scheme is Scheme.PYTHON else "/")[2]


def parse_source(text: str) -> Source:
    """Read a SOURCE.

    Raises:
        SourceError: it has none of the forms that there are.
    """
    scheme, colon, rest = text.partition(":")
    if colon and rest and scheme in (Scheme.HUGGING_FACE, Scheme.PYTHON):
        return Source(Scheme(scheme), text)
    if text.endswith(".onnx"):
        return Source(Scheme.ONNX, text)
    if Path(text).is_file():
        raise SourceError(f"{text} does not end in .onnx: rename it if it is an ONNX file")
    hint = f" (for a Hugging Face folder write hf:{text})" if Path(text).is_dir() else ""
    raise SourceError(f"{text!r} is no model source{hint}: expected file.onnx, hf:ID_OR_FOLDER or py:package.module:factory")


def load_python_model(
    source: Source,
    *,
    arguments: Mapping[str, Any] | None = None,
    weights: Path | None = None,
    allow_pickle: bool = False,
    inputs: Sequence[TensorSpec] | None = None,
) -> TorchModel:
    """Call the factory that ``py:package.module:factory`` names, and load ``weights`` into its module.

    The factory returns a :class:`TorchModel`, a pair of module and :class:`Contract`, or a bare ``nn.Module``; a bare
    module needs ``inputs``, and the rest of its contract is inferred from one run.

    Raises:
        SourceError: the factory or the weights cannot be used.
        ContractError: a bare module without ``inputs``.
    """
    from torch import nn

    from monograph.models.torch_model import TorchModel, load_weights

    made = _call(source, arguments or {})
    if isinstance(made, TorchModel):
        model = made
    elif isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module) and isinstance(made[1], Contract):
        model = TorchModel(made[0], made[1], source.name)
    elif isinstance(made, nn.Module):
        model = _bare_module(made, source, inputs)
    else:
        raise SourceError(f"{source.text} returned {type(made).__name__}, expected an nn.Module, alone or with its Contract")
    if weights is not None:
        load_weights(model.module, weights, allow_pickle=allow_pickle)
    return model


def _call(source: Source, arguments: Mapping[str, Any]) -> Any:
    factory = import_factory(source.text)
    try:
        return factory(**arguments)
    except TypeError as error:
        raise ConfigError(f"{source.text} was called with arguments {dict(arguments)}: {error}") from error


def _bare_module(module: Any, source: Source, inputs: Sequence[TensorSpec] | None) -> TorchModel:
    import numpy as np
    import torch

    from monograph.models.torch_model import TorchModel, output_tensors

    if not inputs:
        raise ContractError(
            f"{source.text} returned a module without a contract: say what it takes, for example "
            "--input pixels:float32:batch,3,224,224"
        )
    draft = Contract(tuple(inputs), (TensorSpec("output", "float32", ("batch",)),), Kind.LOGITS)
    module.eval()
    rows = random_inputs(draft, 2, np.random.default_rng(0))
    try:
        with torch.inference_mode():
            tensors = output_tensors(module(*(torch.from_numpy(rows[spec.name]) for spec in inputs)))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ContractError(f"{source.text} cannot take {', '.join(spec.describe() for spec in inputs)}: {reason}") from error
    if not tensors:
        raise ContractError(f"{source.text} returned no tensors, expected one or more")
    kind = Kind.LOGITS if tensors[0].ndim == 2 and tensors[0].shape[1] > 1 else Kind.REGRESSION
    names = [kind.value if index == 0 else f"output_{index}" for index in range(len(tensors))]
    outputs = tuple(
        TensorSpec(
            name,
            str(tensor.dtype).removeprefix("torch."),
            (inputs[0].shape[0] if inputs[0].shape else "batch", *map(int, tensor.shape[1:])),
        )
        for name, tensor in zip(names, tensors, strict=True)
    )
    assumed = (f"{source.text} states no contract: its first output is taken for {kind.value}, its outputs' shapes from one run",)
    return TorchModel(module, Contract(tuple(inputs), outputs, kind, None, assumed), source.name)


def parse_input(text: str) -> TensorSpec:
    """Read ``NAME:DTYPE:DIM,DIM,…``, in which a dimension is a size or a name.

    Raises:
        ConfigError: the text has another form.
    """
    parts = text.split(":")
    if len(parts) != 3 or not all(parts):
        raise ConfigError(f"input {text!r} is not of the form NAME:DTYPE:DIM,DIM,… such as pixels:float32:batch,3,224,224")
    name, dtype, dims = parts
    shape: tuple[Dim, ...] = tuple(int(dim) if dim.strip().isdecimal() else dim.strip() for dim in dims.split(","))
    if not all(isinstance(dim, int) or dim.isidentifier() for dim in shape):
        raise ConfigError(f"input {text!r} has a dimension that is neither a size nor a name")
    return TensorSpec(name, dtype, shape)


def parse_class_names(text: str) -> tuple[str, ...]:
    """Read class names: ``a,b,c``, a text file with one a line, or a JSON file with a list.

    Raises:
        ConfigError: the file cannot be read, or fewer than two classes are named.
    """
    path = Path(text)
    try:
        content = path.read_text(encoding="utf-8") if path.suffix in (".txt", ".json") else None
        names = text.split(",") if content is None else parse_json(content) if path.suffix == ".json" else content.splitlines()
        if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
            raise ValueError(f"it holds {type(names).__name__}, expected a list of names")
    except (OSError, ValueError) as error:
        raise ConfigError(f"class names cannot be read from {text}: {error}") from error
    cleaned = tuple(str(name).strip() for name in names if str(name).strip())
    if len(cleaned) < 2:
        raise ConfigError(f"{text!r} names {len(cleaned)} class, expected two or more: a,b,c or a file with one a line")
    return cleaned
