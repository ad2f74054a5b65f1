"""What a bundle brings to prove its worth: the gate's verdict and measurements, each of this model and of no other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from monograph.errors import BlockedError, ConfigError
from monograph.models.bounded import read_json
from monograph.pipelines.bundle.forms import Form
from monograph.pipelines.gate import Outcome, Policy, Verdict
from monograph.pipelines.gate.check import conclude
from monograph.pipelines.records import read_record
from monograph.runtime.results import Measurement


@dataclass(frozen=True)
class MeasurementFile:
    """What one file tells of the bundle's models."""

    name: str
    records: tuple[Any, ...]
    """As they stand in the file."""
    measurements: tuple[Measurement, ...]
    """The same, read."""


def read_verdict(path: Path, model: Form) -> Verdict:
    """Read the verdict of ``monograph gate`` on ``model``.

    Raises:
        ConfigError: it cannot be read, contradicts itself, or judges another model.
    """
    try:
        verdict = read_record(path, Verdict)
        policy_sha256 = Policy.model_validate(verdict.policy).sha256()
    except (OSError, ValidationError, ValueError) as error:
        raise ConfigError(
            f"{path} is no verdict of monograph gate ({_brief(error)}): give the verdict.json that it wrote"
        ) from error
    if verdict.candidate.sha256 != model.sha256:
        raise ConfigError(
            f"{path} judges a model with SHA-256 {verdict.candidate.sha256[:12]}…, and {model.path} has {model.sha256[:12]}…: "
            f"give the verdict on this one, monograph gate {model.path} …"
        )
    found = conclude(check.outcome for check in verdict.checks)
    if not verdict.checks or found is not verdict.outcome or policy_sha256 != verdict.policy_sha256:
        raise ConfigError(
            f"{path} was changed: it says {verdict.outcome.value} by policy {verdict.policy_sha256[:12]}…, its "
            f"{len(verdict.checks)} checks come to {found.value} and its policy is {policy_sha256[:12]}…: run the gate again"
        )
    return verdict


def require_passing(verdict: Verdict | None, model: Form) -> None:
    """Refuse what the gate did not let pass.

    Raises:
        ConfigError: there is no verdict.
        BlockedError: it is another than pass.
    """
    if verdict is None:
        raise ConfigError(f"{model.path} has no verdict, and --require-pass asks for one: monograph gate {model.path} … -o DIR")
    if verdict.outcome is not Outcome.PASS:
        raise BlockedError(f"{model.path} may not ship: {verdict.describe()}", verdict.outcome.exit_code)


def read_measurements(path: Path, forms: Sequence[Form]) -> MeasurementFile:
    """Read a file of ``monograph measure``, and keep what it tells of ``forms``.

    Raises:
        ConfigError: it cannot be read, or tells of other models only.
    """
    try:
        records = read_json(path)
        measurements = TypeAdapter(list[Measurement]).validate_python(records)
    except (OSError, ValidationError, ValueError) as error:
        raise ConfigError(
            f"{path} is no file of monograph measure ({_brief(error)}): write one by monograph measure -o"
        ) from error
    known = {form.sha256 for form in forms}
    own = [position for position, one in enumerate(measurements) if one.sha256 in known]
    if not own:
        others = ", ".join(f"{one.model} ({one.sha256[:12]}…)" for one in measurements) or "nothing"
        raise ConfigError(f"{path} measures {others}, and not {forms[0].path} ({forms[0].sha256[:12]}…): measure this one")
    return MeasurementFile(
        path.name, tuple(records[position] for position in own), tuple(measurements[position] for position in own)
    )


def _brief(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return " ".join(str(error).split())[:120]
