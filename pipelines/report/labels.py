"""Where to write the names of points and lines so that they cover neither each other nor the data.

All lengths are pixels; ``y`` grows upwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_DISTANCES = (9.0, 16.0, 26.0, 38.0, 52.0, 70.0, 92.0, 120.0)
# Right first, then left, above and below, then the slanting ones: a name right of its point reads best.
_DIRECTIONS = (0, 180, 90, 270, 35, 325, 145, 215, 60, 300, 120, 240)
_SWEEPS = 3
_OUTSIDE_COST, _LABEL_COST, _OBSTACLE_COST, _DISTANCE_COST, _DIRECTION_COST = 200.0, 100.0, 20.0, 3.0, 1.0


@dataclass(frozen=True)
class Box:
    """An upright rectangle."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Area shared with ``other``."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return width * height if width > 0 and height > 0 else 0.0

    @property
    def area(self) -> float:
        """Width times height."""
        return (self.right - self.left) * (self.top - self.bottom)


def place_labels(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    bounds: Box,
    obstacles: Sequence[Box] = (),
) -> list[Box]:
    """Choose a box of ``sizes[i]`` near ``anchors[i]`` for every label, inside ``bounds`` and clear of ``obstacles``.

    Greedy, then a few sweeps in which each label may move once the others stand; the same input gives the same boxes.
    """
    candidates = [_candidates(anchor, size) for anchor, size in zip(anchors, sizes, strict=True)]
    chosen: dict[int, Box] = {}
    for _ in range(_SWEEPS):
        for index, options in enumerate(candidates):
            others = [box for other, box in chosen.items() if other != index]
            costs = [preference + _cost(box, bounds, others, obstacles) for box, preference in options]
            chosen[index] = options[costs.index(min(costs))][0]
    return [chosen[index] for index in range(len(candidates))]


def spread_apart(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions on a line as little as needed so that they are ``gap`` apart, between ``low`` and ``high``.

    Where they do not fit between the two, they overflow below ``low``; their order is kept.
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    # Blocks of labels that touch: their sum of wishes and their members; a block sits at the mean of its wishes.
    blocks: list[tuple[float, list[int]]] = []
    for index in order:
        wish, members = positions[index], [index]
        while blocks and _start(*blocks[-1], gap, low, high) + gap * len(blocks[-1][1]) > _start(wish, members, gap, low, high):
            total, before = blocks.pop()
            wish, members = total + wish, before + members
        blocks.append((wish, members))
    placed = [0.0] * len(positions)
    for wish, members in blocks:
        first = _start(wish, members, gap, low, high)
        for step, index in enumerate(members):
            placed[index] = first + gap * step
    return placed


def _start(total_wish: float, members: Sequence[int], gap: float, low: float, high: float) -> float:
    count = len(members)
    length = gap * (count - 1)
    return min(max(total_wish / count - length / 2, low), high - length)


def _candidates(anchor: tuple[float, float], size: tuple[float, float]) -> list[tuple[Box, float]]:
    (x, y), (width, height) = anchor, size
    options = []
    for distance in _DISTANCES:
        for rank, degrees in enumerate(_DIRECTIONS):
            dx, dy = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            centre_x = x + dx * distance + _sign(dx) * width / 2
            centre_y = y + dy * distance + _sign(dy) * height / 2
            box = Box(centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)
            options.append((box, _DISTANCE_COST * distance + _DIRECTION_COST * rank))
    return options


def _cost(box: Box, bounds: Box, labels: Iterable[Box], obstacles: Iterable[Box]) -> float:
    outside = box.area - box.overlap(bounds)
    on_labels = sum(box.overlap(other) for other in labels)
    on_obstacles = sum(box.overlap(other) for other in obstacles)
    return _OUTSIDE_COST * outside + _LABEL_COST * on_labels + _OBSTACLE_COST * on_obstacles


def _sign(value: float) -> int:
    return 0 if abs(value) < 1e-9 else int(math.copysign(1, value))
