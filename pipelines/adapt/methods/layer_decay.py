"""Layer-wise learning-rate decay: the deeper a layer lies below the head, the slower it learns.

Source: Howard and Ruder 2018, arXiv 1801.06146; as a constant factor a layer, Clark et al. 2020, arXiv 2003.10555.
"""

from __future__ import annotations

from monograph.errors import ConfigError
from monograph.pipelines.adapt.methods.head import fit_head
from monograph.pipelines.adapt.methods.layers import depths
from monograph.pipelines.adapt.methods.method import Adaptation, Outcome, fine_tuning_settings, fit_all

_DECAY = 0.8


def layer_decay(adaptation: Adaptation) -> Outcome:
    """Train the head on features, then everything, each layer at ``decay`` times the learning rate of the one above it.

    Raises:
        ConfigError: ``decay`` is not between 0 and 1.
    """
    decay = adaptation.option("decay", _DECAY)
    if not 0 < decay <= 1:
        raise ConfigError(f"option decay={decay:g}: give a factor above 0 and up to 1")
    depth = depths(adaptation.network)
    # The highest layers take twice the usual rate, so that the middle ones come to about that.
    settings = fine_tuning_settings(adaptation, rate_factor=2.0)
    head = fit_head(adaptation)
    return Outcome((head, fit_all(adaptation, "layer-decay", settings, lambda name: decay ** depth[name])))
