"""The fewest layers in float that hold a limit: a search over layers by their sensitivity.

Layers are ordered by how much the output moves with each alone in 8 bits (:mod:`monograph.export.lowering.sensitivity`). With
the first k of that order in float, the loss falls in k nearly always, so that log2 N evaluations find the k that suffices; then
layers are given back one by one, from the least sensitive on, while the limit holds. Each candidate is run on the search rows by
ONNX Runtime as it would be written, and given up as soon as the rows so far rule it out. The promise itself is tested on other
rows, once (:mod:`monograph.export.lowering.promise`).

NNCF's ``quantize_with_accuracy_control`` ranks all quantisers by running each on a subset of rows too, then removes one after
the other with all rows for each: https://github.com/openvinotoolkit/nncf, ``quantization_accuracy_restorer``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import ExportError
from monograph.export.fusion.macs import count_macs
from monograph.export.lowering.choose_weights import convert_with
from monograph.export.lowering.explain import explain
from monograph.export.lowering.layers import Layer, find_layers
from monograph.export.lowering.lowering import Lowering, LoweringJob
from monograph.export.lowering.plan import MixedPrecisionPlan, PlannedLayer
from monograph.export.lowering.promise import Limit, Loss, expected_bound, loss_of
from monograph.export.lowering.sensitivity import SENSITIVITY_ROWS, relative_change
from monograph.export.lowering.weight_forms import U8
from monograph.models.contract import Contract
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile
from monograph.runtime.runner import run_all_rows
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
Remember = Callable[[str, Mapping[str, Any], Callable[[], Mapping[str, Any]]], Mapping[str, Any]]
"""Does what has a name and parameters, or returns what it gave before."""
OnProgress = Callable[[int, int, str], None]
_CHUNK_ROWS = 128
"""After so many search rows a candidate may be given up."""


@dataclass(frozen=True)
class SplitRows:
    """Rows split once: what calibrates is not searched on, and what is searched on proves nothing."""

    calibration: Rows
    search: Rows
    proof: Rows


def search_precision(
    lowering: Lowering,
    source: OnnxFile,
    contract: Contract,
    rows: SplitRows,
    limit: Limit,
    folder: Path,
    *,
    remember: Remember = lambda name, parameters, action: action(),
    on_progress: OnProgress = lambda completed, total, detail: None,
) -> MixedPrecisionPlan:
    """Plan which layers of ``source`` are quantised, such that the proof rows can be expected to hold ``limit``.

    Args:
        lowering: to 8 bits, with a float graph of its own that can be prepared.
        source: the float model.
        contract: of the lowered model.
        rows: as ``contract`` takes them.
        limit: what may be lost.
        folder: for the candidates; the caller removes it.
        remember: keeps what each evaluation gave, so that an interrupted search goes on.
        on_progress: is given finished evaluations, how many there may be, and what is being done.

    Raises:
        ExportError: there is no layer to quantise, or none of them can be.
    """
    candidates = _Candidates(lowering, source, contract, rows, folder)
    evaluations = _Evaluations(candidates, limit, remember, on_progress)
    layers = candidates.layers
    whole = evaluations.loss(frozenset())
    errors: dict[str, float] = {}
    kept, why = frozenset[str](), dict[str, str]()
    if not evaluations.holds(kept):
        errors = {layer.name: evaluations.output_error(layer.name) for layer in layers}
        order = sorted((layer.name for layer in layers), key=lambda name: -errors[name])
        kept, why = _fewest_in_float(order, evaluations, source.path.name)
    chosen = evaluations.loss(kept)
    total_macs, local = count_macs(candidates.prepared), candidates.local_errors()
    evaluations.rows_evaluated += 2 * len(candidates.few)  # once as it is, once on the source's tensors
    return MixedPrecisionPlan(
        model=source.path.name,
        lowering=lowering.name,
        option=limit.option,
        measure=limit.measure.value,
        limit_points=limit.points,
        layers=tuple(
            PlannedLayer(
                name=layer.name,
                operator=layer.operator,
                nodes=layer.nodes,
                macs=layer.macs,
                macs_share=layer.macs / total_macs if layer.macs is not None and total_macs else None,
                weight_bytes=layer.weight_bytes,
                local_error=local.get(layer.name),
                output_error=errors.get(layer.name),
                stays_float=layer.name in kept,
                why=why.get(layer.name, ""),
            )
            for layer in layers
        ),
        whole=whole,
        chosen=chosen,
        expected_bound_points=evaluations.bound(kept, chosen),
        calibration_rows=len(rows.calibration),
        search_rows=len(rows.search),
        proof_rows=len(rows.proof),
        evaluations=evaluations.count,
        reused=evaluations.reused,
        rows_evaluated=evaluations.rows_evaluated,
        model_builds=evaluations.count + 1,
    )


def _fewest_in_float(order: Sequence[str], evaluations: _Evaluations, name: str) -> tuple[frozenset[str], dict[str, str]]:
    """Bisect for the shortest beginning of ``order`` that suffices, then give back what need not stay; return it and why.

    Raises:
        ExportError: not a single layer can be quantised.
    """
    fails, holds = 0, len(order)  # with all of them in float nothing is lost
    while holds - fails > 1:
        middle = (fails + holds) // 2
        if evaluations.holds(frozenset(order[:middle])):
            holds = middle
        else:
            fails = middle
    kept, why = frozenset(order[:holds]), dict[str, str]()
    for layer in reversed(order[:holds]):
        without = kept - {layer}
        if evaluations.holds(without):
            kept = without
        else:
            loss = evaluations.loss(without)
            why[layer] = f"in 8 bits, {loss.points:.2f} points are lost, at most {evaluations.bound(without, loss):.2f}"
    if len(kept) == len(order):
        raise ExportError(
            f"{name}: every one of its {len(order)} layers would have to stay in float to hold {evaluations.limit.option}; allow "
            "more, or leave the model in float; nothing was written"
        )
    return kept, why


class _Candidates:
    """Builds and runs quantised models; what all of them share is made once, when it is first needed."""

    def __init__(self, lowering: Lowering, source: OnnxFile, contract: Contract, rows: SplitRows, folder: Path) -> None:
        assert lowering.prepare is not None
        self.lowering, self.source, self.contract, self.rows, self.folder = lowering, source, contract, rows, folder
        self.few = rows.calibration.take(slice(0, SENSITIVITY_ROWS))
        self._count = 0

    @cached_property
    def _job(self) -> LoweringJob:
        assert self.lowering.prepare is not None
        prepared = self.folder / "prepared"
        prepared.mkdir()
        job = LoweringJob(self.source, self.contract, replace(self.rows.calibration, labels=None), prepared)
        return replace(job, prepared=self.lowering.prepare(job), ranges=self.folder / "ranges.json")

    @property
    def prepared(self) -> Path:
        """The float graph."""
        assert self._job.prepared is not None
        return self._job.prepared

    @cached_property
    def _whole(self) -> Path:
        return convert_with(self.lowering, replace(self._job, folder=self._new_folder()), U8)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """What can be quantised."""
        return find_layers(self.prepared, self._whole, self.lowering.operators, self.source.path.name)

    @cached_property
    def expected(self) -> Array:
        """Of the search rows, in float."""
        return run_all_rows(open_session(self.source.path), self.source.contract, self.rows.search)

    @cached_property
    def few_expected(self) -> Array:
        """Of the rows for sensitivity, in float."""
        return run_all_rows(open_session(self.source.path), self.source.contract, self.few)

    def build(self, kept: frozenset[str]) -> Path:
        """Quantise all but the layers ``kept``."""
        if not kept:
            return self._whole
        nodes = frozenset(node for layer in self.layers if layer.name in kept for node in layer.nodes)
        return convert_with(self.lowering, replace(self._job, folder=self._new_folder(), keep_float=nodes), U8)

    def outputs(self, path: Path, rows: Rows) -> Iterator[Array]:
        """Yield the primary output for a chunk of rows after the other."""
        session = open_session(path)
        for chunk in rows.batches(_CHUNK_ROWS):
            yield run_all_rows(session, self.contract, chunk)

    def local_errors(self) -> dict[str, float]:
        """Return the error that each layer makes by itself."""
        lowered = replace(self.source, path=self._whole, contract=self.contract)
        found = explain(self.source, lowered, self.few, self._new_folder(), reference=self.prepared)
        errors = {each.tensor: each.local.relative_error for each in found.layers}
        # What does not leave the layer may have been folded away.
        ends = {layer.name: [errors[name] for name in layer.outputs if name in errors] for layer in self.layers}
        return {name: max(values) for name, values in ends.items() if values}

    def _new_folder(self) -> Path:
        self._count += 1
        folder = self.folder / f"candidate-{self._count}"
        folder.mkdir()
        return folder


class _Evaluations:
    """Counts and remembers what candidates gave."""

    def __init__(self, candidates: _Candidates, limit: Limit, remember: Remember, on_progress: OnProgress) -> None:
        self.limit = limit
        self.count = self.reused = self.rows_evaluated = 0
        self._candidates, self._remember, self._on_progress = candidates, remember, on_progress
        self._losses: dict[frozenset[str], Loss] = {}

    def holds(self, kept: frozenset[str]) -> bool:
        """Say whether the proof rows can be expected to hold the limit with the layers ``kept`` in float."""
        return self.bound(kept, self.loss(kept)) <= self.limit.points

    def bound(self, kept: frozenset[str], loss: Loss) -> float:
        """Return the bound, in points, that is expected on the proof rows; all layers in 8 bits are the choice of no search."""
        tried = 1 if not kept else 1 + len(self._candidates.layers).bit_length()
        return expected_bound(self.limit, loss, len(self._candidates.rows.proof), tried)

    def loss(self, kept: frozenset[str]) -> Loss:
        """Return what is lost on the search rows with the layers ``kept`` in float."""
        if kept not in self._losses:
            told = "all layers in 8 bits" if not kept else f"{len(kept)} of {len(self._candidates.layers)} layers in float"
            search = self._candidates.rows.search
            found = self._evaluate("loss", {"kept": sorted(kept), "rows": search.sha256()}, told, lambda: self._run(kept))
            self._losses[kept] = Loss(**found["loss"])
        return self._losses[kept]

    def output_error(self, name: str) -> float:
        """Return how far the output moves with one layer alone in 8 bits."""
        few = self._candidates.few

        def run() -> Mapping[str, Any]:
            others = frozenset(layer.name for layer in self._candidates.layers) - {name}
            got = np.concatenate(list(self._candidates.outputs(self._candidates.build(others), few)))
            return {"error": relative_change(self._candidates.few_expected, got), "rows": len(few)}

        return float(self._evaluate("alone", {"layer": name, "rows": few.sha256()}, f"{name} alone", run)["error"])

    def _evaluate(
        self, what: str, parameters: Mapping[str, Any], told: str, run: Callable[[], Mapping[str, Any]]
    ) -> Mapping[str, Any]:
        self._on_progress(self.count, self._most(), told)
        candidates, is_new = self._candidates, []

        def run_now() -> Mapping[str, Any]:
            is_new.append(True)
            return run()

        basis = {
            "source": candidates.source.sha256,
            "lowering": [candidates.lowering.name, dict(candidates.lowering.settings)],
            "inputs": [spec.describe() for spec in candidates.contract.inputs],
            "calibration": candidates.rows.calibration.sha256(),
            "limit": asdict(self.limit),
            "proof_rows": len(candidates.rows.proof),
        }
        found = self._remember(what, {**basis, **parameters}, run_now)
        self.count += 1
        self.reused += not is_new
        self.rows_evaluated += int(found["rows"])
        return found

    def _run(self, kept: frozenset[str]) -> Mapping[str, Any]:
        """Run a candidate on the search rows, until they are over or rule it out."""
        candidates = self._candidates
        search, outputs = candidates.rows.search, list[Array]()
        loss: Loss | None = None
        for chunk in candidates.outputs(candidates.build(kept), search):
            outputs.append(chunk)
            got = np.concatenate(outputs)
            labels = None if search.labels is None else search.labels[: len(got)]
            loss = loss_of(self.limit, candidates.expected[: len(got)], got, labels)
            if loss.lost is not None and self._is_hopeless(kept, loss):
                break
        assert loss is not None
        return {"loss": asdict(loss), "rows": loss.row_count}

    def _is_hopeless(self, kept: frozenset[str], loss: Loss) -> bool:
        """Say whether the limit could not be held even if the two models differed on no further search row."""
        return self.bound(kept, replace(loss, row_count=len(self._candidates.rows.search))) > self.limit.points

    def _most(self) -> int:
        return max(self.count + 1, len(self._candidates.layers) + 2 * len(self._candidates.layers).bit_length() + 1)
