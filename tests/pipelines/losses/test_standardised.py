import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monograph.errors import ConfigError
from monograph.pipelines.losses.standardised import standardised, standardised_kd


def test_is_kd_of_z_scores(draw, softmax64):
    student, teacher, _ = draw()

    def scores(logits: np.ndarray) -> np.ndarray:
        return (logits - logits.mean(axis=1, keepdims=True)) / logits.std(axis=1, keepdims=True)

    np.testing.assert_allclose(standardised(torch.tensor(student)), scores(student), rtol=1e-12, atol=1e-14)
    p, q = softmax64(scores(teacher) / 2), softmax64(scores(student) / 2)
    value = standardised_kd(torch.tensor(student), torch.tensor(teacher), 2.0)
    np.testing.assert_allclose(value, 4 * (p * np.log(p / q)).sum(axis=1), rtol=1e-10)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10_000),
    factors=st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)),
    shifts=st.tuples(st.floats(-100, 100), st.floats(-100, 100)),
)
def test_ignores_positive_affine_changes_of_either_side(seed, factors, shifts):
    rng = np.random.default_rng(seed)
    student, teacher = (torch.tensor(rng.standard_normal((4, 6))) for _ in range(2))
    changed = standardised_kd(factors[0] * student + shifts[0], factors[1] * teacher + shifts[1], 2.0)
    torch.testing.assert_close(changed, standardised_kd(student, teacher, 2.0), rtol=1e-7, atol=1e-8)


def test_a_change_of_sign_is_not_ignored(draw):
    student = torch.tensor(draw()[0])
    assert (standardised_kd(-student, student, 2.0) > 0.1).all()


def test_the_sample_deviation_of_the_authors_code_is_another_temperature(draw):
    student, teacher = (torch.tensor(logits) for logits in draw(c=5)[:2])
    p, q = (((z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True) / 2).log_softmax(1) for z in (teacher, student))
    theirs = (p.exp() * (p - q)).sum(1)
    temperature = 2 * np.sqrt(5 / 4)
    torch.testing.assert_close(standardised_kd(student, teacher, temperature) / temperature**2, theirs)


def test_equal_logits_give_a_finite_gradient(draw):
    teacher = torch.tensor(draw()[1]).float()
    student = torch.full_like(teacher, 0.1, requires_grad=True)
    standardised_kd(student, teacher, 2.0).sum().backward()
    assert student.grad is not None
    assert student.grad.tolist() == [[0.0] * 5] * 6


def test_the_message_names_this_loss():
    with pytest.raises(ConfigError, match="standardised-kd got temperature 0"):
        standardised_kd(torch.zeros(1, 2), torch.zeros(1, 2), 0.0)
