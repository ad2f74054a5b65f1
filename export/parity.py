"""The parity proof: a new model computes what the old one did, at several batch sizes, or it is not written.

Shape letters: ``b`` batch, ``c`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import DataError, ParityError, SourceError, WorkerError
from monograph.models.contract import Contract, random_inputs
from monograph.models.data.rows import Rows

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
) -> ParityProof:
    """Run both on the same rows and compare every output of ``contract``.

    Real rows are used where ``rows`` is given, else fresh random ones. A contract with a fixed batch size is proven
    at that size only.

    Raises:
        ParityError: the candidate cannot be run, or any output differs by more than ``tolerance`` of the reference's
            scale, in shape, or in where it is infinite or not a number.
        DataError: ``rows`` lack an input.
    """
    reference_name, candidate_name = names
    sizes = _fixed_batch_size(contract, rows) or tuple(batch_sizes)
    rng = np.random.default_rng(seed)
    comparisons: list[BatchParity] = []
    batches = [
        _inputs(contract, rows, size, rng, _SEQUENCE_LENGTHS[position % len(_SEQUENCE_LENGTHS)])
        for position, size in enumerate(sizes)
    ]
    references, candidates = (_run_each(computation, [inputs for inputs, _ in batches]) for computation in (reference, candidate))
    for size, (_, kind), expected in zip(sizes, batches, references, strict=True):
        try:
            got = next(candidates)
        except (SourceError, WorkerError) as error:
            raise ParityError(f"{candidate_name} does not run at batch {size}: {error}; nothing was written") from error
        for spec in contract.outputs:
            comparison = _compare(expected[spec.name], got[spec.name], size, spec.name, kind, contract)
            if not comparison.relative_error <= tolerance:
                raise ParityError(
                    f"{candidate_name} does not compute the same as {reference_name}: output {spec.name!r} at batch {size} on "
                    f"{kind} rows differs by {comparison.max_abs_error:.3g}, allowed {tolerance:g} of {comparison.scale:.3g}; "
                    "nothing was written"
                )
            comparisons.append(comparison)
    return ParityProof(reference_name, candidate_name, tolerance, seed, tuple(comparisons))


def _run_each(computation: Computation, batches: Sequence[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
    """Yield the outputs of each batch; nothing runs before the first is asked for."""
    over: Callable[..., Iterable[Mapping[str, Array]]] | None = getattr(computation, "over", None)
    yield from map(computation, batches) if over is None else over(batches)


def _fixed_batch_size(contract: Contract, rows: Rows | None) -> tuple[int, ...]:
    """Return the batch size that all inputs fix; real rows, which come as many for each input, need only one that does."""
    firsts = [spec.shape[0] for spec in contract.inputs if spec.shape]
    fixed = tuple(size for size in firsts if isinstance(size, int))
    return fixed[:1] if len(fixed) == len(firsts) or rows is not None else ()


def _inputs(
    contract: Contract, rows: Rows | None, size: int, rng: np.random.Generator, sequence_length: int
) -> tuple[dict[str, Array], str]:
    if rows is None:
        return random_inputs(contract, size, rng, sequence_length), "random"
    missing = [spec.name for spec in contract.inputs if spec.name not in rows.inputs]
    if missing:
        raise DataError(f"{rows.origin} has the columns {', '.join(rows.inputs)}, but the model takes {missing[0]!r} too")
    chosen = rng.choice(len(rows), size, replace=len(rows) < size)
    return dict(rows.take(chosen).inputs), "real"


def _compare(expected: Array, got: Array, size: int, name: str, kind: str, contract: Contract) -> BatchParity:
    if expected.shape != got.shape:
        raise ParityError(
            f"output {name!r} at batch {size} has shape {got.shape}, expected {expected.shape}; nothing was written"
        )
    wide, other = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(wide)
    same_gaps = np.array_equal(finite, np.isfinite(other)) and np.array_equal(wide[~finite], other[~finite], equal_nan=True)
    wide, other = np.where(finite, wide, 0.0), np.where(finite, other, 0.0)
    error = float(np.max(np.abs(wide - other), initial=0.0)) if same_gaps else float("inf")
    norms = float(np.linalg.norm(wide) * np.linalg.norm(other))
    has_classes = contract.kind.has_classes and name == contract.output.name and wide.size > 0
    return BatchParity(
        batch_size=size,
        output=name,
        rows=kind,
        max_abs_error=error,
        scale=float(np.max(np.abs(wide), initial=0.0)),
        cosine=float(np.vdot(wide, other)) / norms if norms > 0 else 1.0,
        top1_agreement=float(np.mean(wide.argmax(-1) == other.argmax(-1))) if has_classes else None,
    )
