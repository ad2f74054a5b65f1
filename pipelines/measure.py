"""The verb ``measure``: accuracy and latency of models on targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from monograph.errors import ConfigError
from monograph.export.predict import RULE_BOOKS, predict
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.models.sources import Scheme, parse_source
from monograph.pipelines.data import DataSpec, as_data_spec
from monograph.runtime.measure import BATCH_SIZES, Settings, measure, onnx_contender
from monograph.runtime.provider_options import check_options
from monograph.runtime.results import Measurement
from monograph.runtime.targets import Target, find_target
from monograph.runtime.timing import TimingRule


def measure_models(
    models: Sequence[str | Path],
    *,
    on: Sequence[str] = ("cpu",),
    data: str | DataSpec | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    threads: int | None = None,
    spinning: bool = True,
    rule: TimingRule | None = None,
    options: Mapping[str, str] | None = None,
    allow_fallback: bool = False,
    on_progress: Callable[[str, str], None] = lambda model, target: None,
) -> list[Measurement]:
    """Measure each model on each target, each in a fresh process of its own.

    Args:
        models: ONNX files.
        on: names of targets.
        data: DATA; with labels it gives accuracy, without it random rows are timed and nothing is scored.
        batch_sizes: the first is the one that latency is reported for, all of them give throughput.
        threads: intra-op threads; all usable cores by default.
        spinning: let idle threads spin, ONNX Runtime's default.
        rule: how long to measure.
        options: of the execution provider, for all targets asked for.
        allow_fallback: measure even where nodes that a target cannot take run elsewhere.
        on_progress: told the model and the target before each measurement.

    Raises:
        InputError: a model, a target or the data cannot be used.
        PlacementError: something else than the target ran a part of a model that counts.
        WorkerError: a measuring process died.
    """
    if not batch_sizes or min(batch_sizes) < 1:
        raise ConfigError(f"batch sizes {list(batch_sizes)}: give one or more sizes of at least 1")
    if threads is not None and threads < 1:
        raise ConfigError(f"{threads} threads: give at least 1")
    targets = [_with_options(find_target(name), options or {}) for name in on]
    files = [_onnx(str(model)) for model in models]
    spec = as_data_spec(data)
    rows = [None if spec is None else spec.load(file.contract, file.tokenizer_json) for file in files]
    settings = Settings(tuple(batch_sizes), threads, spinning, rule or TimingRule(), allow_fallback)
    measurements = []
    for file, file_rows in zip(files, rows, strict=True):
        for target in targets:
            on_progress(file.path.stem, target.name)
            contender = onnx_contender(file.path.stem, file.path, file.contract, file.sha256, file.size_bytes, target)
            measurement = measure(contender, target, file_rows, settings)
            measurements.append(_with_prediction(measurement, file, target, batch_sizes[0]))
    return measurements


def _with_prediction(measurement: Measurement, file: OnnxFile, target: Target, batch_size: int) -> Measurement:
    """Add what the rules of the target's provider say, where there are rules for it."""
    if target.provider not in RULE_BOOKS:
        return measurement
    rules = RULE_BOOKS[target.provider](target.session.options)
    prediction = predict(file, rules, batch_size=batch_size)
    warnings = list(measurement.warnings)
    if prediction.free_node_share < prediction.node_share:
        sizes = ", ".join(f"{name}={size}" for name, size in prediction.fixed_dimensions.items())
        warnings.append(
            f"{target.name}: predicted with {sizes}; as the file stands, with these dimensions free, it would take "
            f"{prediction.free_node_share:.0%} of the nodes: fix them before it ships"
        )
    return replace(measurement, prediction=prediction, warnings=tuple(warnings))


def _with_options(target: Target, options: Mapping[str, str]) -> Target:
    check_options(target.provider, options)
    return replace(target, session=replace(target.session, options={**target.session.options, **options})) if options else target


def _onnx(model: str) -> OnnxFile:
    source = parse_source(model)
    if source.scheme is not Scheme.ONNX:
        raise ConfigError(f"{model} is no ONNX file: export it first, monograph export {model} -o {source.name}.onnx")
    return read_onnx(source.path)
