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
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import FusionError
from monograph.export.fusion.soup.batchnorm import draw_rows
from monograph.export.fusion.soup.match import in_pieces
from monograph.export.fusion.soup.networks import Networks
from monograph.export.fusion.soup.score import checked_labels, probabilities_of_mixture, score_rows
from monograph.models.contract import Contract
from monograph.models.data.rows import Rows

Array = npt.NDArray[Any]
MAX_BARRIER_POINTS = 2.0
"""What Frankle et al. take to be no more than noise: error on the line at most 2 points above the mean of its ends."""
_POSITIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
_LINE_ROWS = 2000
"""The standard error of an accuracy is then at most 1.1 points."""
_INDEPENDENT_COSINE = 0.2
"""Of independent initialisations it is 0 within the square root of the number of weights, after training too."""
_RELATED_COSINE = 0.9
_ANY_BARRIER = 100.0
_ONE_SIDED_95 = 1.645


@dataclass(frozen=True)
class Line:
    """The straight line between two members' weights, scored at a few points.

    At all of them, its ends too, BatchNorm statistics are those of the rows: a barrier then speaks of the weights alone, not of
    how well the statistics fit that the members came with.
    """

    first: str
    second: str
    positions: tuple[float, ...]
    """Share of the second member at each point."""
    accuracies: tuple[float, ...]
    """At each point, as shares, from 0 to 1."""
    nlls: tuple[float, ...]
    """Negative log-likelihood at each point, in nats, the mean over the rows."""
    row_count: int
    barrier_points: float
    """By how many points of accuracy the worst point of the line lies below the mean of its ends, weighted by position."""
    barrier_low_points: float
    """Lower end of its one-sided 95% interval: with few rows a barrier may be chance."""
    barrier_nats: float
    """The barrier of the negative log-likelihood."""

    def describe(self) -> str:
        """Return one line for people."""
        accuracies = ", ".join(f"{accuracy:.1%}" for accuracy in self.accuracies)
        return (
            f"{self.first} to {self.second}: accuracy {accuracies}; barrier {self.barrier_points:.2f} points "
            f"(at least {max(self.barrier_low_points, 0):.2f}), {self.barrier_nats:.3f} nats on {self.row_count} rows"
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
        FusionError: two members do not share an initialisation: the barrier between them is higher, by more than chance, or
            their weights are clearly independent; or ``max_barrier`` is no number of points.
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
    members = np.eye(len(networks.names))
    ends = [_score_rows(networks, member, contract, drawn) for member in members]
    lines = []
    for i, j in combinations(range(len(networks.names)), 2):
        between = [_score_rows(networks, (1 - t) * members[i] + t * members[j], contract, drawn) for t in _POSITIONS[1:-1]]
        line = _measured((networks.names[i], networks.names[j]), [ends[i], *between, ends[j]])
        if line.barrier_low_points > allowed:
            raise FusionError(
                f"{line.first} and {line.second} do not share an initialisation: on the line between their weights accuracy "
                f"falls from {line.accuracies[0]:.1%} and {line.accuracies[-1]:.1%} to {min(line.accuracies):.1%} "
                f"({len(drawn)} rows), a barrier of {line.barrier_points:.1f} points, allowed {allowed:g}: fine-tune members "
                "from one checkpoint, fuse their outputs instead (without --soup), or allow it by --max-barrier"
            )
        lines.append(line)
    return lines


def _score_rows(networks: Networks, weights: Array, contract: Contract, rows: Rows) -> tuple[Array, Array]:
    probabilities = probabilities_of_mixture(networks, weights.tolist(), contract, rows, rows)
    return score_rows(probabilities, checked_labels(rows, probabilities.shape[1], networks.names[0]))


def _measured(names: tuple[str, str], points: Sequence[tuple[Array, Array]]) -> Line:
    """Return the line for what each of its points gives for each row: whether it is right, and its loss, ``[n]`` both."""
    correct, losses = np.stack([point[0] for point in points]), np.stack([point[1] for point in points])  # [points, n]
    drops, rises = _above_chord(1 - correct), _above_chord(losses)
    worst = drops[int(drops.mean(1).argmax())]
    error = float(worst.std(ddof=1)) / math.sqrt(len(worst)) if len(worst) > 1 else math.inf
    points_of_accuracy = 100 * float(worst.mean())
    return Line(
        first=names[0],
        second=names[1],
        positions=_POSITIONS,
        accuracies=tuple(correct.mean(1).tolist()),
        nlls=tuple(losses.mean(1).tolist()),
        row_count=len(worst),
        barrier_points=points_of_accuracy,
        barrier_low_points=max(points_of_accuracy - 100 * _ONE_SIDED_95 * error, -100.0),
        barrier_nats=float(rises.mean(1).max()),
    )


def _above_chord(losses: Array) -> Array:
    """Return L(t) - ((1 - t)·L(0) + t·L(1)) of each row at each point, ``[points, n]``; its largest mean is the barrier.

    Entezari et al. 2022, arXiv 2110.06296, definition 2.1.
    """
    t = np.array(_POSITIONS)[:, None]
    return np.asarray(losses - ((1 - t) * losses[0] + t * losses[-1]))


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


def _cosines(networks: Networks) -> Array:
    """Return the cosine of each two members' weights, ``float64 [m, m]``, a piece in memory at a time."""
    count = len(networks.names)
    products = np.zeros((count, count))
    for tensors in networks.matrices:
        for pieces in in_pieces(*(tensor.numpy().reshape(-1) for tensor in tensors)):
            stacked = np.stack([piece.astype(np.float64) for piece in pieces])
            products += stacked @ stacked.T
    norms = np.sqrt(np.outer(np.diag(products), np.diag(products)))
    return np.where(norms > 0, products / np.where(norms > 0, norms, 1), 1.0)
