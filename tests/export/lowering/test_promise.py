"""What a search expects of other rows, and what they prove."""

from __future__ import annotations

import numpy as np
import pytest

from monograph.errors import DataError, ParityError
from monograph.export.lowering.promise import Limit, Measure, counted_loss, expected_bound, keep_promise, loss_of
from monograph.runtime.statistics import paired_loss_bound

DROP = Limit("--max-drop 1", Measure.TOP1, 1.0)
AGREE = Limit("--min-agreement 0.99", Measure.AGREEMENT, 1.0)


def test_losses_of_rows_with_labels_and_without():
    labels = np.array([0, 1, 1, 0])
    before, after = np.eye(2)[[0, 1, 0, 0]], np.eye(2)[[1, 1, 1, 0]]
    loss = loss_of(DROP, before, after, labels)
    assert (loss.lost, loss.gained, loss.points) == (1, 1, 0)
    assert loss_of(AGREE, before, after, None).lost == 2


def test_the_fewest_rows_are_those_on_which_nothing_differs():
    assert (
        counted_loss(DROP, 0, 0, DROP.fewest_rows).bound_points <= 1 < counted_loss(DROP, 0, 0, DROP.fewest_rows - 1).bound_points
    )
    for count, holds in ((AGREE.fewest_rows, True), (AGREE.fewest_rows - 1, False)):
        assert (counted_loss(AGREE, 0, 0, count).bound_points <= 1) == holds


def test_what_a_search_accepts_holds_on_other_rows_four_times_in_five():
    """Nine in ten of those that behave alike on both sets of rows; the search prefers those that were lucky on its own."""
    rng = np.random.default_rng(0)
    search_count, proof_count, churn = 1000, 2000, 0.01
    accepted = held = 0
    for _ in range(1200):
        drop = rng.uniform(0, 0.008)
        chances = [(churn + drop) / 2, (churn - drop) / 2, 1 - churn]
        lost, gained, _ = rng.multinomial(search_count, chances)
        expected = expected_bound(DROP, counted_loss(DROP, int(lost), int(gained), search_count), proof_count)
        if 0.85 < expected <= 1:
            accepted += 1
            lost, gained, _ = rng.multinomial(proof_count, chances)
            held += paired_loss_bound(int(lost), int(gained), proof_count) <= 0.01
    assert accepted > 80
    assert held / accepted > 0.8


def test_too_few_rows_and_too_large_a_loss_are_two_things():
    assert keep_promise(DROP, counted_loss(DROP, 0, 0, 500), "m.onnx").loss.row_count == 500
    with pytest.raises(DataError, match=r"it would take about [\d,]+ such rows"):
        keep_promise(DROP, counted_loss(DROP, 8, 4, 500), "m.onnx")
    with pytest.raises(ParityError, match="more than --max-drop 1 allows"):
        keep_promise(DROP, counted_loss(DROP, 20, 4, 500), "m.onnx")
