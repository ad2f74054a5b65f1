import numpy as np
import pytest
import torch

from monograph.pipelines.losses.cosine import cosine_distance


def test_by_hand():
    student = torch.tensor([[1.0, 0.0], [1.0, 1.0], [2.0, 0.0], [0.0, 3.0]])
    teacher = torch.tensor([[5.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [2.0, 0.0]])
    assert cosine_distance(student, teacher).tolist() == pytest.approx([0, 1 - np.sqrt(0.5), 2, 1], abs=1e-6)


def test_is_one_minus_the_cosine_and_ignores_size(draw):
    student, teacher, _ = draw()
    expected = [1 - s @ t / np.sqrt((s @ s) * (t @ t)) for s, t in zip(student, teacher, strict=True)]
    np.testing.assert_allclose(cosine_distance(torch.tensor(1e3 * student), torch.tensor(1e-3 * teacher)), expected, rtol=1e-10)


def test_an_embedding_of_zeros_gives_one_without_a_gradient():
    student = torch.zeros(1, 3, requires_grad=True)
    value = cosine_distance(student, torch.ones(1, 3))
    value.sum().backward()
    assert value.tolist() == [1.0]
    assert student.grad is not None
    assert student.grad.tolist() == [[0.0] * 3]
