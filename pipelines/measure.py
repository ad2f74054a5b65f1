"""The verb ``measure``: accuracy and latency of models on targets."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from monograph.errors import ConfigError, MonographError
from monograph.export.predict import RULE_BOOKS, predict, with_work
from monograph.models.data.rows import Rows
from monograph.models.data.stream import RowStream
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.models.sources import Scheme, parse_source
from monograph.pipelines.data import DataSpec, as_data_spec
from monograph.pipelines.parity_matrix import (
    REFERENCE_TARGET,
    Outputs,
    add_agreements,
    check_reference,
    matrix_rows,
    matrix_targets,
)
from monograph.pipelines.profile import attribute_to_members
from monograph.pipelines.speed import add_speed, check_comparison
from monograph.runtime.coverage import coverage_gap
from monograph.runtime.extras import check_extras, possible_extras
from monograph.runtime.job import RawRun
from monograph.runtime.load import LoadSpec
from monograph.runtime.loadgen import LoadgenSpec
from monograph.runtime.measure import BATCH_SIZES, Settings, measure, onnx_contender
from monograph.runtime.results import Measurement
from monograph.runtime.staged import is_staged, read_staged
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
    slices: Sequence[str] = (),
    group: str | None = None,
    parity: bool = False,
    reference: str | None = None,
    load: LoadSpec | None = None,
    loadgen: LoadgenSpec | None = None,
    profile: bool = False,
    compare_blocks: int | None = None,
    on_progress: Callable[[str, str], None] = lambda model, target: None,
    on_failure: Callable[[str, str, MonographError], None] | None = None,
) -> list[Measurement]:
    """Measure each model on each target, each in a fresh process of its own.

    Args:
        models: ONNX files, or folders that ``lower --to sessions`` wrote.
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
        slices: columns of DATA, or ``class``, whose values part the rows: the same metrics for each.
        group: the column of DATA whose rows of one value are ranked against each other, such as a user or a query.
        parity: compare each target's outputs with those of cpu, which is run too; on random rows where no data is given.
        reference: a ``py:`` or ``hf:`` source whose PyTorch outputs are compared with as well.
        load: callers at once, or arrivals at a rate, to measure under as well.
        loadgen: the scenario in which MLPerf's LoadGen is to drive the model as well.
        profile: tell the time per operator, provider and, of a fused graph, per member as well.
        compare_blocks: time each model in turns with the first as well, in so many blocks of fresh processes.
        on_progress: told the model and the target before each measurement.
        on_failure: told the model, the target and why it could not be measured there; the others go on. Without it that is
            raised at once.

    Raises:
        InputError: a model, a target or the data cannot be used.
        PlacementError: something else than the target ran a part of a model that counts.
        WorkerError: a measuring process died.
    """
    _check(batch_sizes, threads, row_count, has_data=data is not None, parts=bool(slices or group))
    _check_parity(on, parity, reference)
    targets = _targets(on, options or {}, parity)
    files = _files(models, profile)
    spec = as_data_spec(data)
    settings = Settings(tuple(batch_sizes), threads, spinning, rule or TimingRule(), allow_fallback, load, loadgen, profile)
    check_extras([target for target in targets if target.name in on], settings)
    if compare_blocks is not None:
        check_comparison(files, batch_sizes[0], compare_blocks)
    lower = partial(_measure_lowered, data=spec, calibration=as_data_spec(calibration))
    measurements: list[Measurement] = []
    with ExitStack() as opened:
        # All data is opened before anything is measured: what is wrong with it shows at once.
        streams = [_rows(spec, file, row_count, slices, group, opened) for file in files]
        for file, stream in zip(files, streams, strict=True):
            rows = matrix_rows(stream, file.contract) if parity else stream
            outputs = Outputs() if parity else None
            of_file = _measure_on_each(file, targets, rows, settings, lower, outputs, on_progress, on_failure)
            if outputs is not None and rows is not None:
                of_file = add_agreements(of_file, outputs, file, rows, reference)
            measurements += of_file
        if compare_blocks is not None and len(measurements) == len(files) * len(targets):
            measurements = add_speed(measurements, files, targets, streams, settings, compare_blocks, on_progress)
    return measurements


def _targets(on: Sequence[str], options: Mapping[str, str], parity: bool) -> list[Target]:
    """Return the targets with the provider's options; what is missing is told before hours of others, not after."""
    targets = [find_target(name).with_options(options) for name in (matrix_targets(on) if parity else on)]
    for target in targets:
        target.require_here()
    return targets


def _files(models: Sequence[str | Path], profile: bool) -> list[OnnxFile]:
    files = [onnx_file_of(str(model)) for model in models]
    if profile and (folders := [file.path for file in files if file.path.is_dir()]):
        raise ConfigError(f"--profile tells the time in one session, and {folders[0]} has several: profile a stage")
    return files


def _measure_on_each(
    file: OnnxFile,
    targets: Sequence[Target],
    rows: Rows | RowStream | None,
    settings: Settings,
    lower: Callable[..., Measurement],
    outputs: Outputs | None,
    on_progress: Callable[[str, str], None],
    on_failure: Callable[[str, str, MonographError], None] | None,
) -> list[Measurement]:
    """Measure one model on all targets, those left out on which it fails and ``on_failure`` is told so."""
    measurements = []
    for target in targets:
        on_progress(file.path.stem, target.name)
        keep = _forget if outputs is None else partial(outputs.keep, target.name)
        possible, warnings = possible_extras(target, settings)
        try:
            measured = (_measure_as_it_is if target.lowering is None else lower)(file, target, rows, possible, keep)
            measured = _completed(measured, file, target, settings.batch_sizes[0])
        except MonographError as error:
            if on_failure is None:
                raise
            on_failure(file.path.stem, target.name, error)
            continue
        measurements.append(replace(measured, warnings=(*measured.warnings, *warnings)))
    return measurements


def _check(batch_sizes: Sequence[int], threads: int | None, row_count: int | None, *, has_data: bool, parts: bool) -> None:
    if not batch_sizes or min(batch_sizes) < 1:
        raise ConfigError(f"batch sizes {list(batch_sizes)}: give one or more sizes of at least 1")
    if threads is not None and threads < 1:
        raise ConfigError(f"{threads} threads: give at least 1")
    if row_count is not None and row_count < 1:
        raise ConfigError(f"{row_count} rows: give at least 1")
    if row_count is not None and parts:
        raise ConfigError("--rows draws rows at random: leave out --slice and --group, or --rows")
    if parts and not has_data:
        raise ConfigError("--slice and --group name columns of DATA: give --data")


def _check_parity(on: Sequence[str], parity: bool, reference: str | None) -> None:
    if reference is not None and not parity:
        raise ConfigError("--reference is what the parity matrix compares with: give --parity")
    if parity and reference is None and set(on) <= {REFERENCE_TARGET}:
        raise ConfigError(
            f"--parity compares with {REFERENCE_TARGET}: name another target with --on, or a source with --reference"
        )
    check_reference(reference)


def _measure_as_it_is(
    file: OnnxFile, target: Target, rows: Rows | RowStream | None, settings: Settings, keep: Callable[[RawRun], None]
) -> Measurement:
    contender = onnx_contender(file.path.stem, file.path, file.contract, file.sha256, file.size_bytes, target)
    measured = measure(contender, target, rows, settings, keep)
    gap = coverage_gap(file, target)
    warnings = measured.warnings if gap is None else (*measured.warnings, gap)
    return replace(measured, placement=with_work(measured.placement, file), warnings=warnings)


def _completed(measurement: Measurement, file: OnnxFile, target: Target, batch_size: int) -> Measurement:
    """Add what is told by the graph: whose time a profile shows, and what the rules of a provider say."""
    return with_prediction(attribute_to_members(measurement, file.path), file, target, batch_size)


def _forget(run: RawRun) -> None:
    """Let go of what a run gave once it is scored."""


def _measure_lowered(
    file: OnnxFile,
    target: Target,
    rows: Rows | RowStream | None,
    settings: Settings,
    keep: Callable[[RawRun], None],
    *,
    data: DataSpec | None,
    calibration: DataSpec | None,
) -> Measurement:
    """Measure what ``file`` becomes for ``target``; the record says what was done to it."""
    from monograph.pipelines.lower import lower_for  # it brings PyTorch, which other targets do without

    assert target.lowering is not None
    with tempfile.TemporaryDirectory(prefix="monograph-lowered-") as folder:
        lowered = lower_for(target.lowering, file, Path(folder), data=data, calibration=calibration)
        taken = lowered.file
        contender = onnx_contender(file.path.stem, taken.path, taken.contract, taken.sha256, taken.size_bytes, target)
        measured = measure(contender, target, rows, settings, keep)
        placement = with_work(measured.placement, taken)
    return replace(
        measured,
        placement=placement,
        # The lowered file's contract was written by us: what had to be guessed is known of the given one only.
        assumed=tuple(dict.fromkeys((*file.contract.assumed, *lowered.notes, *measured.assumed))),
        warnings=(*measured.warnings, *lowered.warnings),
    )


def _rows(
    data: DataSpec | None, file: OnnxFile, row_count: int | None, slices: Sequence[str], group: str | None, opened: ExitStack
) -> Rows | RowStream | None:
    """Return the rows as the model takes them: all of them, a part at a time, or ``row_count`` drawn at random."""
    if data is None:
        return None
    if row_count is None:
        return opened.enter_context(data.open(file.contract, file.tokenizer_json, slices=slices, group=group))
    rows = data.load(file.contract, file.tokenizer_json)
    if row_count >= len(rows):
        return rows
    # Files are often sorted by class: the first rows would not do.
    chosen = np.sort(np.random.default_rng(_SAMPLE_SEED).choice(len(rows), row_count, replace=False))
    note = f"{row_count} of the {len(rows)} rows of {rows.origin} were taken, drawn at random with seed {_SAMPLE_SEED}"
    return replace(rows.take(chosen), assumed=(*rows.assumed, note))


def with_prediction(measurement: Measurement, file: OnnxFile, target: Target, batch_size: int) -> Measurement:
    """Add what the rules of the target's provider say, where there are rules for it.

    Raises:
        ConfigError: a cascade in stages was given, whose files are predicted one by one.
    """
    if target.provider not in RULE_BOOKS:
        return measurement
    if file.path.is_dir():
        raise ConfigError(f"{file.path} is a cascade in stages: predict each, --on {target.name} {file.path}/stage-1.onnx")
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


def onnx_file_of(model: str) -> OnnxFile:
    """Read an ONNX file, or a cascade in stages.

    Raises:
        InputError: it cannot be read, or is no ONNX.
    """
    if is_staged(Path(model)):
        return read_staged(Path(model))
    source = parse_source(model)
    if source.scheme is not Scheme.ONNX:
        raise ConfigError(f"{model} is no ONNX file: export it first, monograph export {model} -o {source.name}.onnx")
    return read_onnx(source.path)
