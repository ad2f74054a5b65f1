"""Methods of adaptation, cheap ones first; a new one is a file and an entry here."""

from monograph.pipelines.adapt.methods.batchnorm import batchnorm
from monograph.pipelines.adapt.methods.class_weights import balanced_weights
from monograph.pipelines.adapt.methods.full import full
from monograph.pipelines.adapt.methods.head import head_only
from monograph.pipelines.adapt.methods.last_layers import last_layers
from monograph.pipelines.adapt.methods.layer_decay import layer_decay
from monograph.pipelines.adapt.methods.lora import lora
from monograph.pipelines.adapt.methods.lp_ft import lp_ft
from monograph.pipelines.adapt.methods.method import Adaptation, Method, Mix, Outcome, Stage
from monograph.pipelines.adapt.methods.wise_ft import wise_ft

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("head", "head only", "https://arxiv.org/abs/1805.08974", head_only),
        Method("batchnorm", "batch statistics, then the head", "https://arxiv.org/abs/1603.04779", batchnorm),
        Method(
            "last-layers",
            "the last layers",
            "https://arxiv.org/abs/1411.1792",
            last_layers,
            {"layers": "how many below the head, 1 by default"},
        ),
        Method("full", "all weights", "https://arxiv.org/abs/1411.1792", full),
        Method("lp-ft", "the head, then all weights", "https://arxiv.org/abs/2202.10054", lp_ft),
        Method(
            "layer-decay",
            "all weights, deeper layers slower",
            "https://arxiv.org/abs/1801.06146",
            layer_decay,
            {"decay": "of the learning rate from layer to layer, 0.8 by default"},
        ),
        Method(
            "lora",
            "thin matrices beside all others",
            "https://arxiv.org/abs/2106.09685",
            lora,
            {
                "rank": "of the thin matrices, 8 by default",
                "alpha": "by which their product is scaled, over the rank; twice the rank by default",
                "dropout": "of their input, 0.05 by default",
            },
        ),
        Method("wise-ft", "a mean of old and new weights", "https://arxiv.org/abs/2109.01903", wise_ft),
    )
}

__all__ = ["METHODS", "Adaptation", "Method", "Mix", "Outcome", "Stage", "balanced_weights"]
