"""Small networks to teach, or to start from: a factory each, ``(sizes …) -> (module, contract)``."""

from collections.abc import Callable

from monograph.models.students.contracts import (
    ModuleAndContract,
    feature_classifier_contract,
    image_classifier_contract,
    text_classifier_contract,
)
from monograph.models.students.pictures import conv, mlp, residual_conv, separable_conv
from monograph.models.students.text import start_from_embeddings, transformer
from monograph.models.students.towers import two_tower

STUDENTS: dict[str, Callable[..., ModuleAndContract]] = {
    "mlp": mlp,
    "conv": conv,
    "separable_conv": separable_conv,
    "residual_conv": residual_conv,
}
"""Those of pictures, which are all called alike: ``(input_shape, class_count, width, dropout)``."""
ALL_STUDENTS: dict[str, Callable[..., ModuleAndContract]] = STUDENTS | {"transformer": transformer, "two_tower": two_tower}
"""Those of pictures, texts and pairs; each states its own arguments, and all have a ``width``."""

__all__ = [
    "ALL_STUDENTS",
    "STUDENTS",
    "ModuleAndContract",
    "conv",
    "feature_classifier_contract",
    "image_classifier_contract",
    "mlp",
    "residual_conv",
    "separable_conv",
    "start_from_embeddings",
    "text_classifier_contract",
    "transformer",
    "two_tower",
]
