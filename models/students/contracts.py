"""What students take and give, as contracts.

Shape letters: ``b`` batch, ``k`` channels, ``h`` height, ``w`` width, ``f`` features, ``s`` sequence, ``c`` classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from monograph.errors import ConfigError
from monograph.models.contract import Contract, ImagePreprocessing, Kind, TensorSpec, TextPreprocessing

ModuleAndContract = tuple[nn.Module, Contract]


def image_classifier_contract(input_shape: Sequence[int], class_count: int) -> Contract:
    """Pixels ``float32 [b, k, h, w]`` in [-1, 1] to logits ``float32 [b, c]``.

    Raises:
        ConfigError: ``input_shape`` is not that of a picture.
    """
    if len(input_shape) != 3:
        raise ConfigError(f"input_shape is {list(input_shape)}, expected [channels, height, width]")
    pixels = TensorSpec(
        "pixels",
        "float32",
        ("batch", *input_shape),
        ImagePreprocessing(mean=(0.5,) * input_shape[0], std=(0.5,) * input_shape[0]),
    )
    return _to_logits((pixels,), class_count)


def feature_classifier_contract(feature_count: int, class_count: int) -> Contract:
    """Features ``float32 [b, f]``, taken as they are, to logits ``float32 [b, c]``."""
    return _to_logits((TensorSpec("features", "float32", ("batch", feature_count)),), class_count)


def text_classifier_contract(vocabulary_size: int, max_length: int, class_count: int) -> Contract:
    """``input_ids`` and ``attention_mask`` ``int64 [b, s]`` of a text to logits ``float32 [b, c]``."""
    shape = ("batch", "sequence")
    inputs = tuple(
        TensorSpec(role, "int64", shape, TextPreprocessing(role, max_length), upper_bound)
        for role, upper_bound in (("input_ids", vocabulary_size), ("attention_mask", 2))
    )
    return _to_logits(inputs, class_count)


def _to_logits(inputs: tuple[TensorSpec, ...], class_count: int) -> Contract:
    return Contract(inputs, (TensorSpec("logits", "float32", ("batch", class_count)),), Kind.LOGITS)
