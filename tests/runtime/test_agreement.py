"""A line of the parity matrix, by hand and over blocks."""

import numpy as np
import pytest

from monograph.errors import ParityError
from monograph.runtime.agreement import agreement


def test_agreement_by_hand():
    expected = np.array([[2.0, 1.0], [0.0, 4.0]], np.float32)
    got = np.array([[2.0, 1.0], [4.5, 4.0]], np.float32)
    found = agreement(expected, got, "cpu", has_classes=True)
    assert (found.max_abs_error, found.relative_error, found.worst_row, found.row_count) == (4.5, 4.5 / 4, 1, 2)
    assert found.top1_agreement.estimate == 0.5
    assert found.cosine == pytest.approx((4 + 1 + 16) / np.sqrt(21 * (21 + 4.5**2)))


def test_blocks_give_what_the_whole_gives():
    rng = np.random.default_rng(0)
    expected = rng.standard_normal((5000, 3)).astype(np.float32)
    got = expected + 0.01 * rng.standard_normal((5000, 3)).astype(np.float32)
    found, errors = agreement(expected, got, "cpu", has_classes=True), np.abs(expected.astype(float) - got)
    assert found.max_abs_error == errors.max()
    assert found.relative_error == errors.max() / np.abs(expected).max()
    assert found.worst_row == errors.max(axis=1).argmax()
    assert found.top1_agreement.estimate == (expected.argmax(1) == got.argmax(1)).mean()
    assert found.cosine == pytest.approx(np.vdot(expected, got) / np.linalg.norm(expected) / np.linalg.norm(got), rel=1e-6)


def test_equal_outputs_agree_wholly():
    found = agreement(np.ones((3, 2)), np.ones((3, 2)), "cpu", has_classes=False)
    assert (found.max_abs_error, found.relative_error, found.cosine, found.worst_row) == (0, 0, 1, None)
    assert found.top1_agreement is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_target_that_gives_no_numbers_has_no_error_large_enough(bad: float):
    got = np.ones((3, 2))
    got[2, 1] = bad
    found = agreement(np.ones((3, 2)), got, "cpu", has_classes=True)
    assert (found.max_abs_error, found.relative_error, found.worst_row) == (None, None, 2)


def test_outputs_of_another_shape_are_an_error():
    with pytest.raises(ParityError, match=r"outputs have the shape \[3, 2\], those of cpu \[3, 4\]"):
        agreement(np.ones((3, 4)), np.ones((3, 2)), "cpu", has_classes=True)
