"""Pictures that are decoded one at a time, when they are asked for: a folder of photographs seldom fits in memory."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from PIL import Image, ImageOps

from monograph.errors import DataError
from monograph.models.data.unreadable import UnreadableRowError


class EncodedPictures(Sequence[Image.Image]):
    """A sequence of encoded pictures: paths, or the records ``{"bytes": …, "path": …}`` of the library ``datasets``."""

    def __init__(self, count: int, encoded: Callable[[int], Any], where: str, folder: Path) -> None:
        """Hold how to come by each of ``count`` encoded pictures; relative paths start at ``folder``."""
        self._count = count
        self._encoded = encoded
        self._where = where
        self._folder = folder

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, row: int) -> Image.Image: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[Image.Image]: ...
    def __getitem__(self, row: int | slice) -> Image.Image | Sequence[Image.Image]:
        """Decode one picture, turned upright.

        Raises:
            DataError: it is missing or damaged; the message names its file and row.
        """
        if isinstance(row, slice):
            return [self[index] for index in range(*row.indices(len(self)))]
        path, content = self._record(row)
        try:
            with Image.open(io.BytesIO(content) if content else self._folder / path) as picture:
                picture.load()
                return ImageOps.exif_transpose(picture)
        except FileNotFoundError as error:
            raise self._no_such_file(row, path) from error
        except Exception as error:  # decoders of damaged pictures raise whatever they stumble over
            reason = f"{path or 'the picture'} cannot be read ({error})"
            raise UnreadableRowError(f"{self._where}: row {row}: {reason}: replace the picture", reason) from error

    def content(self, row: int) -> bytes:
        """Return one picture as it is encoded.

        Raises:
            DataError: its file is missing.
        """
        path, content = self._record(row)
        try:
            return content or (self._folder / path).read_bytes()
        except OSError as error:
            raise self._no_such_file(row, path) from error

    def _record(self, row: int) -> tuple[str, bytes | None]:
        """Return a picture's path and, where it has no file, its content."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        encoded = self._encoded(row)
        record: Mapping[str, Any] = {"path": encoded, "bytes": None} if isinstance(encoded, str) else encoded or {}
        path, content = record.get("path") or "", record.get("bytes")
        if not path and not content:
            raise _no_picture(self._where, row)
        return path, content

    def _no_such_file(self, row: int, path: str) -> DataError:
        reason = f"no such file {self._folder / path}"
        return UnreadableRowError(f"{self._where}: row {row}: {reason}", reason)


class OpenedPictures(Sequence[Image.Image]):
    """Pictures that a factory has opened; Pillow decodes one when it is first looked at."""

    def __init__(self, opened: Sequence[Any], where: str) -> None:
        """Hold the pictures; None stands for one that is missing."""
        self._opened = opened
        self._where = where

    def __len__(self) -> int:
        return len(self._opened)

    @overload
    def __getitem__(self, row: int) -> Image.Image: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[Image.Image]: ...
    def __getitem__(self, row: int | slice) -> Image.Image | Sequence[Image.Image]:
        """Decode one picture.

        Raises:
            DataError: it is missing or damaged, or no picture; the message names its row.
        """
        if isinstance(row, slice):
            return [self[index] for index in range(*row.indices(len(self)))]
        picture = self._opened[row]
        if picture is None:
            raise _no_picture(self._where, row)
        if not isinstance(picture, Image.Image):
            found = type(picture).__name__
            raise DataError(f"{self._where}: row {row} is of type {found}, expected a picture: give those only")
        try:
            picture.load()
        except Exception as error:  # decoders of damaged pictures raise whatever they stumble over
            reason = f"the picture cannot be read ({error})"
            raise UnreadableRowError(f"{self._where}: row {row}: {reason}: replace the picture", reason) from error
        return picture


def fault(pictures: Sequence[Any], row: int) -> str | None:
    """Say why a picture cannot be decoded; None where it can."""
    try:
        pictures[row]
    except UnreadableRowError as error:
        return error.reason
    return None


def _no_picture(where: str, row: int) -> UnreadableRowError:
    return UnreadableRowError(f"{where}: row {row} has no picture: fill or drop such rows", "it has no picture")
