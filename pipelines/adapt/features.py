"""Features of a trunk for all rows, computed once and kept on disk by the digests of its weights and of the rows.

Shape letters: ``n`` rows, ``s`` sequence, ``d`` width of the features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from monograph.models.contract import Contract, Kind, TensorSpec, TextPreprocessing
from monograph.models.data.rows import Array, Rows
from monograph.models.torch_model import TorchModel
from monograph.pipelines.adapt.network import FEATURES, network_of
from monograph.pipelines.teachers import Teacher, cached_outputs, weights_sha256
from monograph.pipelines.training.threads import ThreadChooser

_BATCH_SIZE = 64


@dataclass(frozen=True)
class FeatureStore:
    """What asks a trunk for features of a part's rows, each part once."""

    ask: Callable[[Rows], Array]
    """From rows to float32 ``[n, d]``, kept on disk."""
    _known: dict[int, tuple[Rows, Rows]] = field(default_factory=dict)
    """Rows, which keeps them from leaving their id to others, and the same with features."""

    def of(self, rows: Rows) -> Rows:
        """Return the rows with their features in place of their inputs; labels stay."""
        if id(rows) not in self._known:
            self._known[id(rows)] = rows, replace(rows, inputs={FEATURES: np.array(self.ask(rows))})
        return self._known[id(rows)][1]


def trunk_features(model: TorchModel, folder: Path, on_rows: Callable[[int, int], None]) -> FeatureStore:
    """Return the features of the trunk of an adaptable model, as its weights are now."""
    trunk = TorchModel(network_of(model).trunk, _contract(model.contract), f"trunk of {model.name}")
    asked = Teacher(trunk.name, trunk.contract, weights_sha256(trunk), partial(_features, trunk, ThreadChooser()))
    return FeatureStore(lambda rows: cached_outputs(asked, rows, folder, on_rows=on_rows))


def _contract(contract: Contract) -> Contract:
    batch = contract.inputs[0].shape[0]
    output = TensorSpec(FEATURES, "float32", (batch, "width"))
    return replace(contract, outputs=(output,), kind=Kind.EMBEDDING, class_names=None)


def _features(trunk: TorchModel, threads: ThreadChooser, rows: Rows) -> Array:
    """Return float32 ``[n, d]``; texts of like length go together and are cut where the longest of them ends."""
    lengths = _text_lengths(trunk.contract, rows)
    order = np.arange(len(rows)) if lengths is None else np.argsort(lengths, kind="stable")
    parts = []
    for start in range(0, len(rows), _BATCH_SIZE):
        chosen = order[start : start + _BATCH_SIZE]
        batch = rows.take(chosen)
        if lengths is not None:
            batch = _cut(batch, trunk.contract, int(lengths[chosen].max()))
        with threads.batch():
            parts.append(trunk(batch.inputs)[FEATURES])
    given = np.concatenate(parts)
    features = np.empty_like(given)
    features[order] = given
    return features


def _text_lengths(contract: Contract, rows: Rows) -> Array | None:
    """Return how many tokens each text has, int64 ``[n]``; None where padding does not stand behind the tokens."""
    for spec in contract.inputs:
        if isinstance(spec.preprocessing, TextPreprocessing) and spec.preprocessing.role == "attention_mask":
            mask = rows.inputs[spec.name]
            return np.maximum(mask.sum(1), 1) if bool((np.diff(mask, axis=1) <= 0).all()) else None
    return None


def _cut(rows: Rows, contract: Contract, length: int) -> Rows:
    """Cut texts after ``length`` tokens; an input of one size alone stays as it is."""
    texts = {
        spec.name
        for spec in contract.inputs
        if isinstance(spec.preprocessing, TextPreprocessing) and isinstance(spec.shape[1], str)
    }
    return replace(rows, inputs={name: array[:, :length] if name in texts else array for name, array in rows.inputs.items()})


def has_batch_norm(module: nn.Module) -> bool:
    """Tell whether any layer keeps statistics of batches."""
    return any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in module.modules())
