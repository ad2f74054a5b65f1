"""The verb ``measure``: accuracy and latency of models on targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from monograph.errors import ConfigError
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
from monograph.runtime.job import RawRun
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
    slices: Sequence[str] = (),
    group: str | None = None,
    parity: bool = False,
    reference: str | None = None,
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
        slices: columns of DATA, or ``class``, whose values part the rows: the same metrics for each.
        group: the column of DATA whose rows of one value are ranked against each other, such as a user or a query.
        parity: compare each target's outputs with those of cpu, which is run too; on random rows where no data is given.
        reference: a ``py:`` or ``hf:`` source whose PyTorch outputs are compared with as well.
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
    if reference is not None and not parity:
        raise ConfigError("--reference is what the parity matrix compares with: give --parity")
    if parity and reference is None and set(on) <= {REFERENCE_TARGET}:
        raise ConfigError(
            f"--parity compares with {REFERENCE_TARGET}: name another target with --on, or a source with --reference"
        )
    check_reference(reference)
    targets = [_with_options(find_target(name), options or {}) for name in (matrix_targets(on) if parity else on)]
    files = [_onnx(str(model)) for model in models]
    spec = as_data_spec(data)
    if spec is None and (slices or group):
        raise ConfigError("--slice and --group name columns of DATA: give --data")
    settings = Settings(tuple(batch_sizes), threads, spinning, rule or TimingRule(), allow_fallback)
    measurements: list[Measurement] = []
    with ExitStack() as opened:
        # All data is opened before anything is measured: what is wrong with it shows at once.
        streams = [None if spec is None else opened.enter_context(_stream(spec, file, slices, group)) for file in files]
        for file, stream in zip(files, streams, strict=True):
            rows = matrix_rows(stream, file.contract) if parity else stream
            outputs, of_file = Outputs(), []
            for target in targets:
                on_progress(file.path.stem, target.name)
                contender = onnx_contender(file.path.stem, file.path, file.contract, file.sha256, file.size_bytes, target)
                keep = partial(outputs.keep, target.name) if parity else _forget
                of_file.append(measure(contender, target, rows, settings, keep))
            if parity:
                assert rows is not None
                of_file = add_agreements(of_file, outputs, file, rows, reference)
            measurements += of_file
    return measurements


def _forget(run: RawRun) -> None:
    """Let go of what a run gave once it is scored."""


def _stream(spec: DataSpec, file: OnnxFile, slices: Sequence[str], group: str | None) -> AbstractContextManager[RowStream]:
    return spec.open(file.contract, file.tokenizer_json, slices=slices, group=group)


def _with_options(target: Target, options: Mapping[str, str]) -> Target:
    check_options(target.provider, options)
    return replace(target, session=replace(target.session, options={**target.session.options, **options})) if options else target


def _onnx(model: str) -> OnnxFile:
    source = parse_source(model)
    if source.scheme is not Scheme.ONNX:
        raise ConfigError(f"{model} is no ONNX file: export it first, monograph export {model} -o {source.name}.onnx")
    return read_onnx(source.path)
