"""How often the gate errs, on synthetic candidates whose truth is known: at the limit exactly, clearly inside, and its intervals.

A share of ``N`` simulations is allowed three standard errors beyond the level that is claimed. ``pytest --log-cli-level=INFO``
shows the figures.
"""

from __future__ import annotations

import logging

import numpy as np
import pytest
from scipy.stats import norm

from monograph.pipelines.gate.check import Check, Outcome
from monograph.pipelines.gate.cost import quantile_check, ratio_check
from monograph.pipelines.gate.policy import AccuracyLimits, FlipLimits
from monograph.pipelines.gate.quality import Pair, accuracy_check, flip_checks, loss_family
from monograph.runtime.compare import Comparison
from monograph.runtime.metrics.paired import Answers, ece_change, mean_change
from monograph.runtime.statistics import holm_adjusted, noninferiority_z, paired_loss_interval

LEVEL, COVERAGE, POWER = 0.05, 0.93, 0.9
CANDIDATES = 2000


def tell(what: str, figure: object) -> None:
    logging.getLogger(__name__).info("%s: %s", what, figure)


def at_most(share: float, level: float, count: int) -> bool:
    return share <= level + 3 * np.sqrt(level * (1 - level) / count)


def shares(checks: list[Check]) -> dict[str, float]:
    return {outcome.value: float(np.mean([check.outcome is outcome for check in checks])) for outcome in Outcome}


def flipping(lost: float, gained: float, row_count: int, rng: np.random.Generator) -> np.ndarray:
    """Rows lost and gained by each candidate: int ``[candidates, 2]``."""
    return rng.multinomial(row_count, [lost, gained, 1 - lost - gained], CANDIDATES)[:, :2]


@pytest.mark.parametrize(("row_count", "churn"), [(500, 0.04), (2000, 0.1)])
def test_at_the_margin_accuracy_passes_once_in_twenty(answers_of_counts, row_count: int, churn: float):
    rng, margin = np.random.default_rng(1), 0.01
    drawn = flipping((churn + margin) / 2, (churn - margin) / 2, row_count, rng)
    limits = AccuracyLimits(max_loss_points=100 * margin)
    checks = [accuracy_check(Pair(*answers_of_counts(lost, gained, row_count), "cpu"), limits) for lost, gained in drawn]
    found = shares(checks)
    tell("shares", found)
    assert at_most(found["pass"], LEVEL, CANDIDATES)
    assert at_most(found["fail"], LEVEL, CANDIDATES)


def test_as_good_a_candidate_passes_nine_times_in_ten():
    """6% churn and a margin of one point: 8.56 · 0.06 / 0.01² = 5,140 rows, and some more for the variance at the margin."""
    drawn = flipping(0.03, 0.03, 5500, np.random.default_rng(2))
    passed = float((noninferiority_z(drawn[:, 0], drawn[:, 1], 5500, 0.01) <= -norm.ppf(0.95)).mean())
    tell("power", passed)
    assert passed >= POWER


@pytest.mark.parametrize(("lost", "gained", "row_count"), [(0.05, 0.03, 400), (0.02, 0.02, 1000), (0.01, 0.0, 2000)])
def test_the_interval_of_a_loss_covers_it(lost: float, gained: float, row_count: int):
    drawn = flipping(lost, gained, row_count, np.random.default_rng(3))[:600]
    intervals = [paired_loss_interval(int(b), int(c), row_count) for b, c in drawn]
    truth = lost - gained
    covered = [float(np.mean([truth <= one.high for one in intervals])), float(np.mean([one.low <= truth for one in intervals]))]
    tell("coverage", covered)
    assert min(covered) >= COVERAGE


def test_at_the_limit_flips_pass_at_most_once_in_twenty(answers_of_counts):
    drawn = flipping(0.03, 0.02, 800, np.random.default_rng(4))
    limits = FlipLimits(max_negative_points=3, max_churn_points=5)
    checks = [list(flip_checks(Pair(*answers_of_counts(b, c, 800), "cpu"), limits)) for b, c in drawn]
    for name, own in zip(("negative", "churn"), zip(*checks, strict=True), strict=True):
        found = shares(list(own))
        tell(name, found)
        assert found["pass"] <= LEVEL + 3 * np.sqrt(LEVEL * (1 - LEVEL) / CANDIDATES)
        truth = 3.0 if name == "negative" else 5.0
        assert np.mean([one.high >= truth for one in own]) >= COVERAGE
        assert np.mean([one.low <= truth for one in own]) >= COVERAGE


CLASSES, CLASS_ROWS, CLASS_MARGIN = 10, 200, 0.05


def class_statistics(true_losses: list[float], rng: np.random.Generator) -> np.ndarray:
    """Tango's statistic of each class of each candidate: float64 ``[candidates, classes]``."""
    columns = []
    for loss in true_losses:
        drawn = flipping(0.04 + loss, 0.04, CLASS_ROWS, rng)
        columns.append(noninferiority_z(drawn[:, 0], drawn[:, 1], CLASS_ROWS, CLASS_MARGIN))
    return np.stack(columns, axis=1)


def test_ten_classes_at_the_limit_are_proven_worse_once_in_twenty():
    """Holm's correction keeps the error of the family; without it some class would fail in four cases of ten."""
    statistics = class_statistics([CLASS_MARGIN] * CLASSES, np.random.default_rng(5))
    p_values = norm.sf(statistics)
    # Holm's first step is Bonferroni's, which alone decides whether anything is rejected.
    rejects = p_values.min(axis=1) <= LEVEL / CLASSES
    assert [holm_adjusted(row).min() <= LEVEL for row in p_values[:10]] == list(rejects[:10])
    family = float(rejects.mean())
    uncorrected = float((p_values.min(axis=1) <= LEVEL).mean())
    tell("family-wise error", family)
    tell("without correction", uncorrected)
    assert at_most(family, LEVEL, CANDIDATES)
    assert uncorrected > 0.3


def test_one_class_at_the_limit_passes_once_in_twenty():
    """All others may be perfect: the worst class alone has to pass, so that passing needs no correction."""
    statistics = class_statistics([CLASS_MARGIN, *[-0.03] * (CLASSES - 1)], np.random.default_rng(6))
    passed = float((statistics.max(axis=1) <= -norm.ppf(0.95)).mean())
    tell("false pass", passed)
    assert at_most(passed, LEVEL, CANDIDATES)


def test_the_family_of_checks_is_what_was_simulated(answers_of_counts):
    drawn = np.random.default_rng(7).multinomial(CLASS_ROWS, [0.09, 0.04, 0.87], CLASSES)
    pairs = {str(number): Pair(*answers_of_counts(b, c, CLASS_ROWS), "cpu") for number, (b, c, _) in enumerate(drawn)}
    checks = loss_family("parts", pairs, 100 * CLASS_MARGIN)
    z = noninferiority_z(drawn[:, 0], drawn[:, 1], CLASS_ROWS, CLASS_MARGIN)
    assert [check.outcome is Outcome.FAIL for check in checks.values()] == list(holm_adjusted(norm.sf(z)) <= LEVEL)
    assert [check.outcome is Outcome.PASS for check in checks.values()] == list(z <= -norm.ppf(0.95))


@pytest.mark.parametrize("is_grouped", [False, True])
def test_the_bootstrap_of_a_skewed_mean_covers_it(is_grouped: bool):
    """Differences of NLL have a long tail: here 0.1 on average, of exponential values."""
    rng, count, simulations = np.random.default_rng(8), 120, 500
    high = low = passed = 0
    for seed in range(simulations):
        size = 3 if is_grouped else 1
        values = np.repeat(rng.exponential(0.1, count), size)
        groups = np.arange(count * size) // size if is_grouped else None
        found = mean_change(values, np.zeros(len(values)), groups, seed)
        high, low = high + (found.high >= 0.1), low + (found.low <= 0.1)
        passed += found.high < 0.1
    tell("coverage", [low / simulations, high / simulations])
    tell("false pass", passed / simulations)
    assert min(low, high) / simulations >= COVERAGE
    assert at_most(passed / simulations, LEVEL, simulations)


def calibrated(count: int, boast: float, rng: np.random.Generator) -> Answers:
    """A classifier that is right with the probability that it states, less ``boast``."""
    confidence = np.clip(rng.beta(6, 1.5, count), 0.05, 0.999)
    right = rng.random(count) < np.clip(confidence - boast, 0, 1)
    return Answers(right.astype(int), right, np.zeros(count), confidence)


@pytest.mark.parametrize(("boast", "other_boast"), [(0.05, 0.0), (0.0, 0.0), (0.05, 0.05)])
def test_the_interval_of_a_calibration_error_covers_it(boast: float, other_boast: float):
    """The hard case is the first: by chance alone the honest one seems calibrated worse than it is."""
    rng, simulations = np.random.default_rng(9), 80
    many = [calibrated(400_000, each, rng) for each in (boast, other_boast)]
    truth = ece_change(*many).estimate
    found = [ece_change(calibrated(400, boast, rng), calibrated(400, other_boast, rng), seed=n) for n in range(simulations)]
    covered = [float(np.mean([one.low <= truth for one in found])), float(np.mean([truth <= one.high for one in found]))]
    tell("coverage", covered)
    assert min(covered) >= COVERAGE


@pytest.mark.parametrize(("quantile", "count"), [(0.5, 8), (0.5, 400), (0.9, 400), (0.99, 400)])
def test_a_latency_at_its_limit_passes_once_in_twenty(quantile: float, count: int):
    rng, simulations = np.random.default_rng(10), 500
    limit = float(np.exp(0.3 * norm.ppf(quantile)))
    checks = [quantile_check("p", rng.lognormal(0, 0.3, count), quantile, limit, "ms", "runs", "cpu") for _ in range(simulations)]
    found = shares(checks)
    tell("shares", found)
    assert at_most(found["pass"], LEVEL, simulations)
    assert at_most(found["fail"], LEVEL, simulations)
    assert np.mean([check.high is None or check.high >= limit for check in checks]) >= COVERAGE
    assert np.mean([check.low is None or check.low <= limit for check in checks]) >= COVERAGE


def test_a_ratio_over_eight_blocks_at_its_limit_passes_once_in_twenty():
    rng, simulations = np.random.default_rng(11), 400
    checks = []
    for _ in range(simulations):
        drift = rng.lognormal(0, 0.1, 8)
        found = Comparison({"a": tuple(drift * rng.lognormal(0, 0.03, 8)), "b": tuple(drift * rng.lognormal(0, 0.03, 8))})
        checks.append(ratio_check(found, "a", "b", 1.0, "cpu"))
    found = shares(checks)
    tell("shares", found)
    assert at_most(found["pass"], LEVEL, simulations)
    assert at_most(found["fail"], LEVEL, simulations)
