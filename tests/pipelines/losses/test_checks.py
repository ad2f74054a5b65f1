import numpy as np
import pytest
import torch

from monograph.pipelines.losses.checks import centred_unit


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_a_constant_vector_is_constant_though_its_mean_is_rounded(precision):
    """Without the tolerance, what rounding leaves over would be blown up to a unit vector, and its gradient with it."""
    vectors = torch.linspace(0.1, 1e4, 500, dtype=precision)[:, None].expand(-1, 11).clone().requires_grad_()
    assert (vectors - vectors.mean(1, keepdim=True)).abs().max() > 0
    directions, is_constant = centred_unit(vectors)
    directions.sum().backward()
    assert is_constant.all()
    assert directions.abs().max() == 0
    assert vectors.grad is not None
    assert vectors.grad.abs().max() == 0


def test_a_small_vector_is_not_constant():
    vectors = np.array([[1.0, 2.0, 4.0]])
    centred = vectors - vectors.mean()
    directions, is_constant = centred_unit(torch.tensor(1e-12 * vectors).float())
    assert not is_constant.any()
    np.testing.assert_allclose(directions, centred / np.linalg.norm(centred), rtol=1e-5)
