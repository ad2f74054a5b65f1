"""The last layers only: those below keep their weights, so that several models adapted so share a trunk in a fused graph.

Source: Yosinski et al. 2014, arXiv 1411.1792: the lower a layer, the more general what it computes.
"""

from __future__ import annotations

from monograph.errors import ConfigError
from monograph.pipelines.adapt.methods.head import fit_head
from monograph.pipelines.adapt.methods.layers import depths
from monograph.pipelines.adapt.methods.method import Adaptation, Outcome, fine_tuning_settings, fit_all


def last_layers(adaptation: Adaptation) -> Outcome:
    """Train the head on features, then it and the ``layers`` layers below it.

    Raises:
        ConfigError: there are not so many layers.
    """
    depth = depths(adaptation.network)
    count, deepest = adaptation.whole_option("layers", 1), max(depth.values())
    if count > deepest:
        raise ConfigError(f"option layers={count}: {adaptation.model.name} has {deepest} layers below its head")
    head = fit_head(adaptation)
    for name, parameter in adaptation.network.named_parameters():
        parameter.requires_grad_(depth[name] <= count)
    stage = fit_all(adaptation, "last-layers", fine_tuning_settings(adaptation, rate_factor=2.0))
    trained = sum(parameter.numel() for parameter in adaptation.network.parameters() if parameter.requires_grad)
    adaptation.network.requires_grad_(True)
    return Outcome((head, stage), (f"the last {count} of {deepest} layers were trained: {trained:,} weights",))
