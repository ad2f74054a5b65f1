"""The policy: what a candidate must keep, fixed beforehand in YAML and hashed into the verdict."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from monograph.errors import ConfigError
from monograph.models.contract import Kind
from monograph.pipelines.config import read_yaml

Points = Annotated[float, Field(ge=0, le=100)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
_INDENT = "  "


class _Section(BaseModel):
    """Unknown keys are errors: a misspelt limit would pass whatever it was meant to stop."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class AccuracyLimits(_Section):
    """Of a classifier, on all rows."""

    max_loss_points: Points = 1.0
    """The non-inferiority margin: by how many percentage points top-1 may fall."""


class FlipLimits(_Section):
    """Single answers that change, even where accuracy does not."""

    max_negative_points: Points | None = 3.0
    """Rows, per cent of all, that the reference has right and the candidate wrong."""
    max_churn_points: Points | None = None
    """Rows, per cent of all, that are given another class, right or wrong."""


class PartLimits(_Section):
    """The worst class, or the worst slice of the rows."""

    columns: tuple[str, ...] = ("class",)
    """What parts the rows: columns of DATA, or `class` for the labels."""
    max_loss_points: Points = 10.0
    """By how many percentage points top-1 may fall in any part."""
    fewest_rows: Annotated[int, Field(ge=1)] = 30
    """Parts with fewer rows are not tested, which the verdict tells."""


class CalibrationLimits(_Section):
    """How far confidence may be trusted."""

    max_ece_increase: Share | None = 0.03
    """Of the expected calibration error, 15 bins, from 0 to 1."""
    max_nll_increase_nats: Annotated[float, Field(ge=0)] | None = 0.05
    """Of the mean negative log-likelihood."""


class ErrorLimits(_Section):
    """Of a regression."""

    max_increase_percent: Annotated[float, Field(ge=0)] = 2.0
    """By how much the mean absolute error may rise, per cent of the reference's."""


class ParityLimits(_Section):
    """The numbers themselves, for a candidate that is to compute what the reference does."""

    max_relative_error: Positive = 1e-3
    """Largest absolute difference, as a share of the largest absolute value that the reference gives."""


class RobustnessLimits(_Section):
    """Accuracy beside the reference's on rows that were corrupted, the same way for both."""

    max_loss_points: Points = 3.0
    """By how many percentage points top-1 may lie below the reference's on the same corrupted rows."""
    corruptions: tuple[Literal["noise", "blur", "contrast", "typos", "missing"], ...] | None = None
    """Null takes those that fit the rows: noise, blur and contrast for pictures, typos for text, missing for tables."""
    severity: Annotated[int, Field(ge=1, le=5)] = 1
    """From 1, slight, to 5."""


class SizeLimits(_Section):
    """On disk, weights beside the file included."""

    max_ratio: Positive | None = 1.0
    """Of the reference's size."""
    max_mb: Positive | None = None
    """Megabytes of 1,000,000 bytes."""


class TargetLimits(_Section):
    """On one target. Times need evidence that is executed or of a device: an emulator's time is no latency."""

    p50_ms: Positive | None = None
    """Median time of a call, in milliseconds."""
    p90_ms: Positive | None = None
    """Nine calls of ten take at most this."""
    p99_ms: Positive | None = None
    """99 calls of 100; needs 299 runs or more."""
    first_run_ms: Positive | None = None
    """The first call in a fresh process, the median over processes."""
    p50_ratio: Positive | None = None
    """Of the reference's median on the same target, the two in turns; below 1 asks for a faster one."""
    load_ms: Positive | None = None
    """Opening the model in a fresh process, the median over processes."""
    peak_memory_mb: Positive | None = None
    """Largest resident memory of the process, the median over processes; megabytes of 1,000,000 bytes."""
    min_macs_share: Share | None = None
    """Share of the multiply-accumulates that the target's own provider runs."""
    max_partitions: Annotated[int, Field(ge=1)] | None = None
    """Parts into which the graph falls over all providers."""

    @property
    def need_latency(self) -> list[str]:
        """The limits that only real hardware can keep."""
        of_time = ("p50_ms", "p90_ms", "p99_ms", "first_run_ms", "p50_ratio", "load_ms", "peak_memory_mb")
        return [name for name in of_time if getattr(self, name) is not None]


class MeasuringRule(_Section):
    """How times are taken."""

    batch_size: Annotated[int, Field(ge=1)] = 1
    """Rows a call."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Intra-op threads; null takes all usable cores."""
    min_runs: Annotated[int, Field(ge=40)] = 400
    """Timed calls."""
    blocks: Annotated[int, Field(ge=5)] = 8
    """Of `p50_ratio`: each runs both models twice, in fresh processes; fewer than 5 bound no median."""
    starts: Annotated[int, Field(ge=5)] = 8
    """Fresh processes for first_run_ms, load_ms and peak_memory_mb; fewer than 5 bound no median."""


class Policy(_Section):
    """What is tested, and against which limits; a section that is left out, or null, is not tested."""

    version: Literal[1] = 1
    """Of this format."""
    accuracy: AccuracyLimits | None = None
    flips: FlipLimits | None = None
    parts: PartLimits | None = None
    calibration: CalibrationLimits | None = None
    error: ErrorLimits | None = None
    parity: ParityLimits | None = None
    robustness: RobustnessLimits | None = None
    size: SizeLimits | None = None
    targets: dict[str, TargetLimits] = {}
    """Limits by the name of the target, such as `cpu`; `monograph targets` lists them."""
    measuring: MeasuringRule = MeasuringRule()
    seed: int = 0
    """Of bootstraps and corruptions."""

    @property
    def asks_classes(self) -> list[str]:
        """The sections that only a classifier can be tested by."""
        return [name for name in ("accuracy", "flips", "parts", "calibration", "robustness") if getattr(self, name) is not None]

    @property
    def asks_outputs(self) -> bool:
        """Whether anything is tested that a model has to answer rows for."""
        return bool(self.asks_classes) or self.error is not None or self.parity is not None

    def sha256(self) -> str:
        """Return a digest that every limit counts in, defaults too, and no comment or order of keys does."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def default_policy(kind: Kind) -> Policy:
    """Return what is tested where no policy is given: for a model that takes the other's place unnoticed and is no larger.

    No limit of time is among them: what is fast enough depends on the product.

    Raises:
        ConfigError: there is none for models of this kind.
    """
    if kind.has_classes:
        return Policy(
            accuracy=AccuracyLimits(), flips=FlipLimits(), parts=PartLimits(), calibration=CalibrationLimits(), size=SizeLimits()
        )
    if kind is Kind.REGRESSION:
        return Policy(error=ErrorLimits(), size=SizeLimits())
    raise ConfigError(f"no default policy for outputs of kind {kind.value}: give one by --policy, with parity, size or targets")


def load_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        ConfigError: it is missing, is no YAML, tests nothing, or says something that is not understood.
    """
    _, record = read_yaml(path, "policy file", "the keys accuracy, flips, parts, calibration, size, targets …")
    return read_policy(record, str(path))


def read_policy(record: Mapping[str, Any], where: str) -> Policy:
    """Return the policy that ``record``, read from ``where``, states.

    Raises:
        ConfigError: it tests nothing, or says something that is not understood.
    """
    try:
        policy = Policy.model_validate(record)
    except ValidationError as error:
        raise ConfigError(f"{where}: {'; '.join(map(_told, error.errors()[:3]))}") from error
    if not _tests_anything(policy):
        raise ConfigError(
            f"{where} sets no limit, so that everything would pass: monograph gate --print-policy shows what there is"
        )
    return policy


def _tests_anything(policy: Policy) -> bool:
    empty = Policy(measuring=policy.measuring, seed=policy.seed)
    limits = [section for name in Policy.model_fields if isinstance(section := getattr(policy, name), _Section)]
    own = [one for one in (*limits, *policy.targets.values()) if not isinstance(one, MeasuringRule)]
    return policy != empty and any(value is not None for one in own for value in dict(one).values())


def _told(detail: Mapping[str, Any]) -> str:
    place = [str(item) for item in detail["loc"]]
    where = ".".join(place) or "the file"
    if detail["type"] != "extra_forbidden":
        return f"{where}: {detail['msg']}, got {detail['input']!r}"
    known = list(_section_at(place[:-1]).model_fields)
    near = difflib.get_close_matches(place[-1], known, 1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
    return f"{where}: no such key: {hint}"


def _section_at(place: list[str]) -> type[BaseModel]:
    """Return the section that the keys of ``place`` lead to."""
    section: type[BaseModel] = Policy
    for name in place:
        section = _sections(section).get(name, TargetLimits)
    return section


def _sections(owner: type[BaseModel]) -> dict[str, type[BaseModel]]:
    found = {}
    for name, field in owner.model_fields.items():
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        kinds = [one for one in options if isinstance(one, type) and issubclass(one, BaseModel)]
        if kinds:
            found[name] = kinds[0]
    return found


def policy_yaml(policy: Policy) -> str:
    """Return a policy as YAML with every key explained; what it does not set stands as a comment."""
    lines = ["# What a candidate must keep beside its reference. A section that is left out, or null, is not tested."]
    sections = _sections(Policy)
    for name, field in Policy.model_fields.items():
        value = getattr(policy, name)
        if name == "targets":
            lines += ["", f"# {field.description}", *_target_lines(policy.targets)]
        elif name in sections:
            lines += ["", f"# {(sections[name].__doc__ or '').splitlines()[0]}"]
            shown = [f"{name}:", *_section_lines(sections[name]() if value is None else value)]
            lines += [f"# {line}" for line in shown] if value is None else shown
        else:
            lines += ["", f"# {field.description}", f"{name}: {_text(value)}"]
    return "\n".join(lines) + "\n"


def _section_lines(section: BaseModel) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        yield f"{_INDENT}# {field.description}"
        yield f"{_INDENT}{name}: {_text(getattr(section, name))}"


def _target_lines(targets: Mapping[str, TargetLimits]) -> Iterator[str]:
    yield f"# {(TargetLimits.__doc__ or '').splitlines()[0]}"
    shown = targets or {"cpu": TargetLimits()}
    head = "" if targets else "# "
    yield f"{head}targets:"
    for name, limits in shown.items():
        yield f"{head}{_INDENT}{name}:"
        yield from (f"{head}{_INDENT}{line}" for line in _section_lines(limits))


def _text(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)
