import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monograph.errors import ConfigError, ContractError
from monograph.pipelines.losses.kd import kd
from monograph.pipelines.losses.multi_teacher import combine_teachers, confidence_weights, fixed_weights


def teachers_of(seed: int = 0, t: int = 3, b: int = 4, c: int = 5) -> np.ndarray:
    return 3 * np.random.default_rng(seed).standard_normal((t, b, c))


def test_the_softmax_of_the_combination_is_the_mean_of_probabilities(softmax64):
    teachers, weights = teachers_of(), np.array([0.5, 0.3, 0.2])
    combined = combine_teachers(torch.tensor(teachers), torch.tensor(weights), 4.0)
    expected = np.einsum("t,tbc->bc", weights, softmax64(teachers / 4))
    np.testing.assert_allclose(softmax64(combined.numpy() / 4), expected, rtol=1e-10)


def test_each_row_may_have_weights_of_its_own(softmax64):
    teachers = teachers_of()
    weights = np.random.default_rng(1).dirichlet(np.ones(3), size=4).T  # [t x b]
    combined = combine_teachers(torch.tensor(teachers), torch.tensor(weights), 2.0)
    np.testing.assert_allclose(
        softmax64(combined.numpy() / 2), np.einsum("tb,tbc->bc", weights, softmax64(teachers / 2)), rtol=1e-10
    )


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.5, 8))
def test_one_divergence_has_the_gradient_of_the_weighted_many(seed, temperature):
    """sum_t w_t KL(p_t || q) = KL(sum_t w_t p_t || q) + constant."""
    rng = np.random.default_rng(seed)
    teachers, weights = torch.tensor(teachers_of(seed)), torch.tensor(rng.dirichlet(np.ones(3)))
    students = torch.tensor(3 * rng.standard_normal((2, 4, 5)))
    combined = combine_teachers(teachers, weights, temperature)
    gradients, gaps = [], []
    for student in students:
        many, one = student.clone().requires_grad_(), student.clone().requires_grad_()
        many_value = sum(w * kd(many, teacher, temperature) for w, teacher in zip(weights, teachers, strict=True))
        one_value = kd(one, combined, temperature)
        many_value.sum().backward()
        one_value.sum().backward()
        gradients.append((many.grad, one.grad))
        gaps.append((many_value - one_value).detach())
    for many_gradient, one_gradient in gradients:
        torch.testing.assert_close(one_gradient, many_gradient, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gaps[0], gaps[1])  # the constant does not depend on the student
    assert (gaps[0] >= -1e-9).all()


def test_a_teacher_without_weight_does_not_count():
    teachers = torch.tensor(teachers_of(t=2)).float()
    combined = combine_teachers(teachers, fixed_weights([0, 3]), 1.0)
    torch.testing.assert_close(combined, teachers[1].log_softmax(1))


def test_confidence_gives_the_teacher_that_is_right_more(softmax64):
    teachers, labels = teachers_of(), np.array([0, 1, 4, 2])
    losses = -np.log(softmax64(teachers)[:, np.arange(4), labels])  # [t x b]
    expected = (1 - np.exp(losses) / np.exp(losses).sum(axis=0)) / 2
    weights = confidence_weights(torch.tensor(teachers), torch.tensor(labels))
    np.testing.assert_allclose(weights, expected, rtol=1e-10)
    np.testing.assert_allclose(weights.sum(0), 1)
    assert (weights.numpy().argmax(axis=0) == losses.argmin(axis=0)).all()


def test_without_labels_the_weights_are_equal():
    teachers = torch.tensor(teachers_of())
    assert (confidence_weights(teachers, None) == 1 / 3).all()
    weights = confidence_weights(teachers, torch.tensor([0, -1, 2, -1]))
    assert (weights[:, [1, 3]] == 1 / 3).all()
    assert (weights[:, [0, 2]] != 1 / 3).any(0).all()


def test_one_teacher_has_all_the_weight():
    assert confidence_weights(torch.zeros(1, 2, 3), torch.tensor([0, 1])).tolist() == [[1.0, 1.0]]


def test_extreme_logits_stay_finite():
    teachers = torch.tensor([[[1e4, -1e4]], [[-1e4, 1e4]]])
    weights = confidence_weights(teachers, torch.tensor([0]))
    assert weights.tolist() == [[1.0], [0.0]]
    assert combine_teachers(teachers, weights, 1.0).isfinite().all()


def test_fixed_weights_are_divided_by_their_sum():
    assert fixed_weights([1, 3]).tolist() == [0.25, 0.75]
    for wrong in ([], [0, 0], [1, -1], [1, float("nan")]):
        with pytest.raises(ConfigError, match="expected numbers from 0 up"):
            fixed_weights(wrong)


def test_weights_must_fit_the_teachers():
    with pytest.raises(ContractError, match=r"weights of shape \[2\] do not fit teachers of shape \[3, 4, 5\]"):
        combine_teachers(torch.tensor(teachers_of()), fixed_weights([1, 1]), 1.0)
    with pytest.raises(ContractError, match=r"got shape \[4 x 5\], expected \[t x b x c\]"):
        combine_teachers(torch.zeros(4, 5), fixed_weights([1]), 1.0)
