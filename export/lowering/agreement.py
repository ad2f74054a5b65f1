"""Agreement of a quantised model with the one it came from: not equal, but near enough, by a bound fixed beforehand.

Shape letters: ``n`` rows, ``c`` classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import ParityError
from monograph.models.contract import Contract
from monograph.models.data.rows import Rows
from monograph.runtime.closeness import compare_arrays
from monograph.runtime.results import Interval
from monograph.runtime.runner import run_all_rows
from monograph.runtime.session import open_session
from monograph.runtime.session_spec import EXACT_PRODUCTS
from monograph.runtime.statistics import proportion_interval

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class AgreementBound:
    """What a quantised model has to reach on the rows that it is compared on."""

    top1: float = 0.9
    """Smallest share of real rows with the same best class: refused where Wilson's interval at 95% lies below it, told to be open
    where the interval holds it. On random rows, whose best class means nothing, the share is recorded only."""
    cosine: float = 0.98
    """Smallest cosine of the outputs of all rows, flattened."""


@dataclass(frozen=True)
class Agreement:
    """The primary output of a lowered model beside that of its source, both in ONNX Runtime on the processor."""

    row_count: int
    rows: str
    """``real`` or ``random``."""
    top1_agreement: float | None
    """None where the output has no classes, or more than one best class a row."""
    max_abs_error: float
    scale: float
    """Largest absolute value of the source's output."""
    cosine: float
    bound: AgreementBound
    is_held_out: bool = False
    """Whether the rows are others than those that it was calibrated on."""

    def describe(self) -> str:
        """Return one line for people."""
        top1 = "" if self.top1_agreement is None else f"top-1 agreement {self.top1_agreement:.1%}, "
        held_out = " held out from calibration" if self.is_held_out else ""
        return (
            f"{top1}max abs error {self.max_abs_error:.2g} (scale {self.scale:.3g}), cosine {self.cosine:.5f} "
            f"on {self.row_count} {self.rows} rows{held_out}"
        )

    def doubts(self) -> list[str]:
        """Return what the comparison leaves open, a sentence each."""
        if self.rows == "random":
            return []
        found = [] if self.is_held_out else ["it was compared on the rows that it was calibrated on: its agreement is flattered"]
        interval = self.top1_interval
        if interval is not None and interval.low < self.bound.top1 <= interval.high:
            found.append(
                f"{self.row_count} rows leave open whether its top-1 agreement reaches {self.bound.top1:.0%}: it is "
                f"{interval.estimate:.1%} [{interval.low:.1%}, {interval.high:.1%}]"
            )
        if interval is not None and interval.high < self.bound.top1:
            found.append(f"its top-1 agreement is {interval.estimate:.1%}, less than {self.bound.top1:.0%}")
        return found

    @property
    def top1_interval(self) -> Interval | None:
        """Wilson's interval of the top-1 agreement on real rows."""
        if self.top1_agreement is None or self.rows == "random":
            return None
        return proportion_interval(round(self.top1_agreement * self.row_count), self.row_count)


def prove_agreement(
    source: tuple[Path, Contract],
    lowered: tuple[Path, Contract],
    rows: Rows,
    *,
    is_random: bool,
    is_held_out: bool,
    bound: AgreementBound,
    is_enforced: bool = True,
    on_outputs: Callable[[Array, Array], None] = lambda expected, got: None,
) -> Agreement:
    """Run both files on ``rows`` and compare their primary outputs, which ``on_outputs`` is given as well.

    Without ``is_enforced`` the share of rows with the same best class refuses nothing, and is left to :meth:`Agreement.doubts`.

    Raises:
        ParityError: the lowered model cannot be held to be the same model by ``bound``.
    """
    sessions = (open_session(path, spec=EXACT_PRODUCTS) for path, _ in (source, lowered))
    expected, got = (
        run_all_rows(session, contract, rows) for session, (_, contract) in zip(sessions, (source, lowered), strict=True)
    )
    if expected.shape != got.shape:
        raise ParityError(f"{lowered[0].name}: the output has shape {got.shape}, that of its source {expected.shape}")
    on_outputs(expected, got)
    found = compare_arrays(expected, got)
    has_classes = lowered[1].kind.has_classes and expected.ndim == 2
    agreement = Agreement(
        row_count=len(rows),
        rows="random" if is_random else "real",
        top1_agreement=float(np.mean(expected.argmax(-1) == got.argmax(-1))) if has_classes else None,
        max_abs_error=found.max_abs_error,
        scale=found.scale,
        cosine=found.cosine,
        bound=bound,
        is_held_out=is_held_out,
    )
    interval = agreement.top1_interval
    is_below = is_enforced and interval is not None and interval.high < bound.top1
    if is_below or not agreement.cosine >= bound.cosine:
        raise ParityError(
            f"{lowered[0].name} does not agree with {source[0].name}: {agreement.describe()}, expected at least "
            f"{bound.top1:.0%} of real rows and cosine {bound.cosine:g}; calibrate on more rows of its own domain "
            "(--calibration DATA), or say what is enough (--min-agreement); nothing was written"
        )
    return agreement
