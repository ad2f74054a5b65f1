"""How a session is opened for an execution provider. Plain data, so that it crosses to the measuring process as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

CPU_PROVIDER = "CPUExecutionProvider"


@dataclass(frozen=True)
class SessionSpec:
    """One execution provider with its options."""

    provider: str = CPU_PROVIDER
    options: Mapping[str, str] = field(default_factory=dict)
    """Of the provider; names that it does not know are refused before the session is made."""
    plugin: str | None = None
    """The package of a provider that is a library of its own: it has ``get_library_path()``."""
    config: Mapping[str, str] = field(default_factory=dict)
    """Session configuration entries."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the measuring process."""
    io_binding: bool = False
    """Keep inputs and outputs on the device, so that a call is timed without the copies to and from it."""

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read back what crossed a process boundary as JSON."""
        return cls(**record)


EXACT_PRODUCTS = SessionSpec(config={"session.x64quantprecision": "1"})
"""The processor, with 8-bit products that never saturate: where its instructions would, ONNX Runtime makes signed weights
unsigned as it loads the graph. For proofs of files that are meant for other processors."""
