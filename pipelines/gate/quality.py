"""Checks of what a candidate answers, beside its reference, on the same rows.

Shape letters: ``n`` rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import norm

from monograph.errors import DataError
from monograph.models.data.rows import Array, Codes
from monograph.pipelines.gate.check import Check, Outcome, compare, judge, outcome_of
from monograph.pipelines.gate.policy import AccuracyLimits, CalibrationLimits, ErrorLimits, FlipLimits, ParityLimits, PartLimits
from monograph.runtime.agreement import agreement
from monograph.runtime.metrics.paired import Answers, Flips, count_flips, ece_change, mean_change
from monograph.runtime.results import Interval
from monograph.runtime.statistics import (
    CONFIDENCE,
    exact_interval,
    holm_adjusted,
    noninferiority_z,
    paired_bootstrap_interval,
    paired_loss_interval,
)

_TANGO = "Tango's score test of paired rows (1998, Statistics in Medicine 17:891)"
_EXACT = "exact binomial bound (Clopper and Pearson 1934, Biometrika 26:404)"
_BCA = "BCa bootstrap of paired {units} (Efron 1987, JASA 82:171)"
_HOLM = "; proven worse where it is after Holm's correction over all {count} (1979, Scand. J. Statist. 6:65)"


@dataclass(frozen=True)
class Pair:
    """What both models answer to the same rows, on one target."""

    candidate: Answers
    reference: Answers
    target: str
    groups: Array | None = None
    """int ``[n]``; rows of one number are not independent of each other."""
    seed: int = 0

    def __len__(self) -> int:
        return len(self.candidate)

    def take(self, rows: Array) -> Pair:
        """Return some rows."""
        groups = None if self.groups is None else self.groups[rows]
        return replace(self, candidate=self.candidate.take(rows), reference=self.reference.take(rows), groups=groups)

    @property
    def flips(self) -> Flips:
        """The rows on which they differ."""
        return count_flips(self.candidate, self.reference)

    @property
    def units(self) -> tuple[int, str]:
        """What is drawn at random: how many, and what to call them."""
        return (len(self), "rows") if self.groups is None else (len(np.unique(self.groups)), "groups")

    @property
    def bootstrap(self) -> str:
        """The method where rows are resampled."""
        return _BCA.format(units=self.units[1])


@dataclass(frozen=True)
class Loss:
    """A paired loss in accuracy beside its limit, as shares."""

    interval: Interval
    z: float
    """Standardised, above 0 where the loss is beyond the limit."""
    method: str


def accuracy_check(pair: Pair, limits: AccuracyLimits) -> Check:
    """Test that top-1 falls by no more than the margin."""
    loss = _loss(pair, limits.max_loss_points)
    return _loss_check("accuracy.max_loss_points", pair, loss, limits.max_loss_points)


def flip_checks(pair: Pair, limits: FlipLimits) -> Iterator[Check]:
    """Test how many rows are answered otherwise."""
    flips = pair.flips
    lost = pair.reference.is_right & ~pair.candidate.is_right
    if limits.max_negative_points is not None:
        yield _share_check("flips.max_negative_points", pair, lost, flips.lost, limits.max_negative_points)
    if limits.max_churn_points is not None:
        changed = pair.candidate.predicted != pair.reference.predicted
        yield _share_check("flips.max_churn_points", pair, changed, flips.changed, limits.max_churn_points)


def part_checks(pair: Pair, limits: PartLimits, columns: Mapping[str, Codes]) -> Iterator[Check]:
    """Test the worst part of each column.

    That every part passes needs no correction: the chance that all of them pass while one is too bad is at most that of the one
    (intersection-union test, Berger 1982, Technometrics 24:295). That some part is proven worse is claimed of the worst of many,
    which Holm's correction makes up for.

    Raises:
        DataError: no part of a column has enough rows.
    """
    for column, codes in columns.items():
        counts = np.bincount(codes.numbers, minlength=len(codes.values))
        tested = np.flatnonzero(counts >= limits.fewest_rows)
        if not len(tested):
            raise DataError(
                f"no {column} has {limits.fewest_rows} rows: give more rows, lower parts.fewest_rows, or take {column} out of "
                "the policy"
            )
        parts = {codes.values[number]: pair.take(np.flatnonzero(codes.numbers == number)) for number in tested}
        checks = loss_family("parts.max_loss_points", parts, limits.max_loss_points)
        left_out = int((counts > 0).sum()) - len(tested)
        yield _worst(checks, column, f"; {left_out} with fewer than {limits.fewest_rows} rows not tested" if left_out else "")


def loss_family(name: str, pairs: Mapping[str, Pair], limit_points: float) -> dict[str, Check]:
    """Test the loss of each of several pairs against one limit; proven worse only by Holm's correction over all of them."""
    losses = {part: _loss(pair, limit_points) for part, pair in pairs.items()}
    adjusted = holm_adjusted([float(norm.sf(loss.z)) for loss in losses.values()])
    checks = {}
    for (part, loss), p in zip(losses.items(), adjusted, strict=True):
        outcome = outcome_of(loss.interval, limit_points / 100)
        if outcome is not Outcome.PASS:
            outcome = Outcome.FAIL if p <= 1 - CONFIDENCE else Outcome.INCONCLUSIVE
        corrected = replace(loss, method=loss.method + (_HOLM.format(count=len(losses)) if len(losses) > 1 else ""))
        checks[part] = _loss_check(f"{name} ({part})", pairs[part], corrected, limit_points, outcome)
    return checks


def calibration_checks(pair: Pair, limits: CalibrationLimits) -> Iterator[Check]:
    """Test how much worse probabilities are."""
    count, units = pair.units
    if limits.max_ece_increase is not None:
        found = ece_change(pair.candidate, pair.reference, pair.groups, pair.seed)
        yield judge(
            "calibration.max_ece_increase", found, limits.max_ece_increase, "", count, units,
            f"{pair.bootstrap}, widened by what chance adds to one and not to the other", target=pair.target,
        )  # fmt: skip
    if limits.max_nll_increase_nats is not None:
        found = mean_change(pair.candidate.nll, pair.reference.nll, pair.groups, pair.seed)
        yield judge(
            "calibration.max_nll_increase_nats", found, limits.max_nll_increase_nats, "nats", count, units, pair.bootstrap,
            target=pair.target,
        )  # fmt: skip


def error_check(
    candidate: Array, reference: Array, labels: Array, limits: ErrorLimits, target: str, groups: Array | None, seed: int
) -> Check:
    """Test the mean absolute error of outputs ``[n, …]`` beside another model's."""
    own, other = (
        np.abs(outputs.reshape(len(labels), -1) - labels.reshape(len(labels), -1)).mean(axis=1)
        for outputs in (candidate, reference)
    )
    found = paired_bootstrap_interval(np.stack([own, other], axis=1), _increase_percent, groups, seed)
    count, units = (len(labels), "rows") if groups is None else (len(np.unique(groups)), "groups")
    name, method = "error.max_increase_percent", _BCA.format(units=units)
    return judge(name, found, limits.max_increase_percent, "%", count, units, method, target=target)


def _increase_percent(sums: Array) -> Array:
    # A reference without any error is left exactly as good, or infinitely worse.
    tiny = np.finfo(np.float64).tiny
    return np.asarray(100 * (sums[..., 0] - sums[..., 1]) / np.maximum(sums[..., 1], tiny))


def parity_check(candidate: Array, reference: Array, limits: ParityLimits, target: str) -> Check:
    """Compare outputs ``[n, …]`` number by number.

    Raises:
        ParityError: they differ in shape.
    """
    found = agreement(reference, candidate, "the reference", has_classes=False)
    error = float("inf") if found.relative_error is None else found.relative_error
    note = "" if found.worst_row is None else f"row {found.worst_row} is the worst of {found.row_count}"
    return compare("parity.max_relative_error", error, limits.max_relative_error, "", target=target, note=note)


def _loss(pair: Pair, limit_points: float) -> Loss:
    limit = limit_points / 100
    if pair.groups is None:
        flips = pair.flips
        z = float(noninferiority_z(flips.lost, flips.gained, len(pair), limit))
        return Loss(paired_loss_interval(flips.lost, flips.gained, len(pair)), z, _TANGO)
    wrong, other = (~one.is_right for one in (pair.candidate, pair.reference))
    found = mean_change(wrong.astype(float), other.astype(float), pair.groups, pair.seed)
    return Loss(found, _z_of(found, limit), pair.bootstrap)


def _z_of(interval: Interval, limit: float) -> float:
    """Standardise by the width of the interval; where it has none, nothing is left to chance."""
    error = (interval.high - interval.low) / (2 * float(norm.ppf((1 + interval.confidence) / 2)))
    beyond = interval.estimate - limit
    return beyond / error if error > 0 else float(np.sign(beyond)) * np.inf


def _loss_check(name: str, pair: Pair, loss: Loss, limit_points: float, outcome: Outcome | None = None) -> Check:
    flips, (count, units) = pair.flips, pair.units
    return judge(
        name,
        _in_points(loss.interval),
        limit_points,
        "points",
        count,
        units,
        loss.method,
        target=pair.target,
        z=loss.z,
        outcome=outcome,
        note=f"{flips.lost} lost, {flips.gained} gained",
    )


def _share_check(name: str, pair: Pair, rows: Array, changed: int, limit_points: float) -> Check:
    count, units = pair.units
    if pair.groups is None:
        interval, method, limit = exact_interval(changed, count), _EXACT, limit_points / 100
        spread = np.sqrt(count * limit * (1 - limit))
        z = (changed - count * limit) / spread if spread > 0 else None
    else:
        interval, method, z = mean_change(rows.astype(float), np.zeros(len(rows)), pair.groups, pair.seed), pair.bootstrap, None
    return judge(
        name, _in_points(interval), limit_points, "points", count, units, method,
        target=pair.target, z=z, note=f"{changed} of {len(pair)} rows",
    )  # fmt: skip


def _worst(checks: Mapping[str, Check], column: str, note: str) -> Check:
    """Return the check of the part that decides: one that fails, else one that is open, else the nearest to the limit."""
    order: Sequence[Outcome] = (Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.FAIL)
    part, check = max(checks.items(), key=lambda item: (order.index(item[1].outcome), item[1].high or 0.0))
    told = f"{column} {part} is the worst of {len(checks)}: {check.note}{note}"
    return replace(check, name=f"parts.max_loss_points ({column})", counted=f"{check.counted} of {column} {part}", note=told)


def _in_points(interval: Interval) -> Interval:
    return Interval(100 * interval.estimate, 100 * interval.low, 100 * interval.high, interval.confidence)
