"""Greedy soup: members are added one by one where held-out accuracy does not fall (Wortsman et al. 2022, arXiv 2203.05482).

The choice is made once more on each half of the rows and scored on the other, so that the gain that is told is a gain on rows
that the choice has not seen.

Shape letters: ``n`` rows, ``c`` classes, ``m`` members.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import FusionError
from monograph.export.fusion.soup.batchnorm import find_batch_norms
from monograph.export.fusion.soup.networks import Networks
from monograph.export.fusion.soup.score import Score, checked_labels, probabilities_of_mixture, score
from monograph.export.fusion.weights import Gain
from monograph.models.contract import Contract
from monograph.models.data.rows import Rows

Array = npt.NDArray[Any]
Chosen = tuple[int, ...]
ScoreOf = Callable[[Chosen], Score]
_RESAMPLES = 2000
_FEWEST_ROWS = 20
"""Fewer rows are not halved: no gain is told."""


@dataclass(frozen=True)
class Step:
    """One member, tried on top of those chosen before it."""

    member: str
    accuracy: float
    """Of the soup with it, as a share, from 0 to 1."""
    nll: float
    """In nats, the mean over the rows."""
    added: bool

    def describe(self) -> str:
        """Return a few words for people."""
        return f"{'+' if self.added else 'without'} {self.member} ({self.accuracy:.2%} with it)"


@dataclass(frozen=True)
class SoupFit:
    """Members chosen on validation rows, and what that gained there."""

    weights: tuple[float, ...]
    row_count: int
    rows_sha256: str
    accuracy: float
    """Of the soup on the rows that it was chosen on; as shares, from 0 to 1, as are all accuracies here."""
    nll: float
    uniform_accuracy: float
    """Of the mean of all members."""
    member_accuracy: tuple[float, ...]
    member_nll: tuple[float, ...]
    steps: tuple[Step, ...]
    """From the best member to the worst."""
    gain: Gain | None

    def describe(self) -> str:
        """Return one line for people."""
        gain = f"; {self.gain.describe()}" if self.gain else ""
        return (
            f"greedy soup fitted on {self.row_count} rows: {', '.join(step.describe() for step in self.steps)}; accuracy "
            f"{self.accuracy:.2%} (all members {self.uniform_accuracy:.2%}, best member {max(self.member_accuracy):.2%}){gain}"
        )


def fit_soup(networks: Networks, contract: Contract, rows: Rows, *, seed: int = 0) -> SoupFit:
    """Choose the members of a soup on labelled validation rows.

    Args:
        networks: the members.
        contract: the soup's.
        rows: ready for its inputs.
        seed: of the halves and the bootstrap.

    Raises:
        FusionError: the members are no classifiers, or an output is not finite.
        DataError: the rows have no labels, or labels of other classes.
    """
    if not contract.kind.has_classes:
        raise FusionError(
            f"{networks.names[0]} gives {contract.kind.value}: a greedy soup is fitted for classifiers only, give --weights"
        )
    count = len(networks.names)
    halves = _halves(len(rows), seed)
    # A member by itself, or a network without BatchNorm, gives the same whichever rows are chosen on.
    depends_on_rows = bool(find_batch_norms(networks.model))

    @cache
    def probabilities(chosen: Chosen, half: int | None) -> Array:
        own_rows = rows if half is None else rows.take(halves[half])
        # A member by itself keeps the statistics that it came with, as it would be used.
        statistics_rows = own_rows if len(chosen) > 1 else None
        return probabilities_of_mixture(networks, equal_weights(chosen, count), contract, rows, statistics_rows)

    def outputs(chosen: Chosen, half: int | None) -> Array:
        return probabilities(chosen, half if depends_on_rows and len(chosen) > 1 else None)

    singles = [outputs((member,), None) for member in range(count)]
    labels = checked_labels(rows, singles[0].shape[1], networks.names[0])
    members = [score(single, labels) for single in singles]
    chosen, steps = _select(count, _scorer(partial(outputs, half=None), np.arange(len(labels)), labels), networks.names)
    best = score(outputs(chosen, None), labels)
    gain = None
    if halves:
        held_out = _held_out(outputs, halves, labels, networks.names)
        gain = _gain(held_out, np.stack([single.argmax(1) == labels for single in singles]), networks.names, seed)
    return SoupFit(
        weights=equal_weights(chosen, count),
        row_count=len(labels),
        rows_sha256=rows.sha256(),
        accuracy=best.accuracy,
        nll=best.nll,
        uniform_accuracy=score(outputs(tuple(range(count)), None), labels).accuracy,
        member_accuracy=tuple(member.accuracy for member in members),
        member_nll=tuple(member.nll for member in members),
        steps=steps,
        gain=gain,
    )


def equal_weights(chosen: Sequence[int], count: int) -> tuple[float, ...]:
    """Return a weight for each of ``count`` members: the same for those chosen, 0 for the others."""
    return tuple(1 / len(chosen) if member in chosen else 0.0 for member in range(count))


def _scorer(outputs: Callable[[Chosen], Array], indices: Array, labels: Array) -> ScoreOf:
    return lambda tried: score(outputs(tried)[indices], labels[indices])


def _select(count: int, score_of: ScoreOf, names: Sequence[str]) -> tuple[Chosen, tuple[Step, ...]]:
    """Go through the members from the best on, and keep each with which the soup does not get worse.

    Of two equal accuracies the one of the lower NLL is better.
    """
    ranks = {member: _rank(score_of((member,))) for member in range(count)}
    order = sorted(ranks, key=lambda member: ranks[member], reverse=True)
    chosen: Chosen = (order[0],)
    best = score_of(chosen)
    steps = [Step(names[order[0]], best.accuracy, best.nll, added=True)]
    for member in order[1:]:
        tried = tuple(sorted((*chosen, member)))
        got = score_of(tried)
        added = _rank(got) >= _rank(best)
        steps.append(Step(names[member], got.accuracy, got.nll, added))
        if added:
            chosen, best = tried, got
    return chosen, tuple(steps)


def _held_out(outputs: Callable[..., Array], halves: Sequence[Array], labels: Array, names: Sequence[str]) -> Array:
    """Return for each row, ``bool [n]``, whether a soup is right on it that was chosen on the half in which it is not."""
    right = np.zeros(len(labels), bool)
    for half, rest in ((0, 1), (1, 0)):
        chosen, _ = _select(len(names), _scorer(partial(outputs, half=half), halves[half], labels), names)
        right[halves[rest]] = (outputs(chosen, half).argmax(1) == labels)[halves[rest]]
    return right


def _rank(got: Score) -> tuple[float, float]:
    return got.accuracy, -got.nll


def _halves(row_count: int, seed: int) -> tuple[Array, ...]:
    if row_count < _FEWEST_ROWS:
        return ()
    order = np.random.default_rng(seed).permutation(row_count)
    return np.sort(order[: row_count // 2]), np.sort(order[row_count // 2 :])


def _gain(soup: Array, members: Array, names: Sequence[str], seed: int) -> Gain:
    """Bootstrap the gain in accuracy over the best member, for which rows are right: ``bool [n]`` and ``bool [m, n]``."""
    best = int(members.mean(1).argmax())
    gains = 100 * (soup.astype(np.float64) - members[best])
    rng = np.random.default_rng(seed)
    drawn = np.array([gains[rng.integers(0, len(gains), len(gains))].mean() for _ in range(_RESAMPLES)])
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Gain(float(gains.mean()), float(low), float(high), float(np.mean(drawn <= 0)), names[best], "points", ("soup",))
