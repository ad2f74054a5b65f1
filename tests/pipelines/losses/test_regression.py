import numpy as np
import pytest
import torch

from monograph.pipelines.losses.regression import squared_error


def test_by_hand():
    value = squared_error(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[3.0, 2.0], [1.0, 3.0]]))
    assert value.tolist() == [2.0, 5.0]


def test_scores_without_a_second_dimension_are_taken():
    assert squared_error(torch.tensor([1.0, 5.0]), torch.tensor([3.0, 5.0])).tolist() == [4.0, 0.0]


def test_half_precision_is_raised():
    """300 squared is above what float16 holds."""
    value = squared_error(torch.tensor([[300.0]]).half(), torch.tensor([[0.0]]).half())
    assert value.dtype == torch.float32
    assert value.tolist() == [90_000.0]


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2)])
def test_is_the_mean_over_values(shape):
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal(shape), rng.standard_normal(shape)
    expected = [np.mean((student[i] - teacher[i]) ** 2) for i in range(4)]
    np.testing.assert_allclose(squared_error(torch.tensor(student), torch.tensor(teacher)), expected, rtol=1e-12)
