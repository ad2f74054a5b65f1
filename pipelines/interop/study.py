"""What all tasks of a study share: the models that ran, what was measured of them, and where finished tasks are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import monograph
from monograph.errors import FusionError
from monograph.models.files import write_atomically
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.pipelines.data import DataSpec
from monograph.pipelines.interop.fusion import Cost
from monograph.pipelines.interop.members import Model
from monograph.pipelines.interop.result import Contact
from monograph.pipelines.interop.yardstick import Yardstick
from monograph.pipelines.records import read_record, write_record
from monograph.runtime.measure import Settings, measure, onnx_contender
from monograph.runtime.targets import find_target
from monograph.runtime.timing import TimingRule

T = TypeVar("T")
Told = Callable[[int, int, str], None]
TASKS = "tasks"
_TIMING = TimingRule(min_runs=100, min_s=0.3, max_s=5.0)
"""Of a pair among many: enough for a median, not for the tail of a distribution."""


@dataclass(frozen=True)
class Study:
    """What all tasks share."""

    spec: DataSpec
    folder: Path
    models: tuple[Model, ...]
    """Those that ran on the rows."""
    contacts: Mapping[frozenset[str], Contact]
    rows_sha256: str
    yardstick: Yardstick
    target: str | None
    latency_ms: Mapping[str, float | None]

    def kept(self, what: str, names: Sequence[str], kind: type[T], make: Callable[[], T]) -> T:
        """Return the record of a task, which is done once: a study that was stopped goes on where it was."""
        meant = [model for name in names for model in self.models if model.name == name]
        files = " ".join(f"{model.file.sha256} {list(model.answers.parts) if model.answers else ''}" for model in meant)
        grouped = "" if self.yardstick.groups is None else hashlib.sha256(self.yardstick.groups.tobytes()).hexdigest()
        told = f"{what} {' '.join(names)} {files} {self.rows_sha256} {grouped} {self.yardstick.seed} {monograph.__version__}"
        path = self.folder / TASKS / f"{what.split()[0]}-{hashlib.sha256(told.encode()).hexdigest()[:24]}.json"
        if path.exists():
            return read_record(path, kind)
        made = make()
        with write_atomically(path) as staged:
            write_record(staged, made)
        return made

    def fitting_pairs(self) -> Iterator[tuple[Model, Model]]:
        """Yield the pairs that can be fused."""
        for pair in combinations(self.models, 2):
            if self.contacts[frozenset(model.name for model in pair)].fits:
                yield pair


def latency_ms(study: Study, model: Model, on_progress: Told) -> float | None:
    """Return the median of a row, measured alone in a process of its own."""
    if study.target is None:
        return None
    on_progress(0, 1, f"latency of {model.name} on {study.target}")
    make = partial(time_file, model.file, model.name, study.target)
    return study.kept(f"latency {study.target}", [model.name], dict[str, float | None], make)["ms"]


def time_file(file: OnnxFile, name: str, on: str) -> dict[str, float | None]:
    """Return the median of a row under ``ms``; None where the target has no latency of its own."""
    target = find_target(on)
    contender = onnx_contender(name, file.path, file.contract, file.sha256, file.size_bytes, target)
    latency = measure(contender, target, None, Settings(batch_sizes=(1,), rule=_TIMING)).latency
    return {"ms": None if latency is None else 1e3 * latency.p50_s.estimate}


def cost_of(study: Study, group: Sequence[Model]) -> Cost:
    """Build the fused graph, count it, time it, and throw it away: weights do not change what it costs."""
    from monograph.export.fusion.cost import estimate_cost
    from monograph.export.fusion.plan import plan_fusion
    from monograph.pipelines.fuse import fuse_models

    try:
        macs = estimate_cost(plan_fusion([model.file for model in group], names=names_of(group))).fused_macs
        if study.target is None:
            return Cost(macs, None)
        with TemporaryDirectory(prefix="monograph-") as folder:
            path = Path(folder) / "fused.onnx"
            fuse_models([str(model.file.path) for model in group], path)
            return Cost(macs, time_file(read_onnx(path), " + ".join(names_of(group)), study.target)["ms"])
    except FusionError:  # the fusion itself says why
        return Cost(None, None)


def names_of(models: Sequence[Model]) -> list[str]:
    """Return their names."""
    return [model.name for model in models]
