"""A model made into what a target takes, with rows of DATA to calibrate and prove it on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from monograph.errors import ConfigError
from monograph.export.lowering import (
    SESSIONS,
    AgreementBound,
    Lowered,
    find_lowering,
    is_quantised,
    lower,
    lowered_contract,
    lowering_of,
    split_cascade,
)
from monograph.export.lowering.mixed import OnProgress
from monograph.export.lowering.plan import MixedPrecisionPlan
from monograph.export.ort_format import to_ort_format
from monograph.models.contract import Contract
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.models.sources import Scheme, parse_source
from monograph.pipelines.data import DataSpec, as_data_spec
from monograph.pipelines.mixed import Allowance, OnPlan, check_mixed, lower_mixed, plan_mixed

ORT_FORMAT = "ort"
CALIBRATION_ROWS = 256
"""More rows hardly move the range of an activation, and calibration keeps what every node gives for each of them."""
AGREEMENT_ROWS = 256
_SAMPLE_SEED = 1


@dataclass(frozen=True)
class Taken:
    """The file that a target is given."""

    file: OnnxFile
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def lower_model(
    model: str | Path,
    path: Path,
    *,
    to: str,
    calibration: str | DataSpec | None = None,
    batch_size: int = 1,
    sizes: Mapping[str, int] | None = None,
    bound: AgreementBound | None = None,
    max_drop: float | None = None,
    min_agreement: float | None = None,
    options: Mapping[str, str] | None = None,
    processors: str = "any",
    on_plan: OnPlan = lambda plan: None,
    on_progress: OnProgress = lambda completed, total, detail: None,
) -> Lowered:
    """Write ``model`` as what the lowering ``to`` makes of it, proven against it.

    Args:
        model: an ONNX file.
        path: the file to write; the folder, for ``sessions``.
        to: a name in ``LOWERINGS``; ``sessions``, a cascade as one file a stage; or ``ort``, ONNX Runtime's format for phones.
        calibration: DATA of the model's own domain, without labels or with; random rows where there are none. A quarter of
            its rows, at most 256, is held out to prove agreement on; with ``max_drop`` or ``min_agreement`` at most 256 rows
            calibrate, at most 1,024 are searched on, and all others prove.
        batch_size: of lowerings that fix sizes.
        sizes: of the model's other named dimensions.
        bound: what a quantised model has to reach.
        max_drop: of an 8-bit model: the largest loss in points of top-1, for a model without classes in hundredths of the
            labels' spread. The fewest layers stay in float for which the upper 95% bound of the loss, on rows that nothing was
            chosen by, is no larger.
        min_agreement: likewise, without labels: the smallest share of rows that keep their best class.
        options: of the execution provider that ``to`` compiles for, such as ``{"soc_model": "57"}``.
        processors: where 8-bit weights have to be exact: ``any``, or ``vnni`` or ``arm64`` alone, which take their full range.
        on_plan: is given the plan of a model in mixed precision before it is written.
        on_progress: is given finished evaluations, how many there may be, and what is being done.

    Raises:
        InputError: the model or the data cannot be used.
        ParityError: the lowered model does not compute what ``model`` does; nothing is written.
    """
    if batch_size < 1 or any(size < 1 for size in (sizes or {}).values()):
        raise ConfigError(f"batch {batch_size}, sizes {dict(sizes or {})}: give sizes of at least 1")
    data = as_data_spec(calibration)
    allowance = _allowance(to, max_drop, min_agreement, data)
    file = _onnx_file(model)
    if processors != "any" and to in (SESSIONS, ORT_FORMAT):
        raise ConfigError(f"{to} writes no 8-bit weights for processors: leave --for {processors} out")
    if to == SESSIONS:
        rows = _calibration_rows(data, file.contract, file)[0]
        return split_cascade(file, path, rows=rows)
    if to == ORT_FORMAT:
        rows = _calibration_rows(data, file.contract, file)[0]
        made = to_ort_format(file, path, rows=rows)
        notes = (f"the operators that it needs are listed in {made.config}, for a reduced build of ONNX Runtime",)
        return Lowered(made.path, ORT_FORMAT, file.contract, made.proof, notes, made.warnings)
    lowering = find_lowering(to)
    contract = lowered_contract(lowering, file.contract, batch_size, sizes)
    if allowance is not None:
        assert data is not None
        return lower_mixed(
            lowering, file, contract, allowance, data, path, batch_size=batch_size, sizes=sizes,
            processors=processors, on_plan=on_plan, on_progress=on_progress,
        )  # fmt: skip
    calibrating, held_out = _calibration_rows(data, contract, file)
    return lower(
        lowering,
        file,
        path,
        calibration=calibrating,
        rows=held_out,
        batch_size=batch_size,
        sizes=sizes,
        bound=bound,
        options=options,
        processors=processors,
    )


def plan_lowering(
    model: str | Path,
    path: Path,
    *,
    to: str,
    calibration: str | DataSpec | None,
    batch_size: int = 1,
    sizes: Mapping[str, int] | None = None,
    max_drop: float | None = None,
    min_agreement: float | None = None,
    on_progress: OnProgress = lambda completed, total, detail: None,
) -> MixedPrecisionPlan:
    """Return which layers :func:`lower_model` would leave in float, and write nothing.

    Raises:
        InputError: the model or the data cannot be used, or no limit is given.
    """
    lowering, file, data = find_lowering(to), _onnx_file(model), as_data_spec(calibration)
    allowance = Allowance(max_drop, min_agreement)
    check_mixed(lowering, data)
    assert data is not None
    contract = lowered_contract(lowering, file.contract, batch_size, sizes)
    return plan_mixed(lowering, file, contract, allowance, data, path, on_progress=on_progress)


def _allowance(to: str, max_drop: float | None, min_agreement: float | None, data: DataSpec | None) -> Allowance | None:
    """Return what may be lost; None where no limit is given.

    Raises:
        ConfigError: the limit cannot be held by ``to``, or on no rows.
    """
    if max_drop is None and min_agreement is None:
        return None
    if to in (SESSIONS, ORT_FORMAT):
        raise ConfigError(f"--max-drop and --min-agreement are for 8 bits, and {to} is not quantised: take int8-static")
    allowance = Allowance(max_drop, min_agreement)
    check_mixed(find_lowering(to), data)
    return allowance


def _onnx_file(model: str | Path) -> OnnxFile:
    source = parse_source(str(model))
    if source.scheme is not Scheme.ONNX:
        raise ConfigError(f"{model} is no ONNX file: export it first, monograph export {model} -o {source.name}.onnx")
    return read_onnx(source.path)


def lower_for(name: str, file: OnnxFile, folder: Path, *, data: DataSpec | None, calibration: DataSpec | None) -> Taken:
    """Return what a target that wants the lowering ``name`` is given: ``file`` itself where it was lowered already.

    Rows of ``data`` calibrate where no others are given, with a warning: they are what is scored. How often a quantised model
    chooses another class refuses nothing here: its accuracy is about to be measured.

    Raises:
        MonographError: the file cannot be lowered, or computes something else then.
    """
    lowered_by = lowering_of(file)
    if lowered_by is not None:
        return Taken(file, (f"{file.path.name} was taken as it is: lowered before, by {lowered_by}",))
    lowering = find_lowering(name)
    warnings: tuple[str, ...] = ()
    if lowering.is_quantised and is_quantised(file):
        lowering = find_lowering("static-batch")
    contract = lowered_contract(lowering, file.contract)
    rows, held_out = _calibration_rows(calibration or data, contract, file)
    if lowering.is_calibrated and calibration is None and rows is not None:
        warnings = (
            f"{file.path.name} was calibrated on {len(rows)} of the rows that it is scored on: its accuracy on others may be "
            "lower; give --calibration DATA",
        )
    lowered = lower(lowering, file, folder / file.path.name, calibration=rows, rows=held_out, is_enforced=False)
    return Taken(read_onnx(lowered.path), lowered.notes, (*lowered.warnings, *warnings))


def _calibration_rows(data: DataSpec | None, contract: Contract, file: OnnxFile) -> tuple[Rows | None, Rows | None]:
    """Draw rows to calibrate on, and others to prove agreement on; the latter None where there are too few for both."""
    if data is None:
        return None, None
    rows = replace(data.load(contract, file.tokenizer_json), labels=None)
    drawn = np.random.default_rng(_SAMPLE_SEED).permutation(len(rows))
    held_out_count = min(len(rows) // 4, AGREEMENT_ROWS)
    held_out, calibrating = drawn[:held_out_count], drawn[held_out_count : held_out_count + CALIBRATION_ROWS]
    return rows.take(calibrating), rows.take(held_out) if held_out_count else None
