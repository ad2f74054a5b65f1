import numpy as np
import pytest
import torch
from torch import nn

from monograph.errors import ContractError
from monograph.pipelines.losses.features import Hint, attention_transfer


def test_a_hint_compares_the_teacher_with_a_projection_of_vectors():
    rng = np.random.default_rng(0)
    student, teacher, weight, bias = (rng.standard_normal(shape) for shape in ((4, 3), (4, 5), (5, 3), (5,)))
    hint = Hint(3, 5, maps=False).double()
    assert isinstance(hint.projection, nn.Linear)
    hint.projection.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    expected = ((student @ weight.T + bias - teacher) ** 2).mean(axis=1)
    np.testing.assert_allclose(hint(torch.tensor(student), torch.tensor(teacher)).detach(), expected, rtol=1e-10)


def test_a_hint_projects_every_place_of_a_map_alike():
    rng = np.random.default_rng(0)
    student, teacher, weight, bias = (rng.standard_normal(shape) for shape in ((2, 3, 4, 6), (2, 5, 4, 6), (5, 3), (5,)))
    hint = Hint(3, 5, maps=True).double()
    hint.projection.load_state_dict({"weight": torch.tensor(weight[:, :, None, None]), "bias": torch.tensor(bias)})
    projected = np.einsum("bkhw,mk->bmhw", student, weight) + bias[:, None, None]
    expected = ((projected - teacher) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(hint(torch.tensor(student), torch.tensor(teacher)).detach(), expected, rtol=1e-10)


def test_a_projection_learns_to_reach_its_teacher():
    torch.manual_seed(0)
    student, hint = torch.randn(32, 3), Hint(3, 2, maps=False)
    teacher = student @ torch.randn(3, 2)
    optimizer = torch.optim.Adam(hint.parameters(), 0.1)
    for _ in range(200):
        optimizer.zero_grad()
        hint(student, teacher).mean().backward()
        optimizer.step()
    assert hint(student, teacher).max() < 1e-3


def test_attention_maps_are_compared_place_by_place():
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((2, 6, 4, 5))

    def attention(maps: np.ndarray) -> np.ndarray:
        energy = (maps**2).mean(axis=0)
        return energy / np.sqrt((energy**2).sum())

    expected = [((attention(s) - attention(t)) ** 2).mean() for s, t in zip(student, teacher, strict=True)]
    np.testing.assert_allclose(attention_transfer(torch.tensor(student), torch.tensor(teacher)), expected, rtol=1e-10)


def test_attention_ignores_the_size_and_the_sign_of_activations():
    maps = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert attention_transfer(-7 * maps, maps).abs().max() < 1e-12


def test_a_map_of_zeros_gives_a_finite_gradient():
    student = torch.zeros(1, 2, 3, 3, requires_grad=True)
    value = attention_transfer(student, torch.ones(1, 4, 3, 3))
    value.sum().backward()
    assert value.tolist() == pytest.approx([1 / 9])
    assert student.grad is not None
    assert student.grad.abs().max() == 0


def test_maps_of_another_size_are_refused():
    with pytest.raises(ContractError, match=r"\[1, 2, 3, 3\] of the student.*pool the larger"):
        attention_transfer(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 6, 6))
    with pytest.raises(ContractError, match=r"projects the student's .* to \[1, 4, 3, 3\].*pool the larger"):
        Hint(2, 4, maps=True)(torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 6, 6))
    with pytest.raises(ContractError, match=r"attention got shape \[1 x 2\], expected \[b x k x h x w\]"):
        attention_transfer(torch.zeros(1, 2), torch.zeros(1, 2))
