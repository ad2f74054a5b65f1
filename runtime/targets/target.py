"""What a target says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from monograph.runtime.results import Evidence


@dataclass(frozen=True)
class Target:
    """An execution provider on a device."""

    name: str
    provider: str
    """ONNX Runtime's name of the execution provider."""
    evidence: Evidence
    """What a figure measured on it here is worth."""
    describe: Callable[[], str]
    """One line: the device, or what is missing and the command that brings it."""
    is_available: Callable[[], bool]
