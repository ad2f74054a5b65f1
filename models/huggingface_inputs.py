"""What a Hugging Face model takes, and how texts and pictures become it: read from its tokenizer or image processor.

Shape letters: ``k`` channels, ``h`` height, ``w`` width.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from monograph.errors import SourceError
from monograph.models.contract import ImagePreprocessing, TensorSpec, TextPreprocessing
from monograph.models.data.pixels import pixels_from_array, scaled_pixels

Array = npt.NDArray[Any]

_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "spm.model", "*.bpe.model")
_UNLIMITED = 1_000_000
"""Transformers writes a huge ``model_max_length`` where a tokenizer states none."""
_DEFAULT_MAX_LENGTH, _DEFAULT_IMAGE_SIZE = 512, 224
_COLOUR_TOLERANCE, _PLACE_TOLERANCE = 0.01, 0.03
"""Shares of the range from black to white: what rounding to 8 bits may cost on a plain picture, and on a sloping one."""


def first_line(error: Exception) -> str:
    """Return the first line of what a library complains of, which may be many lines long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def text_inputs(folder: Path, model: Any) -> tuple[tuple[TensorSpec, ...], str | None, tuple[str, ...]]:
    """Return the inputs, int64 ``[batch, sequence]`` each in the order of ``forward``, the tokenizer's JSON, and notes.

    An input is there if the tokenizer makes it and the model takes it; token types only where the model knows more than
    one. Without a tokenizer the inputs carry no preprocessing.

    Raises:
        SourceError: the tokenizer cannot be read, or has no fast form.
    """
    config, tokenizer = model.config, _load_tokenizer(folder)
    made = _TEXT_INPUTS if tokenizer is None else tokenizer.model_input_names
    token_types = getattr(config, "type_vocab_size", None)
    bounds = {"input_ids": config.vocab_size, "attention_mask": 2, "token_type_ids": token_types}
    names = [
        name
        for name in inspect.signature(model.forward).parameters
        if name in bounds and name in made and (name != "token_type_ids" or token_types is None or token_types > 1)
    ]
    shape = ("batch", "sequence")
    if tokenizer is None:
        specs = tuple(TensorSpec(name, "int64", shape, upper_bound=bounds[name]) for name in names)
        return specs, None, ("has no tokenizer: it takes ids, not texts",)
    max_length, notes = _max_length(tokenizer, model)
    specs = tuple(TensorSpec(name, "int64", shape, TextPreprocessing(name, max_length), bounds[name]) for name in names)
    return specs, _complete_json(tokenizer, max_length), notes


def _load_tokenizer(folder: Path) -> Any | None:
    if not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
        return None
    import transformers

    loader: Any = transformers.AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(folder, use_fast=True, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises bare Exception
        raise SourceError(
            f"the tokenizer in {folder} cannot be read: {first_line(error)}; mend its files, or remove them for a model that "
            "takes ids only"
        ) from error
    if not tokenizer.is_fast:
        raise SourceError(
            f"the tokenizer in {folder} ({type(tokenizer).__name__}) has no fast form, which alone can travel with a model: "
            "remove its files for a model that takes ids only"
        )
    return tokenizer


def _max_length(tokenizer: Any, model: Any) -> tuple[int, tuple[str, ...]]:
    limits = (_position_limit(model), tokenizer.model_max_length)
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < _UNLIMITED]
    if known:
        return min(known), ()
    return _DEFAULT_MAX_LENGTH, (f"states no longest text: texts are cut at {_DEFAULT_MAX_LENGTH} tokens",)


def _position_limit(model: Any) -> int | None:
    """Return how many tokens have a position; RoBERTa and its kin count theirs from behind the padding token's id."""
    count = getattr(model.config, "max_position_embeddings", None)
    if count is None:
        return None
    tables = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
    paddings = [table.padding_idx for table in tables if getattr(table, "padding_idx", None) is not None]
    return int(count) - max((padding + 1 for padding in paddings), default=0)


def _complete_json(tokenizer: Any, max_length: int) -> str:
    """Return the tokenizer with the padding that its other files state; whatever length it was last used at is taken out.

    The length is the contract's: tokenizers of one vocabulary shall be equal texts.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    if tokenizer.truncation_side != "right":
        backend.enable_truncation(max_length, direction=tokenizer.truncation_side)
    if tokenizer.pad_token is not None:
        backend.enable_padding(
            direction=tokenizer.padding_side,
            pad_id=tokenizer.pad_token_id,
            pad_type_id=tokenizer.pad_token_type_id,
            pad_token=tokenizer.pad_token,
        )
    text: str = backend.to_str()
    return text


def image_input(folder: Path, config: Any) -> tuple[TensorSpec, tuple[str, ...]]:
    """Return ``pixel_values``, float32 ``[batch, k, h, w]``, and what had to be assumed.

    The preprocessing is read from the image processor's settings, and then held against the processor itself on test
    pictures: no preprocessing is stated that would give other colours.
    """
    channels = int(getattr(config, "num_channels", None) or 3)
    if not (folder / "preprocessor_config.json").is_file() or channels not in (1, 3):
        spec, notes = _bare_pixels(config, channels)
        return spec, ("states no image processor: it takes pixels that are prepared already", *notes)
    import transformers

    loader: Any = transformers.AutoImageProcessor
    processor = loader.from_pretrained(folder, use_fast=False, local_files_only=True, trust_remote_code=False)
    size, other_size = (_run(processor, _sloping(*shape, channels)).shape[1:] for shape in ((240, 320), (320, 240)))
    if size != other_size:
        spec, notes = _bare_pixels(config, channels)
        return spec, ("its image processor gives pictures of differing sizes: it takes pixels that are prepared already", *notes)
    spec = TensorSpec("pixel_values", "float32", ("batch", channels, *size), _read_preprocessing(processor, max(size)))
    kind, plain = type(processor).__name__, _plain(240, 320, channels)
    if _deviation(processor, spec, plain) > _COLOUR_TOLERANCE:
        spec = _with_measured_scaling(processor, spec)
    if _deviation(processor, spec, plain) > _COLOUR_TOLERANCE:
        bare = replace(spec, preprocessing=None)
        return bare, (f"its {kind} does more to colours than scale them: it takes pixels that are prepared already",)
    error = _deviation(processor, spec, _sloping(240, 320, channels))
    if error > _PLACE_TOLERANCE:
        return spec, (
            f"its {kind} resizes and crops otherwise than the contract can say: pixels of a picture of 320 x 240 differ by up "
            f"to {error:.0%} of the range",
        )
    return spec, ()


def _bare_pixels(config: Any, channels: int) -> tuple[TensorSpec, tuple[str, ...]]:
    size = getattr(config, "image_size", None)
    notes = () if size else (f"states no image size: {_DEFAULT_IMAGE_SIZE} x {_DEFAULT_IMAGE_SIZE} is taken",)
    pair = size if isinstance(size, list | tuple) else (size or _DEFAULT_IMAGE_SIZE,) * 2
    return TensorSpec("pixel_values", "float32", ("batch", channels, int(pair[0]), int(pair[1]))), notes


def _read_preprocessing(processor: Any, longer_side: int) -> ImagePreprocessing:
    scales, normalises = getattr(processor, "do_rescale", False), getattr(processor, "do_normalize", False)
    resample = getattr(processor, "resample", None)
    return ImagePreprocessing(
        scale=float(processor.rescale_factor) if scales else 1.0,
        mean=_numbers(processor.image_mean) if normalises else (0.0,),
        std=_numbers(processor.image_std) if normalises else (1.0,),
        resample=Image.Resampling(Image.Resampling.BILINEAR if resample is None else resample).name.lower(),
        resize_shorter_side=_shorter_side(processor, longer_side),
    )


def _with_measured_scaling(processor: Any, spec: TensorSpec) -> TensorSpec:
    """Read mean and std off a black and a white picture: EfficientNet's processor scales once more than its settings say."""
    assert isinstance(spec.preprocessing, ImagePreprocessing)
    plain = np.ones_like(_plain(240, 320, int(spec.shape[1])))
    made = [_run(processor, plain * np.uint8(value)) for value in (0, 255)]
    black, white = (pixels[:, pixels.shape[1] // 2, pixels.shape[2] // 2] for pixels in made)
    if not np.all(white > black):
        return spec
    std = 1 / (white.astype(np.float64) - black)
    mean, std = np.round(0.0 - black * std, 6), np.round(std, 6)
    return replace(spec, preprocessing=replace(spec.preprocessing, scale=1 / 255, mean=_numbers(mean), std=_numbers(std)))


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in np.atleast_1d(values))


def _shorter_side(processor: Any, longer_side: int) -> int | None:
    """Return to what the shorter side is resized before the centre is cut out; None where the picture is stretched."""
    stated = dict(processor.size or {})
    shorter = stated.get("shortest_edge")
    if shorter is None and getattr(processor, "do_center_crop", False):
        shorter = min(stated.get("height", 0), stated.get("width", 0))
    share = getattr(processor, "crop_pct", None)
    if shorter and share:
        # ConvNeXT's processor, which ResNet uses too, cuts small pictures out of larger ones and stretches large ones.
        shorter = int(shorter / share) if shorter < 384 else None
    return int(shorter) if shorter and shorter >= longer_side else None


def _run(processor: Any, picture: Array) -> Array:
    """Return what the processor makes, float ``[k, h, w]``, of a picture, uint8 ``[h, w, k]``."""
    return np.asarray(processor(images=picture, return_tensors="np", input_data_format="channels_last")["pixel_values"][0])


def _deviation(processor: Any, spec: TensorSpec, picture: Array) -> float:
    """Return by how much our preprocessing differs from the processor's, as a share of the range from black to white."""
    assert isinstance(spec.preprocessing, ImagePreprocessing)
    pixels, _ = pixels_from_array(picture[None], spec, "test picture")
    ours, theirs = scaled_pixels(pixels, spec)[0], _run(processor, picture)
    if ours.shape != theirs.shape:
        return float("inf")
    std = np.array(spec.preprocessing.std).reshape(-1, 1, 1)
    return float(np.max(np.abs(ours - theirs) * std)) / (255 * spec.preprocessing.scale)


def _plain(height: int, width: int, channels: int) -> Array:
    return np.broadcast_to(np.array((200, 100, 50), np.uint8)[:channels], (height, width, channels)).copy()


def _sloping(height: int, width: int, channels: int) -> Array:
    """Return a picture that grows brighter to the right, downwards and along both, channel by channel."""
    down, right = np.linspace(0, 255, height)[:, None], np.linspace(0, 255, width)[None, :]
    slopes = [np.broadcast_to(right, (height, width)), np.broadcast_to(down, (height, width)), (down + right) / 2]
    return np.stack(slopes[-channels:] if channels == 1 else slopes, axis=-1).astype(np.uint8)
