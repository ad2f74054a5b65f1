"""The parity proof: a new model computes what the old one did, at several batch sizes, or it is not written.

Shape letters: ``b`` batch, ``c`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import DataError, ParityError, SourceError, WorkerError
from monograph.models.contract import Contract
from monograph.models.data.rows import Rows
from monograph.runtime.closeness import compare_arrays
from monograph.runtime.golden import GoldenBatch, RandomRows
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
Computation = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""One with a method ``over`` is given all batches at once: what it loads for them, it loads once."""

BATCH_SIZES = (1, 2, 5)
TOLERANCE = 1e-4
"""Largest absolute error allowed, as a share of the largest absolute value of the reference."""
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""Smaller numbers have fewer digits, down to none: their error is taken as it is."""
_SEQUENCE_LENGTHS = (12, 7, 19)
"""Another length at each batch size: a sequence length baked in unnoticed shows only at another one."""


@dataclass(frozen=True)
class BatchParity:
    """One output at one batch size: the candidate beside the reference."""

    batch_size: int
    output: str
    rows: str
    """``real`` or ``random``."""
    max_abs_error: float
    scale: float
    """Largest absolute value of the reference."""
    cosine: float
    """Of the whole batch, flattened."""
    top1_agreement: float | None
    """Share of rows with the same best class; None where the output has no classes or no rows."""

    @property
    def relative_error(self) -> float:
        """``max_abs_error`` as a share of ``scale``."""
        return self.max_abs_error / self.scale if self.scale >= _SMALLEST_SCALE else self.max_abs_error


@dataclass(frozen=True)
class ParityProof:
    """All comparisons of one proof. It exists only if every one of them is within ``tolerance``."""

    reference: str
    candidate: str
    tolerance: float
    seed: int
    batches: tuple[BatchParity, ...]

    @property
    def worst(self) -> BatchParity:
        """The comparison with the largest relative error."""
        return max(self.batches, key=lambda batch: batch.relative_error)

    def describe(self) -> str:
        """Return one line for people."""
        worst = self.worst
        agreements = [batch.top1_agreement for batch in self.batches if batch.top1_agreement is not None]
        top1 = f", top-1 agreement {min(agreements):.0%}" if agreements else ""
        sizes = ", ".join(str(size) for size in sorted({batch.batch_size for batch in self.batches}))
        return (
            f"equal at batch {sizes} on {worst.rows} rows: max abs error {worst.max_abs_error:.2g} "
            f"(scale {worst.scale:.3g}), cosine {min(batch.cosine for batch in self.batches):.7f}{top1}"
        )


def prove_parity(
    reference: Computation,
    candidate: Computation,
    contract: Contract,
    *,
    names: tuple[str, str],
    rows: Rows | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    on_batch: Callable[[GoldenBatch], None] = lambda batch: None,
) -> ParityProof:
    """Run both on the same rows and compare every output of ``contract``.

    Real rows are used where ``rows`` is given, else fresh random ones. A contract with a fixed batch size is proven
    at that size only. ``on_batch`` is told each batch that was found equal, with what the reference gave for it.

    Raises:
        ParityError: the candidate cannot be run, or any output differs by more than ``tolerance`` of the reference's
            scale, in shape, or in where it is infinite or not a number.
        DataError: ``rows`` lack an input.
    """
    batches = list(draw_batches(contract, rows, batch_sizes, seed))
    proven = prove_batches(reference, candidate, batches, contract, names=names, tolerance=tolerance)
    for _, golden in proven:
        on_batch(golden)
    return ParityProof(*names, tolerance, seed, tuple(comparison for compared, _ in proven for comparison in compared))


def prove_batches(
    reference: Computation,
    candidate: Computation,
    batches: Sequence[GoldenBatch],
    contract: Contract,
    *,
    names: tuple[str, str],
    tolerance: float,
) -> list[tuple[tuple[BatchParity, ...], GoldenBatch]]:
    """Run both on given batches; return the comparisons of each, and the batch with what the reference gave for it.

    Raises:
        ParityError: as :func:`prove_parity` does.
    """
    proven = []
    references, candidates = (
        run_each(computation, [batch.inputs for batch in batches]) for computation in (reference, candidate)
    )
    for batch, expected in zip(batches, references, strict=True):
        try:
            got = next(candidates)
        except (SourceError, WorkerError) as error:
            raise ParityError(f"{names[1]} does not run at batch {batch.batch_size}: {error}; nothing was written") from error
        golden = replace(batch, expected={spec.name: expected[spec.name] for spec in contract.outputs})
        proven.append((_compare_outputs(golden, got, contract, names, tolerance), golden))
    return proven


def run_each(computation: Computation, batches: Sequence[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
    """Yield the outputs of each batch; nothing runs before the first is asked for."""
    over: Callable[..., Iterable[Mapping[str, Array]]] | None = getattr(computation, "over", None)
    yield from map(computation, batches) if over is None else over(batches)


def _compare_outputs(
    batch: GoldenBatch, got: Mapping[str, Array], contract: Contract, names: tuple[str, str], tolerance: float
) -> tuple[BatchParity, ...]:
    comparisons = []
    for name, expected in batch.expected.items():
        comparison = _compare(expected, got[name], batch.batch_size, name, batch.rows, contract)
        if not comparison.relative_error <= tolerance:
            raise ParityError(
                f"{names[1]} does not compute the same as {names[0]}: output {name!r} at batch {batch.batch_size} on "
                f"{batch.rows} rows differs by {comparison.max_abs_error:.3g}, allowed {tolerance:g} of {comparison.scale:.3g}; "
                "nothing was written"
            )
        comparisons.append(comparison)
    return tuple(comparisons)


def _fixed_batch_size(contract: Contract, rows: Rows | None) -> tuple[int, ...]:
    """Return the batch size that all inputs fix; real rows, which come as many for each input, need only one that does."""
    firsts = [spec.shape[0] for spec in contract.inputs if spec.shape]
    fixed = tuple(size for size in firsts if isinstance(size, int))
    return fixed[:1] if len(fixed) == len(firsts) or rows is not None else ()


def open_when_run(path: Path) -> Computation:
    """Return the file as a computation that is loaded at its first call.

    By then the reference has run: where that refuses the rows, its message says more than ONNX Runtime's.
    """
    session = cache(partial(open_session, path))
    return lambda inputs: session()(inputs)


def draw_batches(contract: Contract, rows: Rows | None, batch_sizes: Sequence[int], seed: int = 0) -> Iterator[GoldenBatch]:
    """Yield what a proof runs on, with nothing expected of it yet: real rows where there are any, else random ones.

    Raises:
        DataError: ``rows`` lack an input.
    """
    rng = np.random.default_rng(seed)
    for position, size in enumerate(_fixed_batch_size(contract, rows) or tuple(batch_sizes)):
        if rows is not None:
            yield GoldenBatch(size, "real", _real_inputs(contract, rows, size, rng), {})
            continue
        # Each batch has a generator of its own, so that one can be drawn again without the others.
        recipe = RandomRows((seed, position), 1, size, _SEQUENCE_LENGTHS[position % len(_SEQUENCE_LENGTHS)])
        yield GoldenBatch(size, "random", recipe.draw(contract), {}, recipe=recipe)


def _real_inputs(contract: Contract, rows: Rows, size: int, rng: np.random.Generator) -> Mapping[str, Array]:
    missing = [spec.name for spec in contract.inputs if spec.name not in rows.inputs]
    if missing:
        raise DataError(f"{rows.origin} has the columns {', '.join(rows.inputs)}, but the model takes {missing[0]!r} too")
    return rows.take(rng.choice(len(rows), size, replace=len(rows) < size)).inputs


def _compare(expected: Array, got: Array, size: int, name: str, kind: str, contract: Contract) -> BatchParity:
    if expected.shape != got.shape:
        raise ParityError(
            f"output {name!r} at batch {size} has shape {got.shape}, expected {expected.shape}; nothing was written"
        )
    found = compare_arrays(expected, got)
    has_classes = contract.kind.has_classes and name == contract.output.name and expected.size > 0
    return BatchParity(
        batch_size=size,
        output=name,
        rows=kind,
        max_abs_error=found.max_abs_error,
        scale=found.scale,
        cosine=found.cosine,
        top1_agreement=float(np.mean(expected.argmax(-1) == got.argmax(-1))) if has_classes else None,
    )
