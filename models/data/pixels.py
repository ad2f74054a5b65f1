"""Pictures and pixel arrays to the pixels of a model's image input: convert, resize, crop, scale.

Shape letters: ``n`` rows, ``h`` height, ``w`` width, ``c`` channels. Inside this module pixels are uint8 ``[n x h x w x c]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from monograph.errors import ContractError, DataError
from monograph.models.contract import Dim, ImagePreprocessing, TensorSpec
from monograph.models.data.rows import Array

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class _Frame:
    """The picture that the model wants; a height or width of ``None`` is as the picture has it."""

    height: int | None
    width: int | None
    channels: int
    shorter_side: int | None
    resample: Image.Resampling
    channels_first: bool


def pixels_from_pictures(pictures: Sequence[Image.Image], spec: TensorSpec, where: str) -> Array:
    """Bring pictures to the model's mode and size, one after the other: uint8 ``[n x h x w x c]``.

    Raises:
        DataError: pictures of differing sizes where the model's size is symbolic, or with pixels of more than 8 bits.
        ContractError: the contract asks for something that no picture can be brought to.
    """
    frame = _frame(spec)
    fitted = (_fit(picture, frame, f"{where}: row {row}") for row, picture in enumerate(pictures))
    return _stack(fitted, len(pictures), where)


def pixels_from_array(array: Array, spec: TensorSpec, where: str) -> tuple[Array, list[str]]:
    """Bring a pixel array ``[n x h x w]``, ``[n x h x w x c]`` or ``[n x c x h x w]`` to the model's mode and size.

    Arrays that have the model's size already are taken as cropped already, and pass without Pillow.

    Returns:
        uint8 ``[n x h x w x c]``, and a sentence for each thing that had to be assumed.

    Raises:
        DataError: an array of another rank, or integers beyond 0 to 255.
        ContractError: the contract asks for something that no picture can be brought to.
    """
    frame = _frame(spec)
    array, assumed = _as_uint8(array, where)
    pixels, sentences = _channels_last(array, frame, where)
    assumed += sentences
    height, width, channels = pixels.shape[1:]
    fits = (frame.height, frame.width) == (height, width) or (frame.height is None and frame.shorter_side is None)
    if fits and frame.shorter_side not in (None, min(height, width)):
        assumed.append(f"{where} has the model's size {height} x {width} and was taken as resized and cropped already")
    if fits and channels == frame.channels:
        return pixels, assumed
    if fits and (channels, frame.channels) == (1, 3):
        return np.broadcast_to(pixels, (*pixels.shape[:3], 3)), assumed
    if channels not in _MODES:
        raise DataError(
            f"{where} has {channels} channels, and only 1, 3 or 4 can be resized or converted: give {spec.describe()}"
        )
    pictures = (Image.fromarray(image[..., 0] if channels == 1 else image) for image in np.ascontiguousarray(pixels))
    bring = _only_mode if fits else _fit
    return _stack((bring(picture, frame, where) for picture in pictures), len(pixels), where), assumed


def scaled_pixels(pixels: Array, spec: TensorSpec) -> Array:
    """Compute ``(value · scale - mean) / std`` per channel: uint8 ``[n x h x w x c]`` to the input's dtype and layout.

    Raises:
        ContractError: mean or std have another number of values than the picture has channels, or the input takes
            integers and yet asks for scaling.
    """
    prep, channels, dtype = _image_preprocessing(spec), pixels.shape[-1], np.dtype(spec.dtype)
    for name, numbers in (("mean", prep.mean), ("std", prep.std)):
        if len(numbers) not in (1, channels):
            raise ContractError(
                f"input {spec.name!r} has {channels} channels but {len(numbers)} values of {name}: give 1 or {channels}"
            )
    if dtype.kind == "f":
        values: Array = pixels.astype(np.float32)
        values *= np.float32(prep.scale)
        values -= np.array(prep.mean, np.float32)
        values /= np.array(prep.std, np.float32)
        values = values.astype(dtype, copy=False)
    elif prep.scale == 1 and not any(prep.mean) and all(value == 1 for value in prep.std):
        values = pixels.astype(dtype)
    else:
        raise ContractError(f"input {spec.name!r} takes {dtype}, which cannot hold scaled pixels: state scale 1, mean 0, std 1")
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2) if prep.layout == "NCHW" else values)


def _image_preprocessing(spec: TensorSpec) -> ImagePreprocessing:
    if not isinstance(spec.preprocessing, ImagePreprocessing):
        raise ContractError(f"input {spec.name!r} states no image preprocessing")
    return spec.preprocessing


def _frame(spec: TensorSpec) -> _Frame:
    prep = _image_preprocessing(spec)
    if len(spec.shape) != 4:
        raise ContractError(f"image input {spec.describe()} has {len(spec.shape)} dimensions, expected {prep.layout}")
    channels, height, width = spec.shape[1:] if prep.layout == "NCHW" else (spec.shape[3], *spec.shape[1:3])
    if not isinstance(channels, int):
        raise ContractError(f"image input {spec.describe()} has a symbolic number of channels: export it with a fixed number")
    if prep.resample.upper() not in Image.Resampling.__members__:
        known = ", ".join(name.lower() for name in Image.Resampling.__members__)
        raise ContractError(f"input {spec.name!r} asks for resampling {prep.resample!r}, expected one of {known}")
    sizes = (_size(height), _size(width))
    if None in sizes:
        sizes = (None, None)
    shorter = prep.resize_shorter_side
    if shorter is not None and any(size is not None and size > shorter for size in sizes):
        raise ContractError(f"input {spec.describe()} cannot be cropped from a picture whose shorter side is {shorter}")
    return _Frame(*sizes, channels, shorter, Image.Resampling[prep.resample.upper()], prep.layout == "NCHW")


def _size(dim: Dim) -> int | None:
    return dim if isinstance(dim, int) else None


def _as_uint8(array: Array, where: str) -> tuple[Array, list[str]]:
    if array.dtype == np.uint8:
        return array, []
    if array.dtype.kind not in "iu":
        raise DataError(f"{where} holds {array.dtype}, expected uint8 pixels, or floats that are preprocessed already")
    if array.size and (array.min() < 0 or array.max() > 255):
        raise DataError(f"{where} holds {array.dtype} from {array.min()} to {array.max()}, expected pixels from 0 to 255")
    return array.astype(np.uint8), [f"{where} holds {array.dtype} within 0 to 255 and was taken as 8-bit pixels"]


def _channels_last(array: Array, frame: _Frame, where: str) -> tuple[Array, list[str]]:
    """Return the array as ``[n x h x w x c]``; where either axis could hold the channels, say which was taken."""
    if array.ndim == 3:
        return array[..., None], []
    known = {*_MODES, frame.channels}
    if array.ndim != 4 or not known & {array.shape[1], array.shape[3]}:
        shape = " x ".join(map(str, ("n", *array.shape[1:])))
        raise DataError(f"{where} got pixels [{shape}], expected [n x h x w], [n x h x w x c] or [n x c x h x w]")
    first, last = np.moveaxis(array, 1, -1), array
    if array.shape[3] not in known:
        return first, []
    if array.shape[1] not in known:
        return last, []
    wanted = (frame.height, frame.width)
    fitting = [layout for layout in (first, last) if layout.shape[1:3] == wanted and layout.shape[3] in known]
    if len(fitting) == 1:
        return fitting[0], []
    taken = "[n x c x h x w]" if frame.channels_first else "[n x h x w x c]"
    return first if frame.channels_first else last, [f"{where} was read as {taken}: either axis could hold the channels"]


def _stack(images: Iterable[Array], n: int, where: str) -> Array:
    """Copy images ``[h x w]`` or ``[h x w x c]`` into one array; only one of them need be in memory at a time."""
    stacked: Array | None = None
    for row, image in enumerate(images):
        pixels = image if image.ndim == 3 else image[..., None]
        if stacked is None:
            stacked = np.empty((n, *pixels.shape), np.uint8)
        if pixels.shape != stacked.shape[1:]:
            found, first = (f"{shape[1]} x {shape[0]}" for shape in (pixels.shape, stacked.shape[1:]))
            raise DataError(
                f"{where}: row {row} is {found} pixels but row 0 is {first}, and the model fixes no size: resize them"
            )
        stacked[row] = pixels
    if stacked is None:
        raise DataError(f"{where}: no rows, expected at least one")
    return stacked


def _fit(picture: Image.Image, frame: _Frame, where: str) -> Array:
    """Return one picture in the model's mode and size: uint8 ``[h x w]`` or ``[h x w x c]``."""
    picture = _to_mode(picture, frame, where)
    if frame.shorter_side is not None:
        picture = _resized_shorter_side(picture, frame.shorter_side, frame.resample)
        if frame.height is not None and frame.width is not None:
            picture = _centre(picture, frame.height, frame.width)
    elif frame.height is not None and frame.width is not None and picture.size != (frame.width, frame.height):
        picture = picture.resize((frame.width, frame.height), frame.resample)
    return np.asarray(picture)


def _only_mode(picture: Image.Image, frame: _Frame, where: str) -> Array:
    return np.asarray(_to_mode(picture, frame, where))


def _to_mode(picture: Image.Image, frame: _Frame, where: str) -> Image.Image:
    mode = _MODES.get(frame.channels)
    if mode is None:
        raise DataError(f"{where} is a picture, but the model takes {frame.channels} channels: give uint8 arrays")
    if picture.mode in _WIDE_MODES:
        raise DataError(f"{where} has pixels of more than 8 bits (mode {picture.mode}): convert the picture to 8 bits")
    if picture.mode == "P" and "transparency" in picture.info:
        # Pillow warns where a transparent palette goes to RGB in one step.
        picture = picture.convert("RGBA")
    return picture if picture.mode == mode else picture.convert(mode)


def _resized_shorter_side(picture: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """Resize as torchvision does: the longer side is cut down to a whole pixel."""
    short, long = sorted(picture.size)
    if short == size:
        return picture
    other = int(size * long / short)
    shape = (size, other) if picture.width <= picture.height else (other, size)
    return picture.resize(shape, resample)


def _centre(picture: Image.Image, height: int, width: int) -> Image.Image:
    """Crop the centre as torchvision does: a half pixel is rounded to even."""
    top, left = round((picture.height - height) / 2), round((picture.width - width) / 2)
    return picture.crop((left, top, left + width, top + height))
