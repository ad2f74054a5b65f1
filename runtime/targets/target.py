"""What a target says of itself, and how it runs a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from monograph.errors import ConfigError
from monograph.runtime.instruction_sets import InstructionSet
from monograph.runtime.job import Job, RawRun, call_in_process, run_in_process
from monograph.runtime.provider_options import check_options
from monograph.runtime.results import Evidence
from monograph.runtime.session_spec import SessionSpec


@dataclass(frozen=True)
class Availability:
    """Whether a target can be used here."""

    is_here: bool
    detail: str
    """The device and its versions, or what is missing."""
    remedy: str | None = None
    """The command that would bring what is missing."""
    evidence: Evidence | None = None
    """Where what was found tells better than the target what its figures are worth."""

    def describe(self) -> str:
        """Return one line for people."""
        return f"{self.detail}: {self.remedy}" if self.remedy else self.detail


@dataclass(frozen=True)
class Target:
    """An execution provider on a device. A new one is one file and one entry in ``TARGETS``."""

    name: str
    title: str
    """What it is, for people."""
    provider: str
    """ONNX Runtime's name of the execution provider that is to run the nodes."""
    evidence: Evidence
    """What a figure measured on it here is worth."""
    probe: Callable[[], Availability]
    """Look whether it is here; cheap, and without side effects on this process."""
    session: SessionSpec = field(default_factory=SessionSpec)
    """How a session is opened, where it runs in a session of ONNX Runtime's Python package."""
    run: Callable[[Job], RawRun] = run_in_process
    """Load, time, run all rows, and tell what ran where; raises MonographError."""
    call: Callable[[str, Job], Any] | None = call_in_process
    """Call a function of :mod:`monograph.runtime.extra_runs` where the target is, for what is measured beside the timing; None
    where there is no Python that could."""
    streams_rows: bool = True
    """Whether ``run`` takes rows as they are read; otherwise it is given all of them at once."""
    lowering: str | None = None
    """What a model has to become first: a name in ``export.lowering.LOWERINGS``."""
    install: Callable[[], str] | None = None
    """Bring what pip and apt do not, and tell what was brought; raises MonographError."""
    instruction_set: Callable[[], InstructionSet | None] = lambda: None
    """Of the processor whose 8-bit kernels run the model; None where other kernels do, or where it is unknown."""
    is_strict: bool = False
    """Whether a single node elsewhere makes it another figure, however small the node's work."""

    def is_available(self) -> bool:
        """Say whether it can be used here."""
        return self.probe().is_here

    def describe(self) -> str:
        """Return one line: the device, or what is missing and the command that brings it."""
        return self.probe().describe()

    def require_here(self) -> Availability:
        """Return what was found here.

        Raises:
            ConfigError: it cannot be used here; the message says what would bring it.
        """
        here = self.probe()
        if not here.is_here:
            raise ConfigError(f"target {self.name} is not here: {here.describe()}")
        return here

    def with_options(self, options: Mapping[str, str]) -> Target:
        """Return the target with further options of its execution provider.

        Raises:
            ConfigError: the provider does not know one.
        """
        check_options(self.provider, options)
        return replace(self, session=replace(self.session, options={**self.session.options, **options}))

    @property
    def evidence_here(self) -> Evidence:
        """What a figure is worth with what was found here."""
        return self.probe().evidence or self.evidence

    @property
    def gives_latency(self) -> bool:
        """True where the time of a call is the time that the hardware takes."""
        return self.evidence.gives_latency
