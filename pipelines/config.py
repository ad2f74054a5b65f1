"""Pipeline files: YAML to typed, checked configuration. No function below ``pipelines/`` takes any of these."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from monograph.errors import ConfigError


class _Strict(BaseModel):
    """Unknown keys are errors: a misspelt one is never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Strict):
    """The rows, and how they are divided."""

    source: str
    """DATA: a file, a folder, a `datasets` id, or `py:package.module:factory`."""
    split: dict[str, Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0, lt=1)]] = {
        "train": 0.6,
        "validation": 0.2,
        "test": 0.2,
    }
    """Shares (below 1) or numbers of rows; stratified by class."""
    columns: dict[str, str] | None = None
    """Input name to column name."""
    label_column: str | None = None

    @model_validator(mode="after")
    def _has_all_parts(self) -> DataConfig:
        if set(self.split) != {"train", "validation", "test"}:
            raise ValueError(f"split has the parts {', '.join(self.split)}, expected train, validation and test")
        return self


class TrainConfig(_Strict):
    """Training on the training rows, with the epoch chosen on the validation rows."""

    epochs: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 64
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class ModelConfig(_Strict):
    """One member: where it comes from and, where it must learn first, how."""

    source: str
    """SOURCE: `file.onnx`, `hf:ID_OR_FOLDER` or `py:package.module:factory`."""
    arguments: dict[str, Any] = {}
    """For the factory of a `py:` source."""
    weights: Path | None = None
    """Safetensors file; not needed where the model is trained here."""
    task: str | None = None
    """Of a Hugging Face model."""
    train: TrainConfig | None = None


class FuseConfig(_Strict):
    """How the members become one graph."""

    combine: Literal["auto", "logits", "probs", "class-weights", "geometric", "vote", "stack", "mean", "concat"] | None = None
    """None takes what fits the members' kinds; `auto` chooses on the validation rows."""
    calibrate: bool = False
    """Fit a temperature for each member on the validation rows."""
    search: Literal["nll", "greedy"] = "nll"
    """How `weights: fit` chooses: at the minimum of the loss, or member by member."""
    weights: Literal["fit", "equal"] | dict[str, float] = "fit"
    """`fit` chooses them on the validation rows; or one weight a member."""


class MeasureConfig(_Strict):
    """What is measured on the test rows."""

    targets: list[str] = ["cpu"]
    """Not called `on`, which YAML reads as true."""
    batch_sizes: list[Annotated[int, Field(ge=1)]] = [1, 8, 32]
    threads: Annotated[int, Field(ge=1)] | None = None
    min_runs: Annotated[int, Field(ge=40)] = 400
    """Timed calls a batch size; p99 needs 368."""
    min_seconds: Annotated[float, Field(ge=0)] = 1.0
    max_seconds: Annotated[float, Field(gt=0)] = 20.0
    """No longer than this a batch size, once 40 calls are timed."""
    baselines: list[Literal["sessions", "eager"]] = ["sessions", "eager"]
    """`sessions`: N sessions and numpy; `eager`: PyTorch, for members that are `py:` sources."""
    blocks: Annotated[int, Field(ge=2)] = 5
    """Interleaved blocks for the speed ratios."""


class PipelineConfig(_Strict):
    """A whole pipeline: train, export, fuse, measure, report."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    title: str | None = None
    seed: int = 0
    data: DataConfig
    models: Annotated[dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")], ModelConfig], Field(min_length=2)]
    fuse: FuseConfig = FuseConfig()
    measure: MeasureConfig = MeasureConfig()


def load_config(path: Path, overrides: Sequence[str] = ()) -> tuple[PipelineConfig, str]:
    """Read a pipeline file and apply ``KEY=VALUE`` overrides (dotted keys, YAML values).

    Returns:
        The configuration, and the YAML text of what it was made from, overrides included.

    Raises:
        ConfigError: the file is missing, is no YAML, or says something that is not understood.
    """
    text, record = read_yaml(path, "pipeline file", "the keys name, data, models, fuse and measure")
    for override in overrides:
        _apply(record, override)
    try:
        config = PipelineConfig.model_validate(record)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_one_line(error)}") from error
    return config, text if not overrides else yaml.safe_dump(record, sort_keys=False, allow_unicode=True)


def read_yaml(path: Path, what: str, keys: str) -> tuple[str, dict[str, Any]]:
    """Read the YAML file ``path``, which is called ``what`` and has ``keys``: its text, and the mapping that it holds.

    Raises:
        ConfigError: the file is missing, is no YAML, or holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        record = yaml.safe_load(text)
    except FileNotFoundError as error:
        raise ConfigError(f"no such {what}: {path}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is not a YAML file: {reason}") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{path} holds no mapping: a {what} has {keys}")
    return text, record


def _apply(record: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r} is not of the form KEY=VALUE, such as measure.blocks=3")
    *parents, last = key.split(".")
    place: Any = record
    for parent in parents:
        place = place.setdefault(parent, {}) if isinstance(place, dict) else None
    if not isinstance(place, dict):
        raise ConfigError(f"--set {override!r}: {'.'.join(parents)} is a value, not a section")
    try:
        place[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: {value!r} is no YAML value") from error


def _one_line(error: ValidationError) -> str:
    parts = []
    for detail in error.errors()[:3]:
        place = ".".join(str(item) for item in detail["loc"]) or "the file"
        parts.append(f"{place}: {detail['msg'].removeprefix('Value error, ')}")
    more = f" (and {error.error_count() - 3} more)" if error.error_count() > 3 else ""
    return "; ".join(parts) + more
