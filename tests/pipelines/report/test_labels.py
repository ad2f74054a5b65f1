from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monograph.pipelines.report.labels import Box, place_labels, spread_apart

BOUNDS = Box(0, 0, 900, 340)


@pytest.mark.parametrize(
    "anchors",
    [
        [(200, 150)] * 5,
        [(200, 150), (203, 151), (206, 149), (640, 300), (650, 300)],
        [(2, 2), (2, 338), (898, 2), (898, 338)],
    ],
    ids=["one spot", "two clusters", "corners"],
)
def test_labels_overlap_neither_each_other_nor_the_bounds(anchors: list[tuple[float, float]]) -> None:
    boxes = place_labels(anchors, [(110, 14)] * len(anchors), BOUNDS)
    assert all(one.overlap(other) == 0 for one, other in combinations(boxes, 2))
    assert all(box.overlap(BOUNDS) == pytest.approx(box.area) for box in boxes)


def test_a_lone_label_stands_right_beside_its_point() -> None:
    (box,) = place_labels([(100, 100)], [(60, 14)], BOUNDS)
    assert 100 < box.left <= 112
    assert box.bottom < 100 < box.top


def test_labels_keep_clear_of_obstacles() -> None:
    wall = Box(105, 0, 200, 340)
    (box,) = place_labels([(100, 100)], [(60, 14)], BOUNDS, [wall])
    assert box.overlap(wall) == 0


@given(st.lists(st.floats(0, 300), max_size=12), st.floats(1, 20))
def test_spreading_keeps_the_gap_the_order_and_the_limits(positions: list[float], gap: float) -> None:
    placed = spread_apart(positions, gap, 0, 300)
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    assert all(placed[after] - placed[before] >= gap - 1e-6 for before, after in pairwise(order))
    assert all(-1e-6 <= position <= 300 + 1e-6 for position in placed)


def test_spreading_moves_nothing_that_is_apart_already() -> None:
    assert spread_apart([250, 10, 100], 16, 0, 300) == pytest.approx([250, 10, 100])


def test_what_touches_is_spread_about_its_middle() -> None:
    assert spread_apart([100, 100, 100], 10, 0, 300) == pytest.approx([90, 100, 110])
