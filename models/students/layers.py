"""A teacher's own encoder with fewer of its layers, as a student."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from monograph.errors import ConfigError
from monograph.models.contract import Contract
from monograph.models.torch_model import TorchModel

FEWER_LAYERS = "fewer_layers"


def fewer_layers(teacher_module: nn.Module, keep: int) -> nn.Module:
    """Return a copy with ``keep`` of the encoder's layers, spread evenly from the first to the last.

    Embeddings, the kept layers and the head start from the teacher's weights, as in DistilBERT (Sanh et al. 2019, arXiv
    1910.01108), whose script keeps the layers 0, 2, 4, 7, 9 and 11 of 12:
    https://github.com/huggingface/transformers/blob/v4.30.0/examples/research_projects/distillation/scripts/extract.py
    Every parameter of the copy can be trained; the teacher stays as it is.

    Raises:
        ConfigError: the module holds no BERT-like encoder of transformers, or ``keep`` is not from 1 to its layers' number.
    """
    found = encoder_layers(teacher_module)
    if found is None:
        raise ConfigError(
            f"{type(teacher_module).__name__} holds no BERT-like encoder of transformers (config.num_hidden_layers, and as many "
            f"modules in encoder.layer): take another family than {FEWER_LAYERS}"
        )
    count = len(found[1])
    if not 1 <= keep <= count:
        raise ConfigError(f"keep is {keep}, expected 1 to {count}: the encoder has {count} layers")
    kept = np.linspace(0, count - 1, keep).round().astype(int).tolist()
    student = copy.deepcopy(teacher_module)
    copied = encoder_layers(student)
    assert copied is not None
    parent, layers, config = copied
    parent.layer = nn.ModuleList(layers[index] for index in kept)
    config.num_hidden_layers = keep
    return student.requires_grad_(True)


def with_layers(teacher: TorchModel, contract: Contract, keep: int) -> TorchModel:
    """Return the teacher with ``keep`` of its layers."""
    return replace(teacher, module=fewer_layers(teacher.module, keep), contract=contract, name=f"{teacher.name}_{keep}_layers")


def encoder_layers(module: nn.Module) -> tuple[nn.Module, nn.ModuleList, Any] | None:
    """Return the encoder of a BERT-like model of transformers, its layers and the model's config; None for other modules."""
    for model in module.modules():
        config = getattr(model, "config", None)
        count = getattr(config, "num_hidden_layers", None)
        if config is None or not isinstance(count, int):
            continue
        named = [(parent, getattr(parent, "layer", None)) for parent in model.modules()]
        lists = [(parent, layers) for parent, layers in named if isinstance(layers, nn.ModuleList) and len(layers) == count]
        return (*lists[0], config) if len(lists) == 1 else None
    return None
