"""Whether members share an initialisation, so that the network between them is as good as they are.

Networks that were trained apart from one initialisation lie in one basin: along the line between their weights the loss does
not rise (Frankle et al. 2020, linear mode connectivity, arXiv 1912.05671). Between networks of different initialisations it
rises to chance, and their mean is worth nothing. With labelled rows that is measured; without, told from the angle between
the weights, which is an estimate.

Shape letters: ``n`` rows, ``c`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from monograph.errors import FusionError
from monograph.export.fusion.soup.batchnorm import draw_rows
from monograph.export.fusion.soup.networks import Networks
from monograph.export.fusion.soup.score import Score, checked_labels, probabilities_of_mixture, score
from monograph.models.contract import Contract
from monograph.models.data.rows import Rows

MAX_BARRIER_POINTS = 2.0
"""What Frankle et al. take to be no more than noise: error on the line at most 2 points above the mean of its ends."""
_POSITIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
_LINE_ROWS = 2000
"""The standard error of an accuracy is then at most 1.1 points."""
_INDEPENDENT_COSINE = 0.2
"""Of independent initialisations it is 0 within the square root of the number of weights, after training too."""
_RELATED_COSINE = 0.9
_ANY_BARRIER = 100.0


@dataclass(frozen=True)
class Line:
    """The straight line between two members' weights, scored at a few points; BatchNorm statistics are those of each point."""

    first: str
    second: str
    positions: tuple[float, ...]
    """Share of the second member at each point."""
    scores: tuple[Score, ...]
    row_count: int

    @property
    def barrier_points(self) -> float:
        """By how many points of accuracy the worst point of the line lies below the mean of its ends, weighted by position."""
        return 100 * self._barrier([-score.accuracy for score in self.scores])

    @property
    def barrier_nats(self) -> float:
        """The same of the negative log-likelihood."""
        return self._barrier([score.nll for score in self.scores])

    def _barrier(self, losses: Sequence[float]) -> float:
        """Return max over t of L(t) - ((1 - t)·L(0) + t·L(1)) (Entezari et al. 2022, arXiv 2110.06296, definition 2.1)."""
        ends = losses[0], losses[-1]
        return max(loss - ((1 - t) * ends[0] + t * ends[1]) for t, loss in zip(self.positions, losses, strict=True))

    def describe(self) -> str:
        """Return one line for people."""
        accuracies = ", ".join(f"{score.accuracy:.1%}" for score in self.scores)
        return (
            f"{self.first} to {self.second}: accuracy {accuracies}; barrier {self.barrier_points:.2f} points, "
            f"{self.barrier_nats:.3f} nats on {self.row_count} rows"
        )


@dataclass(frozen=True)
class Angle:
    """How alike two members' weights are, which is all that can be told without labelled rows."""

    first: str
    second: str
    cosine: float
    """Over all matrices and kernels: of vectors, such as scales near 1, independent members have similar ones."""

    def describe(self) -> str:
        """Return one line for people."""
        likely = (
            "fits one initialisation" if self.cosine >= _RELATED_COSINE else "does not tell whether they share an initialisation"
        )
        return (
            f"{self.first} to {self.second}: cosine of weights {self.cosine:.3f}, which {likely} (an estimate: no labelled rows)"
        )


@dataclass(frozen=True)
class Connection:
    """What is known of each pair of members; one of the two is empty."""

    max_barrier_points: float
    lines: tuple[Line, ...] = ()
    angles: tuple[Angle, ...] = ()

    def describe(self) -> list[str]:
        """Return lines for people."""
        return [line.describe() for line in self.lines] + [angle.describe() for angle in self.angles]


def connect(networks: Networks, contract: Contract, rows: Rows | None, max_barrier: float | None = None) -> Connection:
    """Measure the loss along the line between each two members on labelled rows, or estimate by their weights without.

    Args:
        networks: the members.
        contract: the soup's.
        rows: those with labels are measured on, where the output has classes.
        max_barrier: the largest barrier allowed, in points of accuracy; 2 by default, and 100 allows any.

    Raises:
        FusionError: two members do not share an initialisation: the barrier between them is higher, or their weights are
            clearly independent; or ``max_barrier`` is no number of points.
        DataError: labels of other classes.
    """
    allowed = MAX_BARRIER_POINTS if max_barrier is None else max_barrier
    if not (math.isfinite(allowed) and 0 <= allowed <= _ANY_BARRIER):
        raise FusionError(f"--max-barrier {allowed:g} is no number of points: give one from 0 to 100, which allows any barrier")
    if rows is None or rows.labels is None or not contract.kind.has_classes:
        return Connection(allowed, angles=tuple(_checked_angles(networks, allowed)))
    return Connection(allowed, lines=tuple(_checked_lines(networks, contract, rows, allowed)))


def _checked_lines(networks: Networks, contract: Contract, rows: Rows, allowed: float) -> list[Line]:
    drawn = draw_rows(rows, _LINE_ROWS)
    count = len(networks.names)
    members = np.eye(count)
    ends = [_score_of(networks, member.tolist(), contract, drawn) for member in members]
    lines = []
    for i, j in combinations(range(count), 2):
        between = [(1 - t) * members[i] + t * members[j] for t in _POSITIONS[1:-1]]
        inner = [_score_of(networks, mixture.tolist(), contract, drawn) for mixture in between]
        line = Line(networks.names[i], networks.names[j], _POSITIONS, (ends[i], *inner, ends[j]), len(drawn))
        if line.barrier_points > allowed:
            first, *_, last = line.scores
            raise FusionError(
                f"{line.first} and {line.second} do not share an initialisation: on the line between their weights accuracy "
                f"falls from {first.accuracy:.1%} and {last.accuracy:.1%} to {min(one.accuracy for one in line.scores):.1%} "
                f"({len(drawn)} rows), a barrier of {line.barrier_points:.1f} points, allowed {allowed:g}: fine-tune members "
                "from one checkpoint, fuse their outputs instead (without --soup), or allow it by --max-barrier"
            )
        lines.append(line)
    return lines


def _score_of(networks: Networks, weights: Sequence[float], contract: Contract, rows: Rows) -> Score:
    probabilities = probabilities_of_mixture(networks, weights, contract, rows)
    return score(probabilities, checked_labels(rows, probabilities.shape[1], networks.names[0]))


def _checked_angles(networks: Networks, allowed: float) -> list[Angle]:
    cosines = _cosines(networks)
    angles = []
    for i, j in combinations(range(len(networks.names)), 2):
        angle = Angle(networks.names[i], networks.names[j], float(cosines[i, j]))
        if angle.cosine < _INDEPENDENT_COSINE and allowed < _ANY_BARRIER:
            raise FusionError(
                f"{angle.first} and {angle.second} do not seem to share an initialisation: the cosine of their weights is "
                f"{angle.cosine:.3f}, where members fine-tuned from one checkpoint have nearly 1: give labelled rows by --fit or "
                "--data to measure the loss between them, fuse their outputs instead (without --soup), or pass --max-barrier 100"
            )
        angles.append(angle)
    return angles


def _cosines(networks: Networks) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return the cosine of each two members' weights, ``float64 [m, m]``, one weight in memory at a time."""
    count = len(networks.names)
    products = np.zeros((count, count))
    for tensors in networks.matrices:
        stacked = np.stack([tensor.numpy().astype(np.float64).ravel() for tensor in tensors])
        products += stacked @ stacked.T
    norms = np.sqrt(np.outer(np.diag(products), np.diag(products)))
    return np.where(norms > 0, products / np.where(norms > 0, norms, 1), 1.0)
