"""Golden batches: inputs and the reference's outputs, kept in the model's file, so that any target can be checked by them.

The record stands as JSON under the metadata key ``monograph.golden``. This module needs numpy and ONNX Runtime only: on a
device, ``check_golden(read_golden(session.metadata), session)`` is the whole check.

Rows are stored as they are. Random rows that are too large to store are drawn again from their recipe, and told by a digest
where they come out otherwise: numpy's bit streams are stable, what its Generator makes of them is not promised to be
(https://numpy.org/neps/nep-0019-rng-policy.html).

Shape letters: ``b`` batch, ``n`` rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from monograph.errors import ContractError, SourceError, WorkerError
from monograph.models.bounded import parse_json
from monograph.models.contract import CONTRACT_KEY, Contract, random_inputs
from monograph.models.files import is_plain_name
from monograph.runtime.closeness import compare_arrays
from monograph.runtime.packing import LARGEST_BYTES, unpack

Array = npt.NDArray[Any]
GOLDEN_KEY = "monograph.golden"
GOLDEN_VERSION = 1
_LONGEST_TEXT = 1 << 26
_MOST_ROWS, _LONGEST_SEQUENCE = 1 << 16, 1 << 16
_REMEDY = "the file was changed after it was proven: copy it again, or build it again"


@dataclass(frozen=True)
class RandomRows:
    """How to draw random rows again: ``draws`` times ``size`` rows by one generator, and which of them are meant."""

    seed: tuple[int, ...]
    draws: int
    size: int
    sequence_length: int
    chosen: tuple[int, ...] | None = None
    """Positions among all rows drawn; None takes all."""

    def draw(self, contract: Contract) -> dict[str, Array]:
        """Draw them: one array for each input of ``contract``."""
        rng = np.random.default_rng(self.seed)
        parts = [random_inputs(contract, self.size, rng, self.sequence_length) for _ in range(self.draws)]
        if self.chosen is None and self.draws == 1:
            return parts[0]
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return rows if self.chosen is None else {name: array[list(self.chosen)] for name, array in rows.items()}


@dataclass(frozen=True)
class GoldenBatch:
    """One batch: what goes in, and what the reference gives for it."""

    batch_size: int
    rows: str
    """``real`` or ``random``."""
    inputs: Mapping[str, Array]
    expected: Mapping[str, Array]
    case: str | None = None
    """Of a cascade: ``easy``, ``hard`` or ``mixed``."""
    recipe: RandomRows | None = None
    """How ``inputs`` were drawn, where they are random."""


@dataclass(frozen=True)
class LeftOut:
    """A batch of the proof that the file does not hold."""

    batch_size: int
    rows: str
    case: str | None
    reason: str


@dataclass(frozen=True)
class Golden:
    """What a file holds of its proof."""

    reference: str
    tolerance: float
    """Largest absolute error allowed, as a share of the largest absolute value of the reference."""
    graph_sha256: str
    """Over the file without its metadata."""
    data_files: Mapping[str, str]
    """SHA-256 of each external data file, by its name."""
    batches: tuple[GoldenBatch, ...]
    left_out: tuple[LeftOut, ...] = ()
    made_by: Mapping[str, str] = field(default_factory=dict)
    """Versions of monograph and numpy."""


@dataclass(frozen=True)
class Check:
    """One output of one batch on a target, beside the reference's."""

    batch_size: int
    rows: str
    case: str | None
    output: str
    passed: bool
    max_abs_error: float
    """Infinite where the two differ in shape, or in where they are infinite or not a number."""
    scale: float
    """Largest absolute value of the reference."""
    row: int | None
    """The row with the largest error."""
    tolerance: float
    failure: str | None = None
    """What went wrong beyond a difference in numbers."""

    def describe(self) -> str:
        """Return one line for people."""
        where = f"batch {self.batch_size}, {self.rows} rows{f', {self.case}' if self.case else ''}, output {self.output}"
        if self.passed:
            return f"{where}: equal, max abs error {self.max_abs_error:.2g} (scale {self.scale:.3g})"
        if self.failure is not None:
            return f"{where}: DIFFERS, {self.failure}"
        at = "" if self.row is None else f"row {self.row} "
        return f"{where}: DIFFERS, {at}by {self.max_abs_error:.3g}, allowed {self.tolerance:g} of {self.scale:.3g}"


def read_golden(metadata: Mapping[str, str], name: str = "the model") -> Golden | None:
    """Return what a file's metadata hold of its proof; None where they hold nothing.

    Args:
        metadata: of the file, for example :attr:`Session.metadata`.
        name: of the file, for messages.

    Raises:
        SourceError: the record is damaged, too large, or of a newer version, or its random rows come out otherwise here.
    """
    if GOLDEN_KEY not in metadata:
        return None
    text = metadata[GOLDEN_KEY]
    if len(text) > _LONGEST_TEXT:
        raise SourceError(f"{name}: metadata {GOLDEN_KEY!r} has {len(text)} characters, expected {_LONGEST_TEXT} at most")
    try:
        record = parse_json(text)
        version = record["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceError(f"{name}: metadata {GOLDEN_KEY!r} is damaged ({_brief(error)}); {_REMEDY}") from error
    if version != GOLDEN_VERSION:
        raise SourceError(
            f"{name}: its golden batches are of version {str(version)[:20]}, this monograph reads {GOLDEN_VERSION}: "
            "update monograph"
        )
    try:
        return _Reader(record, metadata.get(CONTRACT_KEY), name).read()
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError, ContractError) as error:
        raise SourceError(f"{name}: metadata {GOLDEN_KEY!r} is damaged ({_brief(error)}); {_REMEDY}") from error


class _Reader:
    """Reads one record; takes a bounded amount of memory whatever that says."""

    def __init__(self, record: Mapping[str, Any], contract_json: str | None, name: str) -> None:
        self.record = record
        self.contract_json = contract_json
        self.name = name
        self.arrays = unpack(record["arrays"], record["data"])
        self.bytes_left = 2 * LARGEST_BYTES
        self.drawn: dict[RandomRows, dict[str, Array]] = {}

    def read(self) -> Golden:
        record = self.record
        made_by = {str(key): str(value) for key, value in record["made_by"].items()}
        return Golden(
            reference=str(record["reference"]),
            tolerance=_positive(record["tolerance"]),
            graph_sha256=str(record["graph_sha256"]),
            data_files={_plain_name(key): str(value) for key, value in record["data_files"].items()},
            batches=tuple(self._batch(batch, made_by) for batch in record["batches"]),
            left_out=tuple(
                LeftOut(_whole(item["batch_size"]), str(item["rows"]), _text(item["case"]), str(item["reason"]))
                for item in record["left_out"]
            ),
            made_by=made_by,
        )

    def _batch(self, batch: Mapping[str, Any], made_by: Mapping[str, str]) -> GoldenBatch:
        recipe = None
        if "recipe" in batch:
            recipe, inputs = self._draw(batch, made_by)
        else:
            inputs = {str(key): self._take(value) for key, value in batch["inputs"].items()}
        expected = {str(key): self.arrays[_whole(index)] for key, index in batch["expected"].items()}
        size = _whole(batch["batch_size"], least=1)
        return GoldenBatch(size, str(batch["rows"]), inputs, expected, _text(batch["case"]), recipe)

    def _take(self, where: Mapping[str, Any]) -> Array:
        """Return the rows at ``rows`` of the chunks, put one after the other; one number means an array that has no rows."""
        chunks = [self.arrays[_whole(index)] for index in where["chunks"]]
        rows = where["rows"]
        if sum(chunk.nbytes for chunk in chunks) > LARGEST_BYTES:
            raise ValueError(f"rows of more than {LARGEST_BYTES} bytes")
        table = np.concatenate(chunks)
        if not isinstance(rows, list):
            return np.asarray(table[_whole(rows)])
        indices = [_whole(row) for row in rows]
        self._spend(len(indices) * (table.nbytes // max(len(table), 1)))
        return np.asarray(table[indices])

    def _draw(self, batch: Mapping[str, Any], made_by: Mapping[str, str]) -> tuple[RandomRows, dict[str, Array]]:
        told = batch["recipe"]
        recipe = RandomRows(
            seed=tuple(_whole(number) for number in told["seed"]),
            draws=_whole(told["draws"], least=1),
            size=_whole(told["size"], least=1),
            sequence_length=_whole(told["sequence_length"]),
            chosen=None if told["chosen"] is None else tuple(_whole(row) for row in told["chosen"]),
        )
        if self.contract_json is None:
            raise ValueError(f"no {CONTRACT_KEY!r} beside it, by which its random rows are drawn")
        contract = Contract.from_json(self.contract_json)
        if recipe.draws * recipe.size > _MOST_ROWS or recipe.sequence_length > _LONGEST_SEQUENCE or len(recipe.seed) > 8:
            raise ValueError(f"{recipe.draws} x {recipe.size} random rows")
        pool = replace(recipe, chosen=None)
        if pool not in self.drawn:
            if drawn_bytes(pool, contract) > LARGEST_BYTES:
                raise ValueError(f"random rows of more than {LARGEST_BYTES} bytes")
            self.drawn = {pool: pool.draw(contract)}  # batches of one pool follow each other
        inputs = self.drawn[pool]
        row_bytes = sum(array.nbytes // max(len(array), 1) for array in inputs.values())
        self._spend(row_bytes * (pool.draws * pool.size if recipe.chosen is None else len(recipe.chosen)))
        if recipe.chosen is not None:
            inputs = {key: array[list(recipe.chosen)] for key, array in inputs.items()}
        if inputs_sha256(inputs) != batch["inputs_sha256"]:
            made = ", ".join(f"{package} {version}" for package, version in made_by.items())
            raise SourceError(
                f"{self.name}: its random rows were drawn by {made} and come out otherwise by numpy {np.__version__} here: "
                "check it with those versions, or build it again with real rows by --data"
            )
        return recipe, inputs

    def _spend(self, size_bytes: int) -> None:
        self.bytes_left -= size_bytes
        if self.bytes_left < 0:
            raise ValueError(f"batches of more than {2 * LARGEST_BYTES} bytes")


def drawn_bytes(recipe: RandomRows, contract: Contract) -> int:
    """Return how many bytes the rows of ``recipe`` take once they are drawn, all of them."""
    total = 0
    for spec in contract.inputs:
        free = [recipe.size] + [recipe.sequence_length] * len(spec.shape)
        sizes = [dim if isinstance(dim, int) else size for dim, size in zip(spec.shape, free, strict=False)]
        total += recipe.draws * math.prod(sizes) * 8  # drawn wide, then cast
    return total


def inputs_sha256(inputs: Mapping[str, Array]) -> str:
    """Return one digest of all arrays, in hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(inputs):
        array = np.asarray(inputs[name])
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode() + array.tobytes())
    return digest.hexdigest()


class Candidate(Protocol):
    """A loaded model that is to be checked: a session, or what stands for one elsewhere."""

    path: Path
    input_names: list[str]
    output_names: list[str]

    def __call__(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Compute one batch."""


def check_golden(golden: Golden, session: Candidate, tolerance: float | None = None) -> tuple[Check, ...]:
    """Run every batch and compare every output; ``tolerance`` is the proof's own by default.

    Raises:
        SourceError: the batches feed other inputs than the graph takes, or expect outputs that it does not give.
    """
    for batch in golden.batches:
        for what, told, found in (
            ("feed", set(batch.inputs), set(session.input_names)),
            ("expect", set(batch.expected), set(session.output_names)),
        ):
            if not told <= found or (what == "feed" and told != found) or not told:
                raise SourceError(
                    f"{session.path.name}: its golden batches {what} {_names(told)} but the graph has {_names(found)}: {_REMEDY}"
                )
    allowed = golden.tolerance if tolerance is None else tolerance
    return tuple(check for batch in golden.batches for check in check_batch(batch, session, allowed))


def check_batch(
    batch: GoldenBatch, candidate: Callable[[Mapping[str, Array]], Mapping[str, Array]], tolerance: float
) -> list[Check]:
    """Run one batch and compare every output; what cannot be run differs."""
    try:
        got = candidate(batch.inputs)
    except (SourceError, WorkerError) as error:
        failure = " ".join(str(error).split())
        return [_check(batch, name, tolerance, failure=failure) for name in batch.expected]
    return [_compare(batch, name, got[name], tolerance) for name in batch.expected]


def _compare(batch: GoldenBatch, name: str, got: Array, tolerance: float) -> Check:
    expected = batch.expected[name]
    if got.shape != expected.shape:
        return _check(batch, name, tolerance, failure=f"shape {list(got.shape)}, expected {list(expected.shape)}")
    found = compare_arrays(expected, got)
    within = found.max_abs_error <= tolerance * found.scale if found.scale > 0 else found.max_abs_error <= tolerance
    check = _check(batch, name, tolerance)
    return replace(check, passed=within, max_abs_error=found.max_abs_error, scale=found.scale, row=found.row)


def _check(batch: GoldenBatch, output: str, tolerance: float, failure: str | None = None) -> Check:
    return Check(
        batch_size=batch.batch_size,
        rows=batch.rows,
        case=batch.case,
        output=output,
        passed=False,
        max_abs_error=math.inf,
        scale=0.0,
        row=None,
        tolerance=tolerance,
        failure=failure,
    )


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def _whole(value: Any, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= LARGEST_BYTES:
        raise ValueError(f"{str(value)[:40]!r} is no number from {least} up")
    return value


def _positive(value: Any) -> float:
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError(f"tolerance {number:g}")
    return number


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _plain_name(name: str) -> str:
    if not is_plain_name(name):
        raise ValueError(f"data file {name!r} is no plain name")
    return name


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split())[:120]
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__} {text}".strip()
