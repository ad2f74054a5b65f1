"""Build a cascade, prove it, write it.

The reference is every member's own file, run on all rows of the batch and put together in numpy. The proof runs batches of
which all rows are easy, all are hard, and some are either; where the rows and thresholds do not give such a batch, it runs
the same graph with other thresholds, which differ in nothing else.

Shape letters: ``b`` batch, ``c`` classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from monograph.errors import DataError, ExportError, ParityError
from monograph.export.fusion.cascade.build import build_cascade
from monograph.export.fusion.cascade.fit import answering_member
from monograph.export.fusion.cascade.gates import GATES, calibrated
from monograph.export.fusion.cascade.plan import CascadePlan
from monograph.export.fusion.fuse import FUSION_BATCH_SIZES, FUSION_KEY, run_member
from monograph.export.golden import golden_json
from monograph.export.parity import TOLERANCE, BatchParity, Computation, ParityProof, open_when_run, prove_batches
from monograph.export.trace import PROOF_KEY
from monograph.models.contract import CONTRACT_KEY, TOKENIZER_KEY, Kind
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile, read_onnx, size_on_disk, write_onnx
from monograph.models.seen import NOTHING_SEEN, SeenRows, seen_metadata
from monograph.runtime.apart import open_sessions
from monograph.runtime.golden import GOLDEN_KEY, GoldenBatch, LeftOut, RandomRows

Array = npt.NDArray[Any]
CASES = ("easy", "hard", "mixed")
_POOL_ROWS = 128
_POOL_BATCH = 16
_SEQUENCE_LENGTHS = (12, 7, 19)
_SMALLEST_GAP, _SMALLEST_GAP_FLOAT16 = 1e-5, 1e-2
"""A row whose score lies nearer to a threshold may be told hard by one computation and easy by another."""
_ALWAYS_HARD = 2.0


@dataclass(frozen=True)
class CascadeProof:
    """One batch of the proof."""

    case: str
    """``easy``: the first member answers all rows, ``hard``: the last one does, ``mixed``: several do."""
    batch_size: int
    answered: tuple[int, ...]
    """How many rows each member answered."""
    thresholds: tuple[float, ...]
    """The plan's, or those with which this case could be run on the rows there were."""


@dataclass(frozen=True)
class Cascaded:
    """One graph of all members, proven equal to the members run apart."""

    file: OnnxFile
    plan: CascadePlan
    proof: ParityProof
    cases: tuple[CascadeProof, ...]
    """One for each batch of ``proof``, in its order."""
    node_count: int

    def describe(self) -> str:
        """Return one line for people."""
        own = sorted({case.case for case in self.cases if case.thresholds == self.plan.thresholds}, key=CASES.index)
        others = sorted({case.case for case in self.cases} - set(own), key=CASES.index)
        text = f"{self.proof.describe()}; rows all {', all '.join(own) if own else 'near a threshold'}".replace(
            "all mixed", "mixed"
        )
        return text + (f", and by other thresholds {', '.join(others)}" if others else "")


@dataclass(frozen=True)
class _Pool:
    """Rows to draw batches from, and every member's output for them."""

    rows: Rows
    origin: str
    probabilities: tuple[Array, ...]
    """``float64 [n, c]`` a member."""
    recipe: RandomRows | None
    """How the rows were drawn, where they are random."""


class CascadeApart:
    """The reference of the proof: each member's own file on all rows, combined in numpy in float64.

    Raises:
        SourceError: ONNX Runtime cannot load a member.
    """

    def __init__(self, plan: CascadePlan) -> None:
        self.plan = plan
        paths = [member.path for member in plan.members]
        self.sessions = open_sessions(paths, sum(map(size_on_disk, paths)))

    def outputs(self, inputs: Mapping[str, Array]) -> list[tuple[Array, Array]]:
        """Return each member's calibrated output and probabilities, ``float64 [b, c]`` both.

        Raises:
            FusionError: a member cannot be run on these inputs.
        """
        members = zip(self.plan.members, self.sessions, self.plan.temperatures, strict=True)
        return [calibrated(run_member(member, session, inputs), member.kind, t) for member, session, t in members]

    def with_thresholds(self, thresholds: Sequence[float]) -> Computation:
        """Return the cascade as a function of shared inputs to its output."""

        def compute(inputs: Mapping[str, Array]) -> dict[str, Array]:
            outputs = self.outputs(inputs)
            depths = answering_member([probabilities for _, probabilities in outputs], thresholds, GATES[self.plan.gate])
            answers = np.stack([output[0 if self.plan.contract.kind is Kind.LOGITS else 1] for output in outputs])
            return {self.plan.contract.output.name: answers[depths, np.arange(len(depths))]}

        return compute


def fuse_cascade(
    plan: CascadePlan,
    path: Path,
    *,
    rows: Rows | None = None,
    batch_sizes: Sequence[int] = FUSION_BATCH_SIZES,
    tolerance: float = TOLERANCE,
    seen: SeenRows = NOTHING_SEEN,
) -> Cascaded:
    """Build the graph of ``plan``, prove it equal to the members run apart, and only then write ``path``.

    What its members have ``seen``, and the fit of its thresholds, it says too.

    Raises:
        FusionError: the members' graphs cannot be joined, or one does not run alone.
        ParityError: the cascade does not compute what the members do; nothing is written.
        ExportError: the graph is no valid ONNX model.
        DataError: ``rows`` lack an input.
    """
    graph = build_cascade(plan)
    node_count = sum(1 for _ in graph.graph.all_nodes())
    proofs: list[ParityProof] = []
    cases: list[CascadeProof] = []

    def prove(staged: Path) -> dict[str, str]:
        with TemporaryDirectory(prefix="monograph-cascade-") as folder:
            proving = _Proving(plan, staged, Path(folder), max(tolerance, plan.rounding))
            compared: list[BatchParity] = []
            proven: list[GoldenBatch] = []
            for case, batch in draw_cases(plan, proving.apart, rows, batch_sizes):
                comparisons, golden = proving.prove(batch, case.thresholds)
                cases.append(case)
                compared += comparisons
                proven.append(golden)
            proofs.append(ParityProof(*proving.names, proving.tolerance, 0, tuple(compared)))
            return {
                PROOF_KEY: json.dumps(asdict(proofs[0]) | {"cases": [asdict(case) for case in cases]}),
                GOLDEN_KEY: proving.golden_json(cases, proven),
            }

    metadata = {CONTRACT_KEY: plan.contract.to_json(), FUSION_KEY: plan.to_json()} | seen_metadata(seen, path)
    if plan.tokenizer_json is not None:
        metadata[TOKENIZER_KEY] = plan.tokenizer_json
    try:
        write_onnx(graph, path, metadata, prove)
    except onnx.checker.ValidationError as error:
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"{path.name} would not be a valid ONNX model: {reason}; nothing was written") from error
    except ParityError as error:
        if not plan.findings:
            raise
        suspects = "; ".join(f"{name}: {finding.describe()}" for name, finding in plan.findings[:3])
        raise ParityError(f"{error}. Operators that may not take a part of the rows: {suspects}") from error
    return Cascaded(read_onnx(path), plan, proofs[0], tuple(cases), node_count)


class _Proving:
    """Proves batches of a written cascade; where a case needs other thresholds, of the same graph with those."""

    def __init__(self, plan: CascadePlan, staged: Path, folder: Path, tolerance: float) -> None:
        self.plan, self.staged, self.folder, self.tolerance = plan, staged, folder, tolerance
        self.names = ("the members run apart", staged.name)
        self.apart = CascadeApart(plan)
        self.variants: dict[tuple[float, ...], Path] = {plan.thresholds: staged}

    def prove(self, batch: GoldenBatch, thresholds: tuple[float, ...]) -> tuple[tuple[BatchParity, ...], GoldenBatch]:
        """Return the comparisons, and the batch with what the members run apart give for it."""
        (proven,) = prove_batches(
            self.apart.with_thresholds(thresholds),
            open_when_run(self._variant(thresholds)),
            [batch],
            self.plan.contract,
            names=self.names,
            tolerance=self.tolerance,
        )
        return proven

    def _variant(self, thresholds: tuple[float, ...]) -> Path:
        if thresholds not in self.variants:
            path = self.variants[thresholds] = self.folder / f"{len(self.variants)}.onnx"
            write_onnx(build_cascade(replace(self.plan, thresholds=thresholds)), path, {}, lambda staged: {})
        return self.variants[thresholds]

    def golden_json(self, cases: Sequence[CascadeProof], proven: Sequence[GoldenBatch]) -> str:
        """Keep the batches that were run with the plan's own thresholds, the only ones that the file has."""
        own = self.plan.thresholds
        pairs = list(zip(cases, proven, strict=True))
        return golden_json(
            [batch for case, batch in pairs if case.thresholds == own],
            self.plan.contract,
            self.staged,
            reference=self.names[0],
            tolerance=self.tolerance,
            prove_again=lambda batch: self.prove(batch, own)[1],
            left_out=[_proven_otherwise(case, batch) for case, batch in pairs if case.thresholds != own],
        )


def _proven_otherwise(case: CascadeProof, batch: GoldenBatch) -> LeftOut:
    thresholds = ", ".join(f"{threshold:.4g}" for threshold in case.thresholds)
    return LeftOut(batch.batch_size, batch.rows, batch.case, f"proven with other thresholds ({thresholds})")


def draw_cases(
    plan: CascadePlan,
    apart: CascadeApart,
    rows: Rows | None,
    batch_sizes: Sequence[int],
    *,
    own_thresholds: bool = False,
    seed: int = 0,
) -> Iterator[tuple[CascadeProof, GoldenBatch]]:
    """Yield batches of every case at every size, with nothing expected of them yet.

    Where the rows there are do not give a case by the plan's thresholds, it comes with others, unless ``own_thresholds``.

    Raises:
        FusionError: a member cannot be run on these rows.
        DataError: ``rows`` lack an input.
    """

    @cache
    def pool_of(length: int) -> _Pool:
        return _draw_pool(plan, apart, rows, length, seed)

    free_length = rows is None and any(isinstance(dim, str) for spec in plan.contract.inputs for dim in spec.shape[1:])
    for position, size in enumerate(tuple(batch_sizes) if plan.contract.batch_is_dynamic else (1,)):
        pool = pool_of(_SEQUENCE_LENGTHS[position % len(_SEQUENCE_LENGTHS)] if free_length else _SEQUENCE_LENGTHS[0])
        for case in CASES if size > 1 else CASES[:2]:
            for thresholds in (plan.thresholds,) if own_thresholds else (plan.thresholds, _thresholds_for(case, pool, plan)):
                chosen, depths = _choose_rows(case, size, pool, thresholds, plan)
                if len(chosen):
                    answered = tuple(np.bincount(depths[chosen], minlength=len(plan.members)).tolist())
                    recipe = None if pool.recipe is None else replace(pool.recipe, chosen=tuple(chosen.tolist()))
                    batch = GoldenBatch(size, pool.origin, pool.rows.take(chosen).inputs, {}, case, recipe)
                    yield CascadeProof(case, size, answered, thresholds), batch
                    break


def _draw_pool(plan: CascadePlan, apart: CascadeApart, rows: Rows | None, sequence_length: int, seed: int) -> _Pool:
    batch = _POOL_BATCH if plan.contract.batch_is_dynamic else 1
    recipe = None
    if rows is None:
        recipe = RandomRows((seed,), _POOL_ROWS // batch, batch, sequence_length)
        drawn, origin = Rows(recipe.draw(plan.contract)), "random"
    elif missing := [spec.name for spec in plan.contract.inputs if spec.name not in rows.inputs]:
        raise DataError(f"{rows.origin} has the columns {', '.join(rows.inputs)}, but the cascade takes {missing[0]!r} too")
    else:
        drawn, origin = rows.take(np.random.default_rng(seed).permutation(len(rows))[: 4 * _POOL_ROWS]), "real"
    outputs = [apart.outputs(part.inputs) for part in drawn.batches(batch)]
    probabilities = [np.concatenate([part[member][1] for part in outputs]) for member in range(len(plan.members))]
    return _Pool(drawn, origin, tuple(probabilities), recipe)


def _choose_rows(case: str, size: int, pool: _Pool, thresholds: Sequence[float], plan: CascadePlan) -> tuple[Array, Array]:
    """Return ``size`` rows of the pool for ``case``, none where it does not occur, and the member that answers each row."""
    gate = GATES[plan.gate]
    depths = answering_member(pool.probabilities, thresholds, gate)
    smallest_gap = _SMALLEST_GAP_FLOAT16 if plan.rounding else _SMALLEST_GAP
    gaps = [np.abs(gate.score(p) - t) for p, t in zip(pool.probabilities, thresholds, strict=False)]
    clear = np.min(gaps, axis=0) > smallest_gap
    groups = [np.flatnonzero(clear & (depths == stage)) for stage in range(len(plan.members))]
    if case == "mixed":
        groups = [group for group in groups if len(group)]
        if len(groups) < 2:
            return np.array([], np.int64), depths
        # The last member's rows first: a batch of two then holds one of them.
        chosen = [groups[-1 - i % len(groups)][i // len(groups) % len(groups[-1 - i % len(groups)])] for i in range(size)]
        return np.array(chosen, np.int64), depths
    group = groups[0 if case == "easy" else -1]
    return np.resize(group, size if len(group) else 0), depths


def _thresholds_for(case: str, pool: _Pool, plan: CascadePlan) -> tuple[float, ...]:
    """Return thresholds by which the rows there are make up ``case``; for mixed, about half go on at each stage."""
    if case != "mixed":
        return (0.0 if case == "easy" else _ALWAYS_HARD,) * len(plan.thresholds)
    reaching, thresholds = np.arange(len(pool.rows)), []
    for probabilities in pool.probabilities[:-1]:
        scores = np.sort(GATES[plan.gate].score(probabilities[reaching]))
        gaps = np.diff(scores)
        middle = len(scores) // 4, max(len(scores) * 3 // 4, len(scores) // 4 + 1)
        widest = middle[0] + int(np.argmax(gaps[slice(*middle)])) if len(gaps) else None
        threshold = _ALWAYS_HARD if widest is None else float(scores[widest] + scores[widest + 1]) / 2
        thresholds.append(threshold)
        reaching = reaching[GATES[plan.gate].score(probabilities[reaching]) < threshold]
    return tuple(thresholds)
