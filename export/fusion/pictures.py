"""How members that want pictures prepared differently come to share one input of raw pixels.

Everything here speaks of contracts; graphs are not touched.

Shape letters: ``b`` batch, ``c`` channels, ``h`` height, ``w`` width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from monograph.errors import FusionError
from monograph.export.fusion.adapters import TO_NCHW, TO_NHWC, Cast, Normalise, Resize, RoundPixels, Step, Transpose
from monograph.models.contract import Dim, ImagePreprocessing, TensorSpec


def want_raw_pixels(specs: Sequence[TensorSpec]) -> bool:
    """Return True where all are pictures by their contracts, and they differ in preprocessing, dtype or size."""
    if not all(isinstance(spec.preprocessing, ImagePreprocessing) and len(spec.shape) == 4 for spec in specs):
        return False
    prepared = {(spec.preprocessing, spec.dtype) for spec in specs}
    return len(prepared) > 1 or len({_fixed_size(spec) for spec in specs} - {None}) > 1


def raw_pixels(specs: Sequence[TensorSpec], names: Sequence[str]) -> TensorSpec:
    """Return the input that all members can be fed from: pixels from 0 to 255 in float32.

    It has the first member's name and layout; pictures are read as the largest member reads them.

    Raises:
        FusionError: members differ in channels or in a fixed batch size, or state what no picture can be brought to.
    """
    for spec, name in zip(specs, names, strict=True):
        _check_picture(spec, name)
    layout = _preprocessing(specs[0]).layout
    largest = specs[reader(specs)]
    batch, channels = (_common(specs, names, axis) for axis in (0, 1))
    height, width = (
        size if isinstance(size, int) else _common(specs, names, axis)
        for axis, size in zip((2, 3), _nchw(largest)[2:], strict=True)
    )
    shape = (batch, channels, height, width) if layout == "NCHW" else (batch, height, width, channels)
    reading = _preprocessing(largest)
    preprocessing = ImagePreprocessing(1.0, (0.0,), (1.0,), layout, reading.resample, reading.resize_shorter_side)
    return TensorSpec(specs[0].name, "float32", shape, preprocessing)


def reader(specs: Sequence[TensorSpec]) -> int:
    """Return which member's way of reading pictures the fused graph takes: the largest's, of equals the first."""
    areas = [size[0] * size[1] if (size := _fixed_size(spec)) else 0 for spec in specs]
    return areas.index(max(areas))


def picture_steps(shared: TensorSpec, spec: TensorSpec) -> tuple[Step, ...]:
    """Return the way from the shared pixels to a member's; none where it takes them as they are."""
    steps: list[Step] = []
    given, wanted = _preprocessing(shared), _preprocessing(spec)
    layout = given.layout
    size = tuple(own if isinstance(own, int) else raw for own, raw in zip(_nchw(spec)[2:], _nchw(shared)[2:], strict=True))
    if size != _nchw(shared)[2:]:
        if layout == "NHWC":
            steps.append(Transpose(TO_NCHW))
            layout = "NCHW"
        steps.append(Resize(int(size[0]), int(size[1]), wanted.resample))
    if layout != wanted.layout:
        steps.append(Transpose(TO_NCHW if wanted.layout == "NCHW" else TO_NHWC))
    if wanted != given and not wanted.is_raw:
        axis = 1 if wanted.layout == "NCHW" else 3
        steps.append(Normalise(wanted.scale, wanted.mean, wanted.std, axis))
    if spec.dtype != shared.dtype:
        steps.append(Cast(spec.dtype) if np.dtype(spec.dtype).kind == "f" else RoundPixels(spec.dtype))
    return tuple(steps)


def picture_notes(shared: TensorSpec, specs: Sequence[TensorSpec], names: Sequence[str]) -> list[str]:
    """Return what the user should know of a shared input of raw pixels; ``specs`` are the members' own."""
    layout = _preprocessing(shared).layout
    notes = [f"input {shared.name} takes raw pixels from 0 to 255, {layout}: what each member does to them is in the graph"]
    leader = reader(specs)
    reading = _preprocessing(specs[leader])
    for spec, name in zip(specs, names, strict=True):
        own = _preprocessing(spec)
        given, wanted = _fixed_size(shared), _fixed_size(spec)
        if given and wanted and given != wanted:
            notes.append(
                f"{name} is given the {given[0]} x {given[1]} pixels resized to its {wanted[0]} x {wanted[1]}: "
                "close to pictures read at that size, not equal"
            )
        elif (own.resample, own.resize_shorter_side) != (reading.resample, reading.resize_shorter_side):
            notes.append(
                f"{name} reads pictures by {_reading(own)} and is given them as {names[leader]} does, by {_reading(reading)}"
            )
    return notes


def _reading(preprocessing: ImagePreprocessing) -> str:
    side = preprocessing.resize_shorter_side
    return f"{preprocessing.resample} to {'the input size' if side is None else f'a shorter side of {side}'}"


def _check_picture(spec: TensorSpec, name: str) -> None:
    preprocessing, channels = _preprocessing(spec), _nchw(spec)[1]
    kind = np.dtype(spec.dtype).kind
    if kind not in "iuf" or (kind != "f" and not preprocessing.is_raw):
        raise FusionError(
            f"{name} takes {spec.describe()}, which cannot hold pixels with scale {preprocessing.scale:g}, mean "
            f"{preprocessing.mean} and std {preprocessing.std}: export it again with float32 inputs"
        )
    if preprocessing.resample.upper() not in Image.Resampling.__members__:
        raise FusionError(
            f"{name} asks for resampling {preprocessing.resample!r}, which Pillow does not know: "
            "export it again with bilinear or bicubic"
        )
    for statistic, numbers in (("mean", preprocessing.mean), ("std", preprocessing.std)):
        if len(numbers) != 1 and len(numbers) != channels:
            raise FusionError(
                f"{name} takes {spec.describe()} but states {len(numbers)} values of {statistic}: "
                "export it again with one value a channel"
            )


def _common(specs: Sequence[TensorSpec], names: Sequence[str], axis: int) -> Dim:
    """Return the dimension that members fix, or the first one's symbol; ``axis`` counts in NCHW."""
    dims = [_nchw(spec)[axis] for spec in specs]
    fixed = next((index for index, dim in enumerate(dims) if isinstance(dim, int)), 0)
    for dim, spec, name in zip(dims, specs, names, strict=True):
        if isinstance(dim, int) and dim != dims[fixed]:
            what = ("rows", "channels", "rows of pixels", "columns of pixels")[axis]
            raise FusionError(
                f"{names[fixed]} takes {specs[fixed].describe()} but {name} takes {spec.describe()}: "
                f"{dims[fixed]} {what} are not {dim}; export them again for one shape"
            )
    return dims[fixed]


def _nchw(spec: TensorSpec) -> tuple[Dim, ...]:
    shape = spec.shape
    return shape if _preprocessing(spec).layout == "NCHW" else tuple(shape[axis] for axis in TO_NCHW)


def _fixed_size(spec: TensorSpec) -> tuple[int, int] | None:
    height, width = _nchw(spec)[2:]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _preprocessing(spec: TensorSpec) -> ImagePreprocessing:
    assert isinstance(spec.preprocessing, ImagePreprocessing)
    return spec.preprocessing
