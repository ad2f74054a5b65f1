import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import log_softmax, softmax

from monograph.errors import ConfigError
from monograph.pipelines.losses.kd import divergence, kd

LN2, LN3 = np.log(2), np.log(3)


def test_by_hand():
    """At T = 2 the logits 2 ln 3 and 0 are 3/4 and 1/4, against a half each: 4 (3/4 ln 3/2 + 1/4 ln 1/2)."""
    value = kd(torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * LN3, 0.0]]), 2.0)
    assert value.tolist() == pytest.approx([4 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5))], rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_is_the_sum_over_classes(draw, softmax64, temperature):
    student, teacher, _ = draw()
    p, q = softmax64(teacher / temperature), softmax64(student / temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum(axis=1)
    np.testing.assert_allclose(kd(torch.tensor(student), torch.tensor(teacher), temperature), expected, rtol=1e-12)
    single = kd(torch.tensor(student).float(), torch.tensor(teacher).float(), temperature)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, expected, rtol=2e-4)


def test_a_student_equal_to_its_teacher_loses_nothing(draw):
    logits = torch.tensor(draw(b=50)[0]).float().requires_grad_()
    value = kd(logits, logits.detach(), 4.0)
    assert value.tolist() == [0.0] * 50
    value.sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-5


def test_for_high_temperatures_the_gradient_is_the_difference_of_centred_logits(draw, gradient):
    student, teacher, _ = draw(c=7)

    def centred(logits: np.ndarray) -> np.ndarray:
        return logits - logits.mean(axis=1, keepdims=True)

    expected = (centred(student) - centred(teacher)) / 7
    errors = [
        np.abs(gradient(lambda leaf, t=temperature: kd(leaf, torch.tensor(teacher), t), student) - expected).max()
        for temperature in (1e2, 1e3, 1e4)
    ]
    # The next term of the series falls as 1 / T.
    assert errors[2] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.1)


def test_the_usual_snippet_divides_by_classes_too_and_forgets_the_temperature(draw):
    """`nn.KLDivLoss()` is by default a mean over b * c elements, of which its own documentation warns."""
    c, temperature = 5, 4.0
    student, teacher = (torch.tensor(logits) for logits in draw(c=c)[:2])
    with pytest.warns(UserWarning, match="batchmean"):
        snippet = nn.KLDivLoss()(log_softmax(student / temperature, 1), softmax(teacher / temperature, 1))
    ours = kd(student, teacher, temperature).mean()
    assert float(ours / snippet) == pytest.approx(c * temperature**2)
    by_batch = nn.KLDivLoss(reduction="batchmean")(log_softmax(student / temperature, 1), softmax(teacher / temperature, 1))
    assert float(by_batch / snippet) == pytest.approx(c)


def test_without_its_factor_the_gradient_falls_as_the_square_of_the_temperature(draw, gradient):
    student, teacher, _ = draw()

    def snippet(temperature: float) -> float:
        target = softmax(torch.tensor(teacher) / temperature, 1)
        return float(
            np.linalg.norm(
                gradient(lambda leaf: nn.KLDivLoss(reduction="sum")(log_softmax(leaf / temperature, 1), target), student)
            )
        )

    def ours(temperature: float) -> float:
        return float(np.linalg.norm(gradient(lambda leaf: kd(leaf, torch.tensor(teacher), temperature), student)))

    assert snippet(1e3) / snippet(2e3) == pytest.approx(4, rel=1e-2)
    assert ours(1e3) / ours(2e3) == pytest.approx(1, rel=1e-2)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.1, 20), scale=st.floats(0.01, 30))
def test_is_never_below_zero_and_ignores_shifts_and_the_order_of_classes(seed, temperature, scale):
    rng = np.random.default_rng(seed)
    student, teacher = (torch.tensor(scale * rng.standard_normal((4, 6))) for _ in range(2))
    value = kd(student, teacher, temperature)
    assert (value >= -1e-9).all()
    order = torch.tensor(rng.permutation(6))
    torch.testing.assert_close(kd(student[:, order], teacher[:, order], temperature), value)
    torch.testing.assert_close(kd(student + 7, teacher - 3, temperature), value)


def test_a_class_that_a_teacher_rules_out_adds_nothing():
    log_teacher = torch.tensor([[0.5, 0.5, 0.0]]).log()
    log_student = torch.tensor([[0.25, 0.25, 0.5]]).log().requires_grad_()
    value = divergence(log_student, log_teacher)
    assert value.tolist() == pytest.approx([LN2])
    value.sum().backward()
    assert log_student.grad is not None
    assert log_student.grad.tolist() == [[-0.5, -0.5, 0.0]]


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_must_be_above_zero(temperature):
    with pytest.raises(ConfigError, match=r"kd got temperature .* expected one above 0"):
        kd(torch.zeros(1, 2), torch.zeros(1, 2), temperature)
