"""Pipeline files: YAML to typed, checked configuration. No function below ``pipelines/`` takes any of these."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from monograph.errors import ConfigError
from monograph.models.bounded import parse_yaml


class _Strict(BaseModel):
    """Unknown keys are errors: a misspelt one is never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _no_is_no_boolean(value: Any) -> Any:
    """YAML reads a bare no as false."""
    return "no" if value is False else value


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
    label_column: str | Annotated[list[str], Field(min_length=1)] | None = None
    """Of the labels; a list, or `a,b,c`, of columns of 0 and 1 for models that give several labels."""
    group: str | None = None
    """Name of an input whose rows of one value are ranked against each other, such as `user`; for models that give scores."""

    @model_validator(mode="after")
    def _has_all_parts(self) -> DataConfig:
        if set(self.split) != {"train", "validation", "test"}:
            raise ValueError(f"split has the parts {', '.join(self.split)}, expected train, validation and test")
        return self


class DataFileConfig(_Strict):
    """DATA as a YAML file says it."""

    source: str
    """DATA: a file, a folder, a `datasets` id, or `py:package.module:factory`; relative paths start at the YAML file's folder."""
    columns: dict[str, str] | None = None
    """Input name to column name."""
    label_column: str | Annotated[list[str], Field(min_length=1)] | None = None
    """Of the labels; a list, or `a,b,c`, of columns of 0 and 1 for several labels."""
    split: str | None = None
    """Which split, where there are several."""


class TrainConfig(_Strict):
    """Training on the training rows, with the epoch chosen on the validation rows."""

    epochs: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 64
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class AdaptConfig(_Strict):
    """Adaptation of a pretrained model on the training rows, as `monograph adapt` does it."""

    method: str = "head"
    """`head`, `last-layers`, `full`, `lp-ft`, `lora` …, or `auto`, which tries several on the validation rows."""
    task: str = "auto"
    """`classification`, `multi-label`, `regression`, `click` or `rating`; `auto` looks at the labels."""
    epochs: Annotated[int, Field(ge=1)] | None = None
    """Passes over the training rows; the method's own number by default, and so are the five below."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Rows a step."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """At the peak of the schedule."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Of AdamW."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of a label that all classes get alike."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """As accelerate takes it."""
    class_weights: bool = False
    """Let each class count as much as any other."""
    features: str | None = None
    """Name of the tensor of an ONNX model that the head takes; its output, where that is an embedding, by default."""
    options: dict[str, float | int | str] = {}
    """Of the method."""
    allow: list[str] = []
    """Problems of the rows to mend and tell, not to refuse: `missing-class`, `duplicates`, `unreadable`."""


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
    """From fresh weights, or on from those of the source."""
    adapt: AdaptConfig | None = None
    """Instead of `train`: a pretrained model gets a head for these labels."""

    @model_validator(mode="after")
    def _learns_in_one_way(self) -> ModelConfig:
        if self.train is not None and self.adapt is not None:
            raise ValueError("train and adapt exclude each other: train all of the model, or adapt a pretrained one")
        if self.weights is not None and self.adapt is not None:
            raise ValueError("adapt takes the weights that the source carries: leave weights out")
        return self


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
    share: bool = True
    """Run equal parts of members once, such as the trunk that they were adapted from."""


class DistillConfig(_Strict):
    """A student that learns what the fused graph knows."""

    student: str = "auto:1/20"
    """`conv`, `separable_conv`, `mlp`, `transformer` …, `auto:1/20` of the fused graph's work, or a SOURCE."""
    student_arguments: dict[str, Any] = {}
    """For the student's factory, such as `{width: 8}`."""
    loss: str = "kd"
    """`kd`, `dkd`, `dist`, `standardised-kd`, `soft-labels`, `mse`, `cosine` …"""
    loss_options: dict[str, float] = {}
    """Such as `{temperature: 4, hard_weight: 0.1}`."""
    epochs: Annotated[int, Field(ge=1)] = 30
    """Passes over the training rows."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Rows a step."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    """At the peak of the schedule."""
    augment: list[str] = []
    """`flip`, `shift`, `crop`, `erase`: done to training pictures, alike for teacher and student."""
    views: Annotated[int, Field(ge=0)] = 8
    """Augmented views of each row, taken in turn by the epochs; 0: a new one each epoch."""
    mixed_precision: Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(_no_is_no_boolean)] = "no"
    """Of the training."""
    quantize: Literal["dynamic", "static", "aware"] | None = None
    """Write the student in 8 bits too, which is then the candidate of the gate."""
    quantize_loss_points: Annotated[float, Field(ge=0)] = 1.0
    """What 8 bits may lose on validation rows, in points of top-1."""
    unlabelled: str | None = None
    """DATA: more rows of the domain, whose labels are not looked at."""


class GateConfig(_Strict):
    """May the student take the place of the fused graph? Judged on the test rows."""

    policy: dict[str, Any] | Path | None = None
    """The limits themselves, or a YAML file of them; the default policy of `monograph gate` by default."""
    targets: list[str] = ["cpu"]
    """Where the student runs for it. Not called `on`, which YAML reads as true."""

    @field_validator("policy")
    @classmethod
    def _is_a_policy(cls, policy: dict[str, Any] | Path | None) -> dict[str, Any] | Path | None:
        """Refuse limits that are not understood before hours of training, not after."""
        from monograph.pipelines.gate.policy import load_policy, read_policy  # which reads YAML by this module

        if policy is not None:
            try:
                load_policy(policy) if isinstance(policy, Path) else read_policy(policy, "the policy")
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return policy


class BundleConfig(_Strict):
    """The folder that ships, written where the gate let the student pass."""

    targets: list[str] = ["cpu"]
    """Whose measurements of the student go with it."""
    licence: str | None = None
    """Of the model, as an SPDX expression."""


class MeasureConfig(_Strict):
    """What is measured on the test rows."""

    targets: list[str] = ["cpu"]
    """Not called `on`, which YAML reads as true. One that this machine lacks is left out, which the report tells."""
    members_on: list[str] | None = None
    """Where members are measured, too; all targets by default. The others measure only the fused graph and the student."""
    rows: dict[str, Annotated[int, Field(ge=1)]] = {}
    """By target, score on this many of the test rows, drawn at random: for targets where a call takes long."""
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
    """A whole pipeline: adapt or train, export, fuse, distil, measure, gate, bundle, report."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    title: str | None = None
    seed: int = 0
    data: DataConfig
    models: Annotated[dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")], ModelConfig], Field(min_length=2)]
    fuse: FuseConfig = FuseConfig()
    distill: DistillConfig | None = None
    gate: GateConfig | None = None
    bundle: BundleConfig | None = None
    measure: MeasureConfig = MeasureConfig()

    @model_validator(mode="after")
    def _has_what_each_step_needs(self) -> PipelineConfig:
        if self.gate is not None and self.distill is None:
            raise ValueError("gate judges the student against the fused graph, and there is none: add distill")
        if self.bundle is not None and self.gate is None:
            raise ValueError("bundle takes what the gate let pass, and there is none: add gate")
        measured = self.measure.targets
        named = {"measure.members_on": self.measure.members_on or [], "measure.rows": list(self.measure.rows)}
        named |= {"bundle.targets": self.bundle.targets if self.bundle else []}
        for key, targets in named.items():
            unknown = [target for target in targets if target not in measured]
            if unknown:
                raise ValueError(f"{key} names {unknown[0]}, which is not among measure.targets ({', '.join(measured)}): add it")
        return self


def load_config(path: Path, overrides: Sequence[str] = ()) -> tuple[PipelineConfig, str]:
    """Read a pipeline file and apply ``KEY=VALUE`` overrides (dotted keys, YAML values).

    Returns:
        The configuration, and the YAML text of what it was made from, overrides included.

    Raises:
        ConfigError: the file is missing, is no YAML, or says something that is not understood.
    """
    text, record = read_yaml(path, "pipeline file", "the keys name, data, models, fuse, distill, gate, bundle and measure")
    for override in overrides:
        _apply(record, override)
    try:
        config = PipelineConfig.model_validate(record)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_one_line(error)}") from error
    return config, text if not overrides else yaml.safe_dump(record, sort_keys=False, allow_unicode=True)


def load_data_file(path: Path) -> DataFileConfig:
    """Read a YAML file that says where rows are and which of their columns are meant.

    Raises:
        ConfigError: the file is missing, is no YAML, or says something that is not understood.
    """
    _, record = read_yaml(path, "data file", "the keys source, columns, label_column and split")
    try:
        return DataFileConfig.model_validate(record)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_one_line(error)}") from error


def read_yaml(path: Path, what: str, keys: str) -> tuple[str, dict[str, Any]]:
    """Read the YAML file ``path``, which is called ``what`` and has ``keys``: its text, and the mapping that it holds.

    Raises:
        ConfigError: the file is missing, is no YAML, or holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        record = parse_yaml(text)
    except FileNotFoundError as error:
        raise ConfigError(f"no such {what}: {path}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:300]
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
        place[last] = parse_yaml(value)
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--set {override!r}: {value!r} is no YAML value") from error


def _one_line(error: ValidationError) -> str:
    parts = []
    for detail in error.errors()[:3]:
        place = ".".join(str(item) for item in detail["loc"]) or "the file"
        parts.append(f"{place}: {detail['msg'].removeprefix('Value error, ')}")
    more = f" (and {error.error_count() - 3} more)" if error.error_count() > 3 else ""
    return "; ".join(parts) + more
