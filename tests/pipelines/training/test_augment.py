"""Views are the same for whoever asks, whatever the order of rows, and commute with how models prepare their pixels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from monograph.errors import ConfigError, ContractError
from monograph.models.data.digits import optical_digits
from monograph.models.students import conv, transformer
from monograph.pipelines.training import OPERATIONS, Augmentation, check_augmentable


def pictures() -> Tensor:
    return torch.from_numpy(optical_digits()["x"][:200].reshape(200, 1, 8, 8)).float() / 16


ROWS = torch.arange(200)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_view_belongs_to_its_row(name: str):
    augmentation, order = Augmentation((name,)), torch.randperm(200, generator=torch.Generator().manual_seed(1))
    (whole,) = augmentation.apply([pictures()], ROWS, 3)
    (shuffled,) = augmentation.apply([pictures()[order]], order, 3)
    torch.testing.assert_close(shuffled, whole[order])
    (one,) = augmentation.apply([pictures()[77:78]], ROWS[77:78], 3)
    torch.testing.assert_close(one[0], whole[77])
    assert whole.shape == pictures().shape
    changed = (whole != pictures()).flatten(1).any(1).float().mean()
    assert 0.25 < changed <= 1, "digits are mirrored, moved, stretched or covered"


@pytest.mark.parametrize("name", OPERATIONS)
def test_views_and_seeds_differ(name: str):
    first, second = (Augmentation((name,)).apply([pictures()], ROWS, view)[0] for view in (0, 1))
    other = Augmentation((name,), seed=1).apply([pictures()], ROWS, 0)[0]
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_view_commutes_with_the_scale_and_shift_of_preprocessing(name: str):
    """So a teacher and a student that are normalised differently see the same view."""
    three = torch.cat([pictures(), 1 - pictures(), pictures() ** 2], 1)
    mean, std = torch.tensor([0.4, 0.5, 0.1]).reshape(3, 1, 1), torch.tensor([0.2, 2.0, 0.5]).reshape(3, 1, 1)
    augmentation = Augmentation((name,))
    (after,) = augmentation.apply([(three - mean) / std], ROWS, 5)
    (before,) = augmentation.apply([three], ROWS, 5)
    torch.testing.assert_close(after, (before - mean) / std, atol=1e-5, rtol=1e-5)


def test_a_view_is_the_same_at_another_size():
    """Enlarged by whole numbers, then erased: the same rectangle, to within a pixel."""
    large = pictures().repeat_interleave(8, 2).repeat_interleave(8, 3)
    augmentation = Augmentation(("flip", "erase"))
    (small_view,), (large_view,) = augmentation.apply([pictures()], ROWS, 0), augmentation.apply([large], ROWS, 0)
    shrunk = torch.nn.functional.avg_pool2d(large_view, 8)
    assert (small_view - shrunk).abs().mean() < 0.1 * (pictures() - shrunk).abs().mean()


def test_what_is_no_picture_stays():
    ids = torch.arange(200)[:, None]
    assert Augmentation(("flip",)).apply([ids], ROWS, 0)[0] is ids


def test_epochs_take_views_in_turn():
    assert [Augmentation(("flip",), views=3).view_of(epoch) for epoch in range(5)] == [0, 1, 2, 0, 1]
    assert [Augmentation(("flip",)).view_of(epoch) for epoch in range(5)] == [0, 1, 2, 3, 4]


def test_wrong_ones_are_one_line():
    for given, message in ((("spin",), "unknown augmentation 'spin'"), ((), "give one or more"), (("flip", "flip"), "each once")):
        with pytest.raises(ConfigError, match=message):
            Augmentation(given)
    with pytest.raises(ConfigError, match="-1 views"):
        Augmentation(("flip",), views=-1)
    check_augmentable(conv()[1], "student")
    contract = conv()[1]
    with pytest.raises(ContractError, match=r"only pictures, float \[b x k x h x w\]"):
        check_augmentable(transformer(width=8)[1], "student")
    (spec,) = contract.inputs
    raw = replace(contract, inputs=(replace(spec, preprocessing=replace(spec.preprocessing, layout="NHWC")),))
    with pytest.raises(ContractError, match="only pictures"):
        check_augmentable(raw, "student")
