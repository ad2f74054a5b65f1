import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monograph.errors import ContractError
from monograph.pipelines.losses.dkd import dkd
from monograph.pipelines.losses.kd import kd


def expected_dkd(p: np.ndarray, q: np.ndarray, y: int, alpha: float, beta: float) -> float:
    """Of one row, from the probabilities of teacher and student: both divergences written out."""
    target = p[y] * np.log(p[y] / q[y]) + (1 - p[y]) * np.log((1 - p[y]) / (1 - q[y]))
    p_others, q_others = np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y])
    return float(alpha * target + beta * (p_others * np.log(p_others / q_others)).sum())


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 8.0), (1.0, 0.0), (0.0, 1.0)])
def test_is_the_two_divergences(draw, softmax64, alpha, beta):
    student, teacher, labels = draw()
    p, q = softmax64(teacher / 4), softmax64(student / 4)
    expected = [16 * expected_dkd(p[i], q[i], labels[i], alpha, beta) for i in range(6)]
    value = dkd(torch.tensor(student), torch.tensor(teacher), torch.tensor(labels), 4.0, alpha, beta)
    np.testing.assert_allclose(value, expected, rtol=1e-10)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), c=st.integers(2, 9), temperature=st.floats(0.5, 10))
def test_with_the_teachers_doubt_as_beta_it_is_kd(seed, c, temperature):
    rng = np.random.default_rng(seed)
    student, teacher = (torch.tensor(3 * rng.standard_normal((5, c))) for _ in range(2))
    labels = torch.tensor(rng.integers(0, c, 5))
    doubt = 1 - (teacher / temperature).softmax(1)[torch.arange(5), labels]
    value = dkd(student, teacher, labels, temperature, alpha=1.0, beta=doubt)
    torch.testing.assert_close(value, kd(student, teacher, temperature), rtol=1e-8, atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_is_never_below_zero_and_ignores_the_order_of_classes(seed):
    rng = np.random.default_rng(seed)
    student, teacher = (torch.tensor(3 * rng.standard_normal((5, 6))) for _ in range(2))
    labels, order = torch.tensor(rng.integers(0, 6, 5)), torch.tensor(rng.permutation(6))
    value = dkd(student, teacher, labels, 4.0)
    assert (value >= -1e-9).all()
    torch.testing.assert_close(dkd(student[:, order], teacher[:, order], order.argsort()[labels], 4.0), value)


def test_labels_are_required():
    logits = torch.zeros(3, 4)
    with pytest.raises(ContractError, match="dkd needs the label of every row and got none: give labels"):
        dkd(logits, logits, None, 4.0)
    with pytest.raises(ContractError, match="1 of 3 have none: leave these rows out"):
        dkd(logits, logits, torch.tensor([0, -1, 2]), 4.0)
    with pytest.raises(ContractError, match="label 4, expected 0 to 3"):
        dkd(logits, logits, torch.tensor([0, 4, 2]), 4.0)
    with pytest.raises(ContractError, match=r"labels of shape \[2\] for outputs of shape \[3 x 4\]"):
        dkd(logits, logits, torch.tensor([0, 1]), 4.0)


def test_one_class_cannot_be_decoupled():
    with pytest.raises(ContractError, match="got 1 class, expected 2 or more"):
        dkd(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64), 4.0)
