"""Steps between a shared input of the fused graph and a member's own: as ONNX nodes and, for the proof, in numpy.

Each step is computed twice by different means, so that the proof compares two computations and not one with itself.

Shape letters: ``b`` batch, ``c`` channels, ``h`` height, ``w`` width, ``s`` sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.tape import Tape
from PIL import Image

Array = npt.NDArray[Any]

TO_NCHW = (0, 3, 1, 2)
TO_NHWC = (0, 2, 3, 1)
_HALF_UP = 0.501
"""Rounds halves up, as Pillow does, and keeps clear of them: resized pixels are often a half, and then the last digit of
float32 would decide."""


class Step(Protocol):
    """One change of an input on its way to a member; frozen, so that equal steps of two members are emitted once."""

    def emit(self, tape: Tape, value: ir.Value) -> ir.Value:
        """Return the changed value, with its type and shape."""

    def apply(self, array: Array) -> Array:
        """Return the changed array."""

    def describe(self, name: str) -> str:
        """Return what is done to the member's input ``name``."""


@dataclass(frozen=True)
class Cast:
    """Another type that holds the same values, up to digits of a float."""

    dtype: str

    def emit(self, tape: Tape, value: ir.Value) -> ir.Value:
        """Emit Cast."""
        dtype = ir.DataType.from_numpy(np.dtype(self.dtype))
        return _typed(tape.op("Cast", [value], {"to": dtype}), dtype, value.shape)

    def apply(self, array: Array) -> Array:
        """Cast."""
        return array.astype(self.dtype)

    def describe(self, name: str) -> str:
        """Return ``cast ids to int32``."""
        return f"cast {name} to {self.dtype}"


@dataclass(frozen=True)
class RoundPixels:
    """Float pixels to whole ones from 0 to 255."""

    dtype: str

    def emit(self, tape: Tape, value: ir.Value) -> ir.Value:
        """Emit Add, Floor, Clip and Cast."""
        raised = tape.op("Add", [value, _constant(tape, np.float32(_HALF_UP))])
        low, high = _constant(tape, np.float32(0)), _constant(tape, np.float32(255))
        return Cast(self.dtype).emit(tape, _like(tape.op("Clip", [tape.op("Floor", [raised]), low, high]), value))

    def apply(self, array: Array) -> Array:
        """Round and clip."""
        return np.floor(array + np.float32(_HALF_UP)).clip(0, 255).astype(self.dtype)

    def describe(self, name: str) -> str:
        """Return ``round pixels to uint8``."""
        return f"round {name} to {self.dtype}"


@dataclass(frozen=True)
class Transpose:
    """Pixels from one layout to the other."""

    permutation: tuple[int, ...]

    def emit(self, tape: Tape, value: ir.Value) -> ir.Value:
        """Emit Transpose."""
        shape = None if value.shape is None else [value.shape[axis] for axis in self.permutation]
        return _typed(tape.op("Transpose", [value], {"perm": self.permutation}), value.dtype, shape)

    def apply(self, array: Array) -> Array:
        """Transpose."""
        return np.ascontiguousarray(array.transpose(self.permutation))

    def describe(self, name: str) -> str:
        """Return ``transpose pixels to NHWC``."""
        return f"transpose {name} to {'NCHW' if self.permutation == TO_NCHW else 'NHWC'}"


@dataclass(frozen=True)
class Normalise:
    """``(value · scale - mean) / std`` per channel, as :class:`~monograph.models.contract.ImagePreprocessing` says."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channel_axis: int

    def emit(self, tape: Tape, value: ir.Value) -> ir.Value:
        """Emit ``value · scale/std + (-mean/std)``; what would change nothing is left out."""
        mean, std = self._per_channel(np.float64)
        factor, offset = self.scale / std, -mean / std
        if (factor != 1).any():
            value = _like(tape.op("Mul", [value, _constant(tape, factor.astype(np.float32))]), value)
        if offset.any():
            value = _like(tape.op("Add", [value, _constant(tape, offset.astype(np.float32))]), value)
        return value

    def apply(self, array: Array) -> Array:
        """Scale, subtract, divide: in this order and in float32, as pictures are prepared."""
        mean, std = self._per_channel(np.float32)
        normalised: Array = (array.astype(np.float32) * np.float32(self.scale) - mean) / std
        return normalised

    def describe(self, name: str) -> str:
        """Return ``normalise pixels``."""
        return f"normalise {name}"

    def _per_channel(self, dtype: type[np.floating[Any]]) -> tuple[Array, Array]:
        shape = [1, 1, 1, 1]
        shape[self.channel_axis] = -1
        return np.array(self.mean, dtype).reshape(shape), np.array(self.std, dtype).reshape(shape)


@dataclass(frozen=True)
class Resize:
    """Pixels ``[b x c x h x w]`` to another size by one of Pillow's filters, antialiased where they shrink.

    The filters are separable and linear, so a resize is one product with a constant matrix an axis: first along the
    rows, then along the columns, and what a filter carries beyond 0 and 255 is cut off after each, as Pillow does. ONNX's
    own Resize antialiases from opset 18 only, knows fewer filters, and lacks kernels on mobile providers.
    """

    height: int
    width: int
    resample: str

    def emit(self, tape: Tape, value: ir.Value) -> ir.Value:
        """Emit a MatMul for each axis that changes."""
        assert value.shape is not None
        batch, channels, old_height, old_width = value.shape
        assert isinstance(old_height, int)
        assert isinstance(old_width, int)
        if old_width != self.width:
            columns = _constant(tape, np.ascontiguousarray(self._matrix(old_width, self.width).T))
            value = tape.op("MatMul", [value, columns])
            value = self._emit_clip(tape, _typed(value, ir.DataType.FLOAT, [batch, channels, old_height, self.width]))
        if old_height != self.height:
            rows = _constant(tape, self._matrix(old_height, self.height))
            value = tape.op("MatMul", [rows, value])
            value = self._emit_clip(tape, _typed(value, ir.DataType.FLOAT, [batch, channels, self.height, self.width]))
        return value

    def apply(self, array: Array) -> Array:
        """Resize each channel of each picture by Pillow, in float32."""
        planes = array.astype(np.float32).reshape(-1, *array.shape[2:])
        return np.stack([self._resize(plane) for plane in planes]).reshape(*array.shape[:2], self.height, self.width)

    def describe(self, name: str) -> str:
        """Return ``resize pixels to 24 x 24``."""
        return f"resize {name} to {self.height} x {self.width}"

    def _resize(self, plane: Array) -> Array:
        for size in ((self.width, plane.shape[0]), (self.width, self.height)):
            plane = np.asarray(Image.fromarray(plane).resize(size, self._filter))
            plane = plane.clip(0, 255) if self._overshoots else plane
        return plane

    def _emit_clip(self, tape: Tape, value: ir.Value) -> ir.Value:
        if not self._overshoots:
            return value
        return _like(tape.op("Clip", [value, _constant(tape, np.float32(0)), _constant(tape, np.float32(255))]), value)

    @property
    def _overshoots(self) -> bool:
        """Filters with negative weights leave the range of what they are given."""
        return self.resample.upper() not in ("NEAREST", "BOX", "BILINEAR", "HAMMING")

    @property
    def _filter(self) -> Image.Resampling:
        return Image.Resampling[self.resample.upper()]

    def _matrix(self, old: int, new: int) -> Array:
        """Return what the filter does to an axis, ``[new x old]``: its answer to each unit vector."""
        return np.array(Image.fromarray(np.eye(old, dtype=np.float32)).resize((old, new), self._filter))


@dataclass(frozen=True)
class Truncate:
    """The first ``length`` tokens of ``[b x s]``."""

    length: int

    def emit(self, tape: Tape, value: ir.Value) -> ir.Value:
        """Emit Slice."""
        bounds = [_constant(tape, np.array([bound], np.int64)) for bound in (0, self.length, 1)]
        assert value.shape is not None
        size = min(old, self.length) if isinstance(old := value.shape[1], int) else None
        return _typed(tape.op("Slice", [value, *bounds]), value.dtype, [value.shape[0], size, *value.shape[2:]])

    def apply(self, array: Array) -> Array:
        """Slice."""
        return array[:, : self.length]

    def describe(self, name: str) -> str:
        """Return ``truncate ids to 128``."""
        return f"truncate {name} to {self.length}"


def _constant(tape: Tape, array: Any) -> ir.Value:
    """Emit a Constant: a node may go into any graph, where an initializer has to be registered with one."""
    tensor = ir.tensor(np.asarray(array))
    return _typed(tape.op("Constant", [], {"value": tensor}), tensor.dtype, tensor.shape.numpy())


def _like(value: ir.Value, other: ir.Value) -> ir.Value:
    return _typed(value, other.dtype, other.shape)


def _typed(value: ir.Value, dtype: ir.DataType | None, shape: ir.Shape | Sequence[Any] | None) -> ir.Value:
    value.type = None if dtype is None else ir.TensorType(dtype)
    value.shape = None if shape is None else ir.Shape(shape)
    return value
