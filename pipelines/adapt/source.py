"""The model to adapt: a PyTorch network, or a new head on an ONNX file's named embedding.

Shape letters: ``b`` batch, ``s`` sequence, ``d`` width of the features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from monograph.errors import ConfigError, ContractError
from monograph.export.heads import attach_head, features_spec, open_trunk
from monograph.export.trace import Exported, export_torch
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.data.rows import Array, Rows
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.models.sources import Scheme, load_python_model, parse_source
from monograph.models.torch_model import TorchModel
from monograph.pipelines.adapt.features import FeatureStore, trunk_features
from monograph.pipelines.adapt.network import FEATURES, Network, Trunk, adaptable, pooled, shipped
from monograph.pipelines.adapt.quality import outputs_of
from monograph.pipelines.adapt.task import Task
from monograph.pipelines.teachers import Teacher, cached_outputs, weights_sha256
from monograph.runtime.runner import run_all_rows
from monograph.runtime.session import open_session

_MASK = "attention_mask"
_ROWS_AT_A_TIME = 512


@dataclass(frozen=True)
class Pretrained:
    """A model before it is adapted."""

    name: str
    contract: Contract
    tokenizer_json: str | None
    module: TorchModel | None
    """None for an ONNX file."""
    file: OnnxFile | None
    features: str | None
    """The tensor of the ONNX file that the head takes."""

    def sha256(self) -> str:
        """Return a digest of the weights."""
        if self.module is not None:
            return weights_sha256(self.module)
        assert self.file is not None
        return self.file.sha256

    def answers(self, rows: Rows) -> Array:
        """Return what the model gives for each row before it is adapted, ``[n, …]``."""
        if self.module is not None:
            return outputs_of(self.module, rows)
        assert self.file is not None
        return run_all_rows(open_session(self.file.path), self.contract, rows)

    def network(self, task: Task, seed: int) -> tuple[TorchModel, bool]:
        """Return what is trained for the task, and whether it keeps its own head.

        Raises:
            ContractError: the model gives no features by row.
        """
        if self.module is not None:
            return adaptable(self.module, task, seed)
        assert self.file is not None
        assert self.features is not None
        spec = features_spec(self.file, self.features)
        torch.manual_seed(seed)
        width = spec.shape[-1]
        if not isinstance(width, int) or len(spec.shape) not in (2, 3):
            raise ContractError(f"{self.name}: {spec.describe()} is neither [b x d] nor [b x s x d]: name others by --features")
        inputs, mask_at = [replace(spec, name=FEATURES)], None
        if len(spec.shape) == 3:
            masks = [each for each in self.contract.inputs if each.name == _MASK]
            inputs, mask_at = [*inputs, *masks], 1 if masks else None
        trunk = Trunk(nn.Identity() if mask_at is None else _First(), mask_at, len(spec.shape) == 3)
        network = Network(trunk, nn.Linear(width, task.width))
        return TorchModel(network, task.contract(tuple(inputs)), self.name, self.tokenizer_json), False

    def feature_store(self, model: TorchModel, folder: Path, on_rows: Callable[[int, int], None]) -> FeatureStore:
        """Return what gives the features of rows, as the pretrained weights make them."""
        if self.file is None:
            return trunk_features(model, folder, on_rows)
        assert self.features is not None
        ask = partial(_pooled, cache(partial(open_trunk, self.file, self.features)))
        asked = Teacher(self.name, _embedding(self.contract), self.file.sha256, ask, output=self.features)
        return FeatureStore(lambda rows: cached_outputs(asked, rows, folder, on_rows=on_rows))

    def export(self, model: TorchModel, path: Path, rows: Rows) -> Exported:
        """Write the adapted model, proven: the network, or the trunk with its new head.

        Raises:
            ParityError: the file does not compute what the model does.
        """
        if self.file is None:
            return export_torch(shipped(model), path, rows=rows)
        assert self.features is not None
        return attach_head(self.file, shipped(model), path, features=self.features, rows=rows)


def _pooled(opened: Callable[[], Callable[[Rows], Array]], rows: Rows) -> Array:
    """Return the features of each row, float32 ``[n, d]``; the trunk is loaded when it is first asked."""
    parts = []
    for part in rows.batches(_ROWS_AT_A_TIME):
        given = torch.from_numpy(opened()(part))
        if given.dim() == 3:
            mask = part.inputs.get(_MASK)
            given = pooled(given, None if mask is None else torch.from_numpy(np.ascontiguousarray(mask)))
        parts.append(given.flatten(1).numpy())
    return np.concatenate(parts)


class _First(nn.Module):
    """The first of several inputs."""

    def forward(self, features: torch.Tensor, *_others: torch.Tensor) -> torch.Tensor:
        return features


def load_pretrained(text: str, arguments: Mapping[str, Any] | None, features: str | None) -> Pretrained:
    """Load SOURCE.

    Raises:
        InputError: it cannot be loaded, or an ONNX file says not which of its tensors are features.
    """
    source = parse_source(text)
    if source.scheme is Scheme.ONNX:
        file = read_onnx(source.path)
        if features is None and file.contract.kind is not Kind.EMBEDDING:
            raise ConfigError(
                f"{text} gives {file.contract.kind.value}, and a new head needs an embedding: name a tensor by --features"
            )
        name = features or file.contract.output.name
        return Pretrained(source.name, file.contract, file.tokenizer_json, None, file, name)
    if features is not None:
        raise ConfigError(f"--features names a tensor of an ONNX file, and {text} is none: leave it out")
    if source.scheme is Scheme.HUGGING_FACE:
        from monograph.models.huggingface import load_huggingface

        model = load_huggingface(source.location)
    else:
        model = load_python_model(source, arguments=arguments)
    return Pretrained(model.name, model.contract, model.tokenizer_json, model, None, None)


def _embedding(contract: Contract) -> Contract:
    batch = contract.inputs[0].shape[0]
    return replace(contract, outputs=(TensorSpec(FEATURES, "float32", (batch, "width")),), kind=Kind.EMBEDDING, class_names=None)
