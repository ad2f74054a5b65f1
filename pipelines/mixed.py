"""Eight bits that lose no more than is allowed: rows split once, a search that can be resumed, a plan, then the proof."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import ConfigError, DataError, MonographError
from monograph.export.lowering import AgreementBound, Lowered, Lowering, Mixed, lower
from monograph.export.lowering.mixed import OnProgress, Remember, SplitRows, search_precision
from monograph.export.lowering.plan import MixedPrecisionPlan
from monograph.export.lowering.promise import Limit, Measure, Promise, check_rows, keep_promise, limit_of, loss_of
from monograph.models.contract import Contract
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile
from monograph.pipelines.data import DataSpec
from monograph.pipelines.progress import Progress
from monograph.pipelines.steps import open_workspace

Array = npt.NDArray[Any]
OnPlan = Callable[[MixedPrecisionPlan], None]
_CALIBRATION_ROWS, _SEARCH_ROWS = 256, 1024
"""At most: all others prove."""
_SEED = 1
_RESULT = "result.json"
_ANY = AgreementBound(top1=0.0, cosine=-1.0)
"""The promise says what may be lost."""


@dataclass(frozen=True)
class Allowance:
    """What quantising may cost; one of the two."""

    max_drop: float | None = None
    """In points of top-1; without classes of the labels' spread."""
    min_agreement: float | None = None
    """Share of rows that keep their best class."""

    def __post_init__(self) -> None:
        if (self.max_drop is None) == (self.min_agreement is None):
            raise ConfigError("--max-drop takes rows with labels, --min-agreement rows without: give one of them")
        if self.max_drop is not None and not 0 < self.max_drop < 100:
            raise ConfigError(f"--max-drop {self.max_drop:g}: give points above 0 and below 100, such as 0.5")
        if self.min_agreement is not None and not 0 < self.min_agreement < 1:
            raise ConfigError(f"--min-agreement {self.min_agreement:g}: give a share above 0 and below 1, such as 0.99")


def check_mixed(lowering: Lowering, calibration: DataSpec | None) -> None:
    """Refuse, before any row is read, a lowering that keeps no layer in float and a limit without rows.

    Raises:
        ConfigError: it is one of the two.
    """
    if not lowering.is_quantised:
        raise ConfigError(f"--max-drop is for 8 bits, and {lowering.name} is not quantised: take int8-static, or leave it out")
    if lowering.prepare is None:
        raise ConfigError(
            f"{lowering.name} cannot leave layers in float: --max-drop and --min-agreement take int8-static, int8-dynamic or "
            "qdq-int8"
        )
    if calibration is None:
        raise ConfigError("--max-drop and --min-agreement are proven on rows: give --calibration DATA")


def plan_mixed(
    lowering: Lowering,
    file: OnnxFile,
    contract: Contract,
    allowance: Allowance,
    calibration: DataSpec,
    path: Path,
    *,
    on_progress: OnProgress,
) -> MixedPrecisionPlan:
    """Search which layers stay in float; what an interrupted search found is beside ``path`` and is not done again.

    Raises:
        DataError: the rows have no labels where they are needed, or are too few to promise anything.
        ExportError: no layer can be quantised.
    """
    limit, rows = _prepare(file, contract, allowance, calibration)
    with _remembering(path) as remember:
        return _search(lowering, file, contract, rows, limit, remember, on_progress)


def lower_mixed(
    lowering: Lowering,
    file: OnnxFile,
    contract: Contract,
    allowance: Allowance,
    calibration: DataSpec,
    path: Path,
    *,
    batch_size: int,
    sizes: Mapping[str, int] | None,
    processors: str,
    on_plan: OnPlan,
    on_progress: OnProgress,
) -> Lowered:
    """Plan as :func:`plan_mixed` does, and write what is planned, if the proof rows say that it holds the limit.

    Raises:
        DataError: the rows have no labels where they are needed, or are too few to tell.
        ExportError: no layer can be quantised.
        ParityError: what is planned loses more on the proof rows.
    """
    limit, rows = _prepare(file, contract, allowance, calibration)
    with _remembering(path) as remember:
        plan = _search(lowering, file, contract, rows, limit, remember, on_progress)
        on_plan(plan)
        on_progress(plan.evaluations, plan.evaluations, f"proof on {len(rows.proof):,} rows")
        return lower(
            lowering,
            file,
            path,
            calibration=replace(rows.calibration, labels=None),
            rows=replace(rows.proof, labels=None),
            batch_size=batch_size,
            sizes=sizes,
            bound=_ANY,
            is_enforced=False,
            processors=processors,
            mixed=Mixed(plan, rows.search, partial(_judge, limit, rows.proof.labels, file.path.name)),
        )


def _prepare(file: OnnxFile, contract: Contract, allowance: Allowance, calibration: DataSpec) -> tuple[Limit, SplitRows]:
    limit = limit_of(allowance.max_drop, allowance.min_agreement, file.contract)
    if limit.measure is Measure.AGREEMENT and not file.contract.kind.has_classes:
        raise ConfigError(
            f"{file.path.name} has no classes, so no best class to agree on: give --max-drop, in hundredths of the labels' spread"
        )
    return limit, _split(calibration.load(contract, file.tokenizer_json), limit)


def _search(
    lowering: Lowering,
    file: OnnxFile,
    contract: Contract,
    rows: SplitRows,
    limit: Limit,
    remember: Remember,
    on_progress: OnProgress,
) -> MixedPrecisionPlan:
    with tempfile.TemporaryDirectory(prefix="monograph-mixed-") as folder:
        return search_precision(lowering, file, contract, rows, limit, Path(folder), remember=remember, on_progress=on_progress)


def _judge(limit: Limit, labels: Array | None, name: str, expected: Array, got: Array) -> Promise:
    return keep_promise(limit, loss_of(limit, expected, got, labels), name)


def _split(rows: Rows, limit: Limit) -> SplitRows:
    """Split rows by a seed into those that calibrate, those that are searched on and those that prove.

    Raises:
        DataError: they have no labels, or those that prove are too few even if the models never differ.
    """
    usable = check_rows(limit, rows)
    counts = _part_sizes(len(usable))
    if counts[2] < limit.fewest_rows:
        raise DataError(
            f"{rows.origin}: {len(usable):,} rows, of which {counts[2]:,} prove, cannot promise {limit.option}: it takes "
            f"{_rows_in_all(limit.fewest_rows):,} in all, {limit.fewest_rows:,} of them to prove, even if no row is decided "
            "otherwise; give more rows, or allow more"
        )
    drawn = np.random.default_rng(_SEED).permutation(len(usable))
    parts = np.split(drawn, np.cumsum(counts)[:2])
    return SplitRows(*(usable.take(part) for part in parts))


def _part_sizes(row_count: int) -> tuple[int, int, int]:
    calibration = min(_CALIBRATION_ROWS, row_count // 4)
    search = min(_SEARCH_ROWS, (row_count - calibration) // 3)
    return calibration, search, row_count - calibration - search


def _rows_in_all(proof_count: int) -> int:
    """Return how many rows leave ``proof_count`` to prove on."""
    count = proof_count
    while _part_sizes(count)[2] < proof_count:
        count += 1
    return count


@contextmanager
def _remembering(path: Path) -> Iterator[Remember]:
    """Yield what keeps evaluations in a folder beside ``path``, which stays only where the search is killed or interrupted.

    Raises:
        ConfigError: another search writes there.
    """
    folder = path.absolute().with_name(f".{path.name}.search")
    with open_workspace(folder, Progress(quiet=True)) as workspace:

        def remember(name: str, parameters: Mapping[str, Any], action: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
            def write(work: Path) -> None:
                (work / _RESULT).write_text(json.dumps(action()), encoding="utf-8")

            found: Mapping[str, Any] = json.loads((workspace.step(name, parameters, write) / _RESULT).read_text(encoding="utf-8"))
            return found

        try:
            yield remember
        except MonographError:
            _forget(folder)
            raise
    _forget(folder)


def _forget(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
