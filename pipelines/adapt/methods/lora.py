"""LoRA: the change of each matrix is a product of two thin ones, which are added to it before the model is exported.

Source: Hu et al. 2022, arXiv 2106.09685; done by the library peft, of the extra ``adapt``.
"""

from __future__ import annotations

import re

import torch
from torch import nn

from monograph.errors import ConfigError, MissingPackageError
from monograph.pipelines.adapt.methods.head import fit_head
from monograph.pipelines.adapt.methods.method import Adaptation, Outcome, fine_tuning_settings, fit_all

_RANK, _DROPOUT = 8, 0.05
_RATE_FACTOR = 5.0
"""Thin matrices start from nothing, and take a higher learning rate than weights that are pretrained."""


def lora(adaptation: Adaptation) -> Outcome:
    """Train the head on features, then it and thin matrices beside those of the trunk; they are merged in the end.

    Raises:
        MissingPackageError: peft is not installed.
        ConfigError: the trunk has no matrices, or an option is out of its range.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingPackageError("--method lora needs the package peft: pip install 'monograph[adapt]'") from error
    rank = adaptation.whole_option("rank", _RANK)
    alpha, dropout = adaptation.whole_option("alpha", 2 * rank), adaptation.option("dropout", _DROPOUT)
    if not 0 <= dropout < 1:
        raise ConfigError(f"option dropout={dropout:g}: give a share from 0 to below 1")
    network = adaptation.network
    matrices = [name for name, module in network.trunk.named_modules() if _is_matrix(module)]
    if not matrices:
        raise ConfigError(f"{adaptation.model.name} has no matrices beside which thin ones could stand: choose another --method")
    head = fit_head(adaptation)
    # As one expression, which has to match the whole name: of a list of names peft takes whatever ends in one of them.
    exactly = "|".join(map(re.escape, matrices))
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=exactly)
    # Whether the head was trained now or before an interrupt: the thin matrices start from the same numbers.
    torch.manual_seed(adaptation.settings.get("seed", 0))
    adapted = get_peft_model(network.trunk, config)
    network.trunk = adapted
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    stage = fit_all(adaptation, "lora", fine_tuning_settings(adaptation, rate_factor=_RATE_FACTOR))
    network.trunk = adapted.merge_and_unload()
    network.requires_grad_(True)
    return Outcome((head, stage), (f"LoRA trained {trained:,} weights beside {len(matrices)} matrices, merged into them",))


def _is_matrix(module: nn.Module) -> bool:
    """Tell whether thin matrices go with a layer; of a convolution in groups each has a matrix of its own, thin already."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
