"""What a lowering is: one model becomes what a target takes, proven against the model it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monograph.export.lowering.agreement import Agreement
from monograph.export.lowering.plan import MixedPrecisionPlan
from monograph.export.lowering.promise import Promise
from monograph.export.lowering.weight_forms import S8, WeightForm
from monograph.export.parity import ParityProof
from monograph.models.bounded import parse_json
from monograph.models.contract import Contract
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile

LOWERING_KEY = "monograph.lowering"
QUANTISED_TOLERANCE = 0.05
"""Largest error of a quantised model on one target beside another, as a share of the scale: where one rounds up and the other
down, a step of every later quantisation may differ."""


@dataclass(frozen=True)
class LoweringJob:
    """What a lowering is given."""

    source: OnnxFile
    contract: Contract
    """What the lowered model promises: that of the source, its sizes fixed where the lowering fixes them."""
    rows: Rows
    """As ``contract`` takes them: what activations are calibrated on."""
    folder: Path
    """For what is made on the way; removed afterwards."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Of the execution provider, where the lowering compiles for one."""
    weights: WeightForm = S8
    """How 8-bit weights are written."""
    keep_float: frozenset[str] = frozenset()
    """Names of nodes of the prepared float graph that are not quantised."""
    prepared: Path | None = None
    """The float graph that an earlier job prepared; None to prepare it again."""
    ranges: Path | None = None
    """A file that keeps the ranges of activations from one job to the next; None to calibrate each time."""


@dataclass(frozen=True)
class Lowering:
    """One way from a model to what a target takes. A new one is one short file and one entry in ``LOWERINGS``."""

    name: str
    title: str
    """What it does, for people."""
    convert: Callable[[LoweringJob], Path]
    """Write the lowered graph into the job's folder and return its path; contract, proof and record are added later."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What it does in numbers and names, for the record in the file."""
    fixes_sizes: bool = True
    """Whether batch and sequence get a fixed size."""
    tolerance: float | None = None
    """Largest error as a share of the reference's scale; None for a quantised model, which is proven by agreement on rows."""
    target: str | None = None
    """The only target that runs what it writes, and on which it is proven; None where any processor does."""
    first: Lowering | None = None
    """What a float model goes through before it."""
    chooses_weights: bool = False
    """Whether it writes 8-bit weights for processors, in a form that is exact on those that it is for."""
    ranges_at_run_time: bool = False
    """Of a quantised one: activations get their range from each batch, and no rows calibrate them."""
    prepare: Callable[[LoweringJob], Path] | None = None
    """Write the float graph that ``convert`` quantises, every node named; None where no layer can be left in float."""
    operators: tuple[str, ...] = ()
    """Of a quantised one that can leave layers in float: whose weights are quantised; all that ONNX Runtime can where empty."""

    @property
    def is_quantised(self) -> bool:
        """True where the numbers are other ones on purpose, so that only agreement can be proven."""
        return self.tolerance is None

    @property
    def is_calibrated(self) -> bool:
        """True where the ranges of activations are taken from rows beforehand."""
        return self.is_quantised and not self.ranges_at_run_time


def lowering_of(file: OnnxFile) -> str | None:
    """Return the name of the lowering that wrote ``file``; None where none did."""
    if LOWERING_KEY not in file.metadata:
        return None
    try:
        return str(parse_json(file.metadata[LOWERING_KEY])["lowering"])
    except (ValueError, KeyError, TypeError):
        return "something that its metadata does not name"


@dataclass(frozen=True)
class Lowered:
    """A written model that was proven against the one it came from."""

    path: Path
    lowering: str
    contract: Contract
    proof: ParityProof | Agreement
    notes: tuple[str, ...]
    """What was done, a sentence each."""
    warnings: tuple[str, ...]
    """What makes its figures doubtful."""
    plan: MixedPrecisionPlan | None = None
    """Which layers stay in float; None where none was asked to."""
    promise: Promise | None = None
    """What it was proven to lose no more than, on rows that nothing was chosen by."""
