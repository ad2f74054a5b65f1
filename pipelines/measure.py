"""The verb ``measure``: accuracy and latency of models on targets."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from monograph.errors import ConfigError
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.models.sources import Scheme, parse_source
from monograph.pipelines.data import DataSpec, as_data_spec
from monograph.runtime.measure import BATCH_SIZES, Settings, measure, onnx_contender
from monograph.runtime.provider_options import check_options
from monograph.runtime.results import Measurement
from monograph.runtime.targets import Target, find_target
from monograph.runtime.timing import TimingRule

_SAMPLE_SEED = 0


def measure_models(
    models: Sequence[str | Path],
    *,
    on: Sequence[str] = ("cpu",),
    data: str | DataSpec | None = None,
    calibration: str | DataSpec | None = None,
    row_count: int | None = None,
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
        calibration: DATA that models are quantised with, for targets that take quantised ones only; labels are not needed.
        row_count: score on this many rows of ``data``, drawn at random by a fixed seed, where calls are slow.
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
    if row_count is not None and row_count < 1:
        raise ConfigError(f"{row_count} rows: give at least 1")
    targets = [_with_options(find_target(name), options or {}) for name in on]
    files = [_onnx(str(model)) for model in models]
    spec = as_data_spec(data)
    rows = [_read(spec, file, row_count) for file in files]
    settings = Settings(tuple(batch_sizes), threads, spinning, rule or TimingRule(), allow_fallback)
    measurements = []
    for file, file_rows in zip(files, rows, strict=True):
        for target in targets:
            on_progress(file.path.stem, target.name)
            if target.lowering is None:
                contender = onnx_contender(file.path.stem, file.path, file.contract, file.sha256, file.size_bytes, target)
                measurements.append(measure(contender, target, file_rows, settings))
            else:
                measurements.append(_measure_lowered(file, target, spec, as_data_spec(calibration), row_count, settings))
    return measurements


def _measure_lowered(
    file: OnnxFile, target: Target, data: DataSpec | None, calibration: DataSpec | None, row_count: int | None, settings: Settings
) -> Measurement:
    """Measure what ``file`` becomes for ``target``; the record says what was done to it."""
    from monograph.pipelines.lower import lower_for  # it brings PyTorch, which other targets do without

    assert target.lowering is not None
    here = target.probe()
    if not here.is_here:  # before a long calibration, not after
        raise ConfigError(f"target {target.name} is not here: {here.describe()}")
    with tempfile.TemporaryDirectory(prefix="monograph-lowered-") as folder:
        lowered = lower_for(target.lowering, file, Path(folder), data=data, calibration=calibration)
        rows = _read(data, lowered.file, row_count)
        taken = lowered.file
        contender = onnx_contender(file.path.stem, taken.path, taken.contract, taken.sha256, taken.size_bytes, target)
        measured = measure(contender, target, rows, settings)
    return replace(
        measured,
        # The lowered file's contract was written by us: what had to be guessed is known of the given one only.
        assumed=tuple(dict.fromkeys((*file.contract.assumed, *lowered.notes, *measured.assumed))),
        warnings=(*measured.warnings, *lowered.warnings),
    )


def _read(data: DataSpec | None, file: OnnxFile, row_count: int | None) -> Rows | None:
    """Read the rows as the model takes them, all or ``row_count`` of them, in their order."""
    if data is None:
        return None
    rows = data.load(file.contract, file.tokenizer_json)
    if row_count is None or row_count >= len(rows):
        return rows
    # Files are often sorted by class: the first rows would not do.
    chosen = np.sort(np.random.default_rng(_SAMPLE_SEED).choice(len(rows), row_count, replace=False))
    note = f"{row_count} of the {len(rows)} rows of {rows.origin} were taken, drawn at random with seed {_SAMPLE_SEED}"
    return replace(rows.take(chosen), assumed=(*rows.assumed, note))


def _with_options(target: Target, options: Mapping[str, str]) -> Target:
    check_options(target.provider, options)
    return replace(target, session=replace(target.session, options={**target.session.options, **options})) if options else target


def _onnx(model: str) -> OnnxFile:
    source = parse_source(model)
    if source.scheme is not Scheme.ONNX:
        raise ConfigError(f"{model} is no ONNX file: export it first, monograph export {model} -o {source.name}.onnx")
    return read_onnx(source.path)
