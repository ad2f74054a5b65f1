"""The verb ``measure``: accuracy and latency of models on targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from monograph.errors import ConfigError
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.models.sources import Scheme, parse_source
from monograph.pipelines.data import DataSpec, as_data_spec
from monograph.pipelines.profile import attribute_to_members
from monograph.runtime.extras import check_extras
from monograph.runtime.load import LoadSpec
from monograph.runtime.loadgen import LoadgenSpec
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
    load: LoadSpec | None = None,
    loadgen: LoadgenSpec | None = None,
    profile: bool = False,
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
        load: callers at once, or arrivals at a rate, to measure under as well.
        loadgen: the scenario in which MLPerf's LoadGen is to drive the model as well.
        profile: tell the time per operator, provider and, of a fused graph, per member as well.
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
    settings = Settings(tuple(batch_sizes), threads, spinning, rule or TimingRule(), allow_fallback, load, loadgen, profile)
    for target in targets:
        check_extras(target, settings)
    measurements = []
    for file, file_rows in zip(files, rows, strict=True):
        for target in targets:
            on_progress(file.path.stem, target.name)
            contender = onnx_contender(file.path.stem, file.path, file.contract, file.sha256, file.size_bytes, target)
            measurement = measure(contender, target, file_rows, settings)
            measurements.append(attribute_to_members(measurement, file.path))
    return measurements


def _with_options(target: Target, options: Mapping[str, str]) -> Target:
    check_options(target.provider, options)
    return replace(target, session=replace(target.session, options={**target.session.options, **options})) if options else target


def _onnx(model: str) -> OnnxFile:
    source = parse_source(model)
    if source.scheme is not Scheme.ONNX:
        raise ConfigError(f"{model} is no ONNX file: export it first, monograph export {model} -o {source.name}.onnx")
    return read_onnx(source.path)
