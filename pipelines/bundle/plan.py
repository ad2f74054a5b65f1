"""What a bundle will hold, decided before anything is written."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from monograph.errors import ConfigError
from monograph.pipelines.bundle.evidence import (
    MeasurementFile,
    read_measurements,
    read_verdict,
    require_passing,
)
from monograph.pipelines.bundle.forms import Form, read_lowered, read_model
from monograph.pipelines.gate import Verdict
from monograph.runtime.coverage import coverage_gap
from monograph.runtime.targets import find_target

_SPDX = re.compile(r"\(*[A-Za-z0-9][A-Za-z0-9.+-]*\)*( (AND|OR|WITH) \(*[A-Za-z0-9][A-Za-z0-9.+-]*\)*)*")
"""The form of an expression (https://spdx.github.io/spdx-spec/v3.0.1/annexes/spdx-license-expressions), not its names."""


@dataclass(frozen=True)
class BundlePlan:
    """All that is decided."""

    model: Form
    lowered: tuple[Form, ...]
    verdict: Verdict | None
    verdict_path: Path | None
    measurements: tuple[MeasurementFile, ...]
    licence: str | None
    tolerances: Mapping[str, float]
    """By target: fixed for it instead of the proof's own."""
    command: str
    """That makes the same bundle from files of these names."""

    @property
    def forms(self) -> tuple[Form, ...]:
        """All model files, the model itself first."""
        return (self.model, *self.lowered)

    def notes(self) -> list[str]:
        """Return what a person should know of what is missing, a sentence each."""
        notes = []
        if self.verdict is None:
            notes.append("nobody judged this model: give the --verdict of monograph gate")
        elif self.verdict.outcome.exit_code:
            notes.append(f"the gate did not let this model pass ({self.verdict.describe()}), which its card says")
        if all(batch.rows == "random" for batch in self.model.golden.batches):
            notes.append(
                f"the golden rows of {self.model.path.name} are random ones: real ones come by --data when it is written"
            )
        gap = coverage_gap(self.model, find_target("cpu"))
        if gap is not None:
            notes.append(gap)
        if self.licence is None:
            notes.append("no --licence was given: nobody may know whether they may use the model")
        return notes


def plan_bundle(
    model: Path,
    *,
    lowered: Sequence[Path] = (),
    verdict: Path | None = None,
    measurements: Sequence[Path] = (),
    licence: str | None = None,
    require_pass: bool = False,
    tolerances: Mapping[str, float] | None = None,
) -> BundlePlan:
    """Read all that goes into a bundle and refuse what does not belong together; see :func:`bundle_model`.

    Raises:
        InputError: something cannot be read, or is of another model.
        BlockedError: a passing verdict is asked for, and this one is another.
    """
    _check_choices(licence, tolerances or {})
    own = read_model(model)
    judged = None if verdict is None else read_verdict(verdict, own)
    if require_pass:
        require_passing(judged, own)
    forms = [read_lowered(path, own) for path in lowered]
    files = [read_measurements(path, (own, *forms)) for path in measurements]
    for what, names in (("lowered files", [path.name for path in lowered]), ("measurements", [file.name for file in files])):
        _require_distinct(what, names)
    command = _command(model, lowered, verdict, measurements, licence, require_pass, tolerances or {})
    return BundlePlan(own, tuple(forms), judged, verdict, tuple(files), licence, dict(tolerances or {}), command)


def _check_choices(licence: str | None, tolerances: Mapping[str, float]) -> None:
    if licence is not None and not _SPDX.fullmatch(licence):
        raise ConfigError(
            f"licence {licence!r} is no SPDX expression: give one such as Apache-2.0, or LicenseRef-NAME for your own"
        )
    for target, tolerance in tolerances.items():
        find_target(target)
        if not 0 < tolerance < math.inf:
            raise ConfigError(f"tolerance {tolerance:g} for {target}: give a positive share of the largest reference value")


def _require_distinct(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name.casefold() in seen:
            raise ConfigError(f"two {what} are called {name}: rename one")
        seen.add(name.casefold())


def _command(
    model: Path,
    lowered: Sequence[Path],
    verdict: Path | None,
    measurements: Sequence[Path],
    licence: str | None,
    require_pass: bool,
    tolerances: Mapping[str, float],
) -> str:
    """Return the command, with the files' names alone: where they lay is no part of what they are."""
    parts = ["monograph bundle", model.name]
    parts += [f"--lowered {path.name}" for path in lowered]
    parts += [] if verdict is None else [f"--verdict {verdict.name}"]
    parts += [f"--measurement {path.name}" for path in measurements]
    parts += [] if licence is None else [f"--licence {licence}"]
    parts += [f"--tolerance {target}={tolerance:g}" for target, tolerance in sorted(tolerances.items())]
    parts += ["--require-pass"] if require_pass else []
    return " ".join([*parts, "-o DIR"])
