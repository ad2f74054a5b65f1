"""Checkpoints: all that a training needs to go on exactly where it was, in one file that is whole or not there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from monograph.errors import ConfigError, MonographError
from monograph.models.files import write_atomically

FILE = "checkpoint.pt"
_VERSION = 1


def save_checkpoint(folder: Path, state: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, texts and containers of them) beside the last checkpoint, then over it.

    Raises:
        MonographError: it cannot be written, for example to a full disk; the last checkpoint is as it was.
    """
    try:
        with write_atomically(folder / FILE) as staged:
            torch.save({"version": _VERSION, "settings": dict(settings), "state": dict(state)}, staged)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter where the disk is full
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MonographError(
            f"{folder / FILE} cannot be written ({reason}): make room, then go on from the last checkpoint by --resume"
        ) from error


def load_checkpoint(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the state of the last checkpoint; None where there is none.

    Raises:
        ConfigError: it was made with other settings, which are named, or cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
        version, before, state = record["version"], record["settings"], record["state"]
    except (UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read, so nothing can be resumed: remove it to start again") from error
    if version != _VERSION:
        raise ConfigError(f"{path} is of version {version}, this monograph writes {_VERSION}: remove it to start again")
    changed = [
        f"{name} was {before.get(name)!r} and is {settings.get(name)!r}"
        for name in sorted(set(before) | set(settings))
        if before.get(name) != settings.get(name)
    ]
    if changed:
        raise ConfigError(f"{path} was made with other settings ({'; '.join(changed)}): give the same ones, or another folder")
    return dict(state)
