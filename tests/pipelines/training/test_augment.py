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


def texts() -> tuple[Tensor, Tensor]:
    """200 texts of 5 to 40 tokens, each token another one, padded to 40: token ids and their mask."""
    lengths = torch.randint(5, 41, (200, 1), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(40) < lengths).long()
    return (torch.arange(1, 41) + 100 * torch.arange(200)[:, None]) * mask, mask


def test_dropped_tokens_close_their_gaps():
    (ids, mask), augmentation = texts(), Augmentation(("drop",))
    given, given_mask = augmentation.apply([ids, mask], ROWS, 3)
    full = ids[:, -1] > 0
    assert torch.equal(given[:, 0], ids[:, 0]), "the first token, which stands for the whole text in BERT, stays"
    assert torch.equal(given_mask, (given > 0).long()), "the mask goes with the tokens"
    for row in (~full).nonzero()[:, 0].tolist():
        left = given[row][given[row] > 0].tolist()
        assert left == sorted(set(left)), "in their order, each once"
        assert set(left) <= set(ids[row].tolist())
        assert not given[row, len(left) :].any()
    dropped = 1 - given_mask[~full].sum() / mask[~full].sum()
    assert 0.11 < dropped < 0.17
    assert torch.equal(given[full, -1], ids[full, -1]), "a full text repeats its last token"


def test_a_view_of_a_text_belongs_to_its_row():
    (ids, mask), order = texts(), torch.randperm(200, generator=torch.Generator().manual_seed(1))
    augmentation = Augmentation(("drop",))
    whole, _ = augmentation.apply([ids, mask], ROWS, 0)
    assert torch.equal(augmentation.apply([ids[order]], order, 0)[0], whole[order])
    assert torch.equal(augmentation.apply([ids[77:78]], ROWS[77:78], 0)[0][0], whole[77])
    for other in (augmentation.apply([ids], ROWS, 1), Augmentation(("drop",), seed=1).apply([ids], ROWS, 0)):
        assert (other[0] != whole).any(1).float().mean() > 0.5
    padded = torch.nn.functional.pad(ids, (0, 8))
    short = ids[:, -1] == 0
    assert torch.equal(augmentation.apply([padded], ROWS, 0)[0][short, :40], whole[short]), "more padding, the same view"


def test_pictures_and_texts_are_augmented_side_by_side():
    (ids, _), both = texts(), Augmentation(("flip", "drop"))
    seen, read = both.apply([pictures(), ids], ROWS, 0)
    assert torch.equal(seen, Augmentation(("flip",)).apply([pictures()], ROWS, 0)[0])
    assert not torch.equal(read, ids)


def test_epochs_take_views_in_turn():
    assert [Augmentation(("flip",), views=3).view_of(epoch) for epoch in range(5)] == [0, 1, 2, 0, 1]
    assert [Augmentation(("flip",)).view_of(epoch) for epoch in range(5)] == [0, 1, 2, 3, 4]


def test_wrong_ones_are_one_line():
    for given, message in ((("spin",), "unknown augmentation 'spin'"), ((), "give one or more"), (("flip", "flip"), "each once")):
        with pytest.raises(ConfigError, match=message):
            Augmentation(given)
    with pytest.raises(ConfigError, match="-1 views"):
        Augmentation(("flip",), views=-1)
    check_augmentable(conv()[1], "student", ("flip", "erase"))
    contract = conv()[1]
    with pytest.raises(ContractError, match=r"only pictures, float \[b x k x h x w\], can be augmented by shift"):
        check_augmentable(transformer(width=8)[1], "student", ("drop", "shift"))
    check_augmentable(transformer(width=8)[1], "student", ("drop",))
    with pytest.raises(ContractError, match=r"only texts, int64 \[b x s\], can be augmented by drop"):
        check_augmentable(conv()[1], "student", ("drop",))
    (spec,) = contract.inputs
    raw = replace(contract, inputs=(replace(spec, preprocessing=replace(spec.preprocessing, layout="NHWC")),))
    with pytest.raises(ContractError, match="only pictures"):
        check_augmentable(raw, "student", ("flip",))
