import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monograph.errors import ContractError
from monograph.pipelines.losses.relational import angle_loss, distance_loss


def embeddings(seed: int = 0, b: int = 5, d: int = 4, e: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((b, d)), 2 * rng.standard_normal((b, e))


def huber(difference: float) -> float:
    return difference**2 / 2 if abs(difference) <= 1 else abs(difference) - 0.5


def expected_distances(x: np.ndarray) -> np.ndarray:
    distances = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in x] for a in x])
    return distances / distances[distances > 0].mean()


def cosine(x: np.ndarray, i: int, j: int, k: int) -> float:
    left, right = x[i] - x[j], x[k] - x[j]
    size = np.sqrt((left @ left) * (right @ right))
    return float(left @ right / size) if size > 0 else 0.0


def test_distances_are_compared_pair_by_pair():
    student, teacher = embeddings()
    s, t = expected_distances(student), expected_distances(teacher)
    expected = [np.mean([huber(s[i, j] - t[i, j]) for j in range(5)]) for i in range(5)]
    np.testing.assert_allclose(distance_loss(torch.tensor(student), torch.tensor(teacher)), expected, rtol=1e-10)


def test_angles_are_compared_triple_by_triple():
    student, teacher = embeddings()
    pairs = list(itertools.product(range(5), repeat=2))
    expected = [np.mean([huber(cosine(student, i, j, k) - cosine(teacher, i, j, k)) for i, k in pairs]) for j in range(5)]
    np.testing.assert_allclose(angle_loss(torch.tensor(student), torch.tensor(teacher)), expected, rtol=1e-10)


def test_distances_by_hand():
    """Three points on a line, at 0, 1, 3 and at 0, 2, 3: distances over their means 1/2, 1, 3/2 and 1, 1/2, 3/2."""
    value = distance_loss(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0, 0.0], [2.0, 0.0], [3.0, 0.0]]))
    assert value.tolist() == pytest.approx([1 / 24, 1 / 12, 1 / 24])


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), factor=st.floats(0.01, 100))
def test_turning_moving_and_scaling_the_students_space_changes_nothing(seed, factor):
    student, teacher = (torch.tensor(side) for side in embeddings(seed))
    rotation = torch.linalg.qr(torch.tensor(np.random.default_rng(seed).standard_normal((4, 4))))[0]
    moved = factor * student @ rotation + 3
    torch.testing.assert_close(distance_loss(moved, teacher), distance_loss(student, teacher), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(angle_loss(moved, teacher), angle_loss(student, teacher), rtol=1e-6, atol=1e-9)


def test_a_student_equal_to_its_teacher_loses_nothing():
    student = torch.tensor(embeddings()[0]).float()
    assert distance_loss(student, student).tolist() == [0.0] * 5
    assert angle_loss(student, student).tolist() == [0.0] * 5


@pytest.mark.parametrize("loss", [distance_loss, angle_loss])
@pytest.mark.parametrize("rows", [[0, 0, 1, 2], [0, 0, 0, 0], [0]])
def test_rows_that_coincide_give_a_finite_gradient(loss, rows):
    student, teacher = (torch.tensor(side).float() for side in embeddings())
    leaf = student[rows].clone().requires_grad_()
    value = loss(leaf, teacher[: len(rows)])
    value.sum().backward()
    assert value.isfinite().all()
    assert leaf.grad is not None
    assert leaf.grad.abs().max() < 100


def test_autocast_does_not_lower_the_precision_of_angles():
    student, teacher = (torch.tensor(side).float() for side in embeddings())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = angle_loss(student, teacher)
    torch.testing.assert_close(value, angle_loss(student, teacher), rtol=0, atol=0)


def test_both_sides_need_the_same_rows():
    with pytest.raises(ContractError, match="rkd got 3 rows of the student and 4 of the teacher"):
        distance_loss(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(ContractError, match=r"rkd got shape \[3\], expected \[b x c\]"):
        angle_loss(torch.zeros(3), torch.zeros(3, 2))
