"""How fast models are beside the first of them: interleaved, for a machine's speed drifts from one measurement to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from monograph.errors import ConfigError
from monograph.models.data.rows import Rows
from monograph.models.data.stream import RowStream
from monograph.models.onnx_file import OnnxFile
from monograph.runtime.compare import Comparison, compare
from monograph.runtime.measure import Contender, Settings, onnx_contender
from monograph.runtime.results import Measurement, SpeedRatio
from monograph.runtime.runner import possible_batch_sizes
from monograph.runtime.targets import Target

FEWEST_BLOCKS = 6
"""With fewer, no interval over blocks reaches 95%."""


def check_comparison(files: Sequence[OnnxFile], batch_size: int, blocks: int) -> None:
    """Refuse what cannot be compared, before anything is measured.

    Raises:
        ConfigError: there is one model only, their batches differ, or the blocks are too few.
    """
    if len(files) < 2:
        raise ConfigError("--compare sets models beside the first: give two or more")
    if blocks < FEWEST_BLOCKS:
        raise ConfigError(f"{blocks} blocks: give at least {FEWEST_BLOCKS}, fewer bound no ratio at 95%")
    sizes = [possible_batch_sizes(file.contract, [batch_size])[0] for file in files]
    if len(set(sizes)) > 1:
        told = ", ".join(f"{file.path.name} {size}" for file, size in zip(files, sizes, strict=True))
        raise ConfigError(f"--compare needs one batch size, and these models take {told}: export them alike")


def add_speed(
    measurements: Sequence[Measurement],
    files: Sequence[OnnxFile],
    targets: Sequence[Target],
    rows: Sequence[Rows | RowStream | None],
    settings: Settings,
    blocks: int,
    on_progress: Callable[[str, str], None],
) -> list[Measurement]:
    """Return the measurements, made file by file and target by target, with the ratio of each but the first file's to that.

    A target whose times are no latency, or that a model is lowered for first, is left as it is, with a warning.
    """
    made = list(measurements)
    few = {str(index): _first_rows(each, settings.batch_sizes[0]) for index, each in enumerate(rows)}
    for offset, target in enumerate(targets):
        places = range(offset, len(made), len(targets))
        why_not = _why_not(target, [made[place] for place in places])
        if why_not:
            for place in places:
                made[place] = replace(made[place], warnings=(*made[place].warnings, f"{target.name}: not compared, {why_not}"))
            continue

        def show(name: str, target_name: str = target.name) -> None:
            on_progress(files[int(name)].path.stem, f"{target_name}, in turns")

        found = compare(_contenders(files, target), few, settings, blocks=blocks, on_progress=show, run=target.run)
        for index, place in enumerate(places):
            if index > 0:
                batch_size = possible_batch_sizes(files[index].contract, settings.batch_sizes)[0]
                made[place] = replace(made[place], speed=_ratio(found, str(index), made[offset].model, batch_size))
    return made


def _why_not(target: Target, measured: Sequence[Measurement]) -> str:
    if target.lowering is not None:
        return "models are lowered for it"
    is_timed = all(one.evidence.gives_latency for one in measured)
    return "" if is_timed else "its times are no latency"


def _contenders(files: Sequence[OnnxFile], target: Target) -> list[Contender]:
    """Name them by their place: two files may have one name."""
    return [
        onnx_contender(str(index), file.path, file.contract, file.sha256, file.size_bytes, target)
        for index, file in enumerate(files)
    ]


def _ratio(found: Comparison, name: str, reference: str, batch_size: int) -> SpeedRatio:
    return SpeedRatio(reference, batch_size, found.ratio([name], ["0"]), found.p50_s[name], found.p50_s["0"])


def _first_rows(rows: Rows | RowStream | None, count: int) -> Rows | None:
    if rows is None:
        return None
    return rows.take(slice(0, count)) if isinstance(rows, Rows) else rows.read(0, min(count, rows.row_count))
