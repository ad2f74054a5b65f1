import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monograph.pipelines.losses.dist import correlation, dist


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_is_one_minus_pearsons_correlation_of_rows_and_of_columns(draw, softmax64, temperature):
    student, teacher, _ = draw()
    q, p = softmax64(student / temperature), softmax64(teacher / temperature)
    inter = np.array([1 - np.corrcoef(q[i], p[i])[0, 1] for i in range(6)])
    intra = np.mean([1 - np.corrcoef(q[:, k], p[:, k])[0, 1] for k in range(5)])
    value = dist(torch.tensor(student), torch.tensor(teacher), temperature, 2.0, 3.0)
    np.testing.assert_allclose(value, temperature**2 * (2 * inter + 3 * intra), rtol=1e-10)


def test_by_hand():
    vectors = torch.tensor([[0.0, 0.0, 3.0], [1.0, 2.0, 3.0]])
    # (−1, −1, 2) and (−1, 0, 1): 3 / sqrt(6 * 2)
    assert correlation(vectors[:1], vectors[1:]).tolist() == pytest.approx([3 / np.sqrt(12)])


def test_a_student_equal_to_its_teacher_loses_nothing(draw):
    logits = torch.tensor(draw()[0]).float()
    assert dist(logits, logits, 1.0).abs().max() < 1e-6


def test_rare_classes_count_as_much_as_others(draw):
    """Columns near 1e-7, of which an epsilon of 1e-8 under the fraction would make uncorrelated ones."""
    logits = torch.tensor(draw()[0]).float()
    logits[:, 0] -= 15
    assert dist(logits, logits, 1.0).abs().max() < 1e-5


def test_one_row_has_no_relation_over_the_batch(draw):
    student, teacher = (torch.tensor(logits) for logits in draw(b=1)[:2])
    torch.testing.assert_close(dist(student, teacher, 1.0, 1.0, 5.0), dist(student, teacher, 1.0, 1.0, 0.0))


def test_a_student_that_says_nothing_yet_gets_a_finite_gradient(draw):
    """The output layer of zeros that many a training starts with."""
    teacher = torch.tensor(draw()[1]).float()
    student = torch.zeros_like(teacher, requires_grad=True)
    value = dist(student, teacher, 1.0)
    value.sum().backward()
    assert value.tolist() == [2.0] * 6
    assert student.grad is not None
    assert student.grad.abs().max() < 10


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.5, 8))
def test_stays_in_its_range_and_ignores_the_order_of_classes_and_rows(seed, temperature):
    rng = np.random.default_rng(seed)
    student, teacher = (torch.tensor(3 * rng.standard_normal((5, 6))) for _ in range(2))
    value = dist(student, teacher, temperature)
    assert (value >= -1e-9).all()
    assert (value <= 4 * temperature**2 + 1e-9).all()
    classes, rows = torch.tensor(rng.permutation(6)), torch.tensor(rng.permutation(5))
    torch.testing.assert_close(dist(student[:, classes], teacher[:, classes], temperature), value)
    torch.testing.assert_close(dist(student[rows], teacher[rows], temperature), value[rows])
