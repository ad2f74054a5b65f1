"""A PyTorch module with its contract, and its weights from files that cannot run code.

Importing this module imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from monograph.errors import ContractError, SourceError
from monograph.models.contract import Contract

Array = npt.NDArray[Any]
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class TorchModel:
    """A PyTorch module and what it promises; inputs are passed by position, in the contract's order."""

    module: nn.Module
    contract: Contract
    name: str
    tokenizer_json: str | None = None

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute one batch in eval mode and without gradients: ``{input name: array}`` to ``{output name: array}``.

        Raises:
            ContractError: the module returns another number of outputs than its contract names.
        """
        self.module.eval()
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[spec.name])) for spec in self.contract.inputs]
        with torch.inference_mode():
            outputs = self.module(*tensors)
        values = output_tensors(outputs)
        specs = self.contract.outputs
        if len(values) != len(specs):
            raise ContractError(
                f"{self.name} returns {len(values)} tensors but its contract names {len(specs)} outputs "
                f"({', '.join(spec.name for spec in specs)}): name every one of them"
            )
        return {spec.name: value.numpy() for spec, value in zip(specs, values, strict=True)}


def output_tensors(outputs: Any) -> list[torch.Tensor]:
    """Return the tensors that a forward pass gave, in order: one, a sequence of them, or a mapping's values."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    return [value for value in values if isinstance(value, torch.Tensor)]


def load_weights(module: nn.Module, path: Path, *, allow_pickle: bool = False) -> None:
    """Load a state dict into ``module``: safetensors, or on request a pickle by torch's ``weights_only`` loader.

    Raises:
        SourceError: the file is missing, damaged, a pickle that nobody asked to read, or of another architecture.
    """
    if not path.is_file():
        raise SourceError(f"no such weights file: {path}")
    try:
        if path.suffix in PICKLE_SUFFIXES:
            module.load_state_dict(_read_pickle(path, allow_pickle))
        else:
            load_model(module, path)
    except SafetensorError as error:
        raise SourceError(f"{path} is not a safetensors file, or is cut short: {error}") from error
    except RuntimeError as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise SourceError(f"{path} does not fit the model: {reason}") from error


def save_weights(module: nn.Module, path: Path) -> None:
    """Write the state dict of ``module`` as safetensors."""
    save_model(module, str(path))


def _read_pickle(path: Path, allow_pickle: bool) -> dict[str, torch.Tensor]:
    if not allow_pickle:
        raise SourceError(
            f"{path} is a pickle, which can run code when it is read: convert it to safetensors, "
            "or pass --allow-pickle to read its tensors with torch's weights_only loader"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise SourceError(f"{path} holds more than tensors, or is cut short; it was not read") from error
    except Exception as error:  # what the unpickler raises on a damaged file depends on the damage
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SourceError(f"{path} holds more than tensors, or is cut short; it was not read: {reason}") from error
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise SourceError(f"{path} holds a {type(state).__name__}, expected a state dict (a mapping of names to tensors)")
    return dict(state)
