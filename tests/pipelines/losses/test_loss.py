"""What holds for every loss in the registry, and the mix with hard labels."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from monograph.errors import ConfigError, ContractError
from monograph.pipelines.losses import LOSSES, UNLABELLED, DistillationLoss, LossOptions, mixed, options_for

EVERY = pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
ON_LOGITS = pytest.mark.parametrize(
    "loss",
    [loss for loss in LOSSES.values() if loss.takes == "logits"],
    ids=[n for n, x in LOSSES.items() if x.takes == "logits"],
)


def sides(loss: DistillationLoss, b: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What this loss takes from student and teacher, and labels."""
    generator = torch.Generator().manual_seed(seed)
    shape = (b, 5, 3, 3) if loss.takes == "feature maps" else (b, 5)
    student, teacher = (3 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.randint(0, 5, (b,), generator=generator)


@EVERY
def test_names_itself_and_its_source(loss):
    assert LOSSES[loss.name] is loss
    assert loss.source.startswith("arXiv ")
    assert set(loss.reads) < {field.name for field in fields(LossOptions)}


@EVERY
def test_gives_one_value_for_each_row_and_no_gradient_to_the_teacher(loss):
    student, teacher, labels = sides(loss)
    student, teacher = student.float().requires_grad_(), teacher.float().requires_grad_()
    value = loss.compute(student, teacher, labels, loss.defaults)
    assert value.shape == (6,)
    assert value.dtype == torch.float32
    value.mean().backward()
    assert student.grad is not None
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


@EVERY
def test_a_doubled_batch_has_the_same_mean(loss):
    student, teacher, labels = sides(loss)
    once = loss.compute(student, teacher, labels, loss.defaults).mean()
    twice = loss.compute(
        student.repeat_interleave(2, 0), teacher.repeat_interleave(2, 0), labels.repeat_interleave(2), loss.defaults
    )
    torch.testing.assert_close(twice.mean(), once, rtol=1e-10, atol=0)


@EVERY
def test_the_value_of_a_row_depends_on_others_only_where_it_says_so(loss):
    student, teacher, labels = sides(loss)
    whole = loss.compute(student, teacher, labels, loss.defaults)
    parts = [loss.compute(student[i : i + 2], teacher[i : i + 2], labels[i : i + 2], loss.defaults) for i in (0, 2, 4)]
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-10) == loss.per_row


@EVERY
def test_only_the_options_that_it_reads_change_it(loss):
    student, teacher, labels = sides(loss)
    value = loss.compute(student, teacher, labels, loss.defaults)
    for field in fields(LossOptions):
        other = replace(loss.defaults, **{field.name: getattr(loss.defaults, field.name) + 0.5})
        changed = not torch.equal(loss.compute(student, teacher, labels, other), value)
        assert changed == (field.name in loss.reads), field.name


@EVERY
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_to_single(loss, precision):
    student, teacher, labels = sides(loss)
    student, teacher = student.to(precision), teacher.to(precision)
    value = loss.compute(student, teacher, labels, loss.defaults)
    assert torch.equal(value, loss.compute(student.float(), teacher.float(), labels, loss.defaults))


@EVERY
def test_extreme_outputs_give_finite_values_and_gradients(loss):
    student, teacher, labels = sides(loss)
    student = (1e4 * student.sign()).float()
    for other in (1e4 * teacher.sign().float(), -student, student, torch.zeros_like(student)):
        for left, right in ((student, other), (other, student)):
            leaf = left.clone().requires_grad_()
            value = loss.compute(leaf, right, labels, loss.defaults)
            value.sum().backward()
            assert value.isfinite().all()
            assert leaf.grad is not None
            assert leaf.grad.isfinite().all()


@EVERY
def test_other_rows_are_refused(loss):
    student, teacher, labels = sides(loss)
    with pytest.raises(ContractError, match=loss.name):
        loss.compute(student, teacher[:-1], labels, loss.defaults)


@pytest.mark.parametrize("name", ["soft-labels", "kd", "dkd", "dist", "standardised-kd", "mse", "cosine"])
def test_other_classes_are_refused(name):
    with pytest.raises(
        ContractError, match=rf"{name} got a student of shape \[2 x 3\] and a teacher of shape \[2 x 4\], expected"
    ):
        LOSSES[name].compute(torch.zeros(2, 3), torch.zeros(2, 4), torch.tensor([0, 1]), LOSSES[name].defaults)


@ON_LOGITS
def test_a_temperature_must_be_above_zero(loss):
    student, teacher, labels = sides(loss)
    with pytest.raises(ConfigError, match=rf"{loss.name} got temperature 0\.0, expected one above 0"):
        loss.compute(student, teacher, labels, replace(loss.defaults, temperature=0.0))


@ON_LOGITS
def test_labels_are_needed_only_where_it_says_so(loss):
    student, teacher, _ = sides(loss)
    if loss.needs_labels:
        with pytest.raises(ContractError, match="needs the label of every row"):
            loss.compute(student, teacher, None, loss.defaults)
    else:
        assert loss.compute(student, teacher, None, loss.defaults).shape == (6,)


def test_given_options_replace_the_defaults():
    assert options_for(LOSSES["dkd"], {"beta": 2.0}) == LossOptions(temperature=4.0, alpha=1.0, beta=2.0)
    assert options_for(LOSSES["mse"], {"hard_weight": 0.5}).hard_weight == 0.5


def test_an_option_that_changes_nothing_is_refused():
    with pytest.raises(
        ConfigError, match="loss kd does not read the option beta: leave it out, or set one of temperature, hard_weig"
    ):
        options_for(LOSSES["kd"], {"beta": 2.0})
    with pytest.raises(ConfigError, match="there is no option gamma of a loss"):
        options_for(LOSSES["kd"], {"gamma": 2.0})


def test_labelled_rows_are_mixed_and_others_are_not(draw, softmax64):
    student, teacher, labels = draw()
    labels[[1, 4]] = UNLABELLED
    loss = LOSSES["kd"]
    soft = loss.compute(torch.tensor(student), torch.tensor(teacher), None, loss.defaults).numpy()
    hard = -np.log(softmax64(student)[np.arange(6), labels])
    expected = np.where(labels == UNLABELLED, soft, 0.7 * soft + 0.3 * hard)
    mix = mixed(loss, 0.3)
    value = mix.compute(torch.tensor(student), torch.tensor(teacher), torch.tensor(labels), loss.defaults)
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    np.testing.assert_allclose(mix.compute(torch.tensor(student), torch.tensor(teacher), None, loss.defaults), soft, rtol=1e-10)
    assert mix.name == "kd+labels"


def test_a_weight_of_one_is_cross_entropy_on_labels_and_soft_elsewhere(draw, softmax64):
    student, teacher, labels = draw()
    labels[0] = UNLABELLED
    loss = LOSSES["dist"]
    soft = loss.compute(torch.tensor(student), torch.tensor(teacher), None, loss.defaults)
    value = mixed(loss, 1.0).compute(torch.tensor(student), torch.tensor(teacher), torch.tensor(labels), loss.defaults)
    assert value[0] == soft[0]
    np.testing.assert_allclose(value[1:], -np.log(softmax64(student)[np.arange(1, 6), labels[1:]]), rtol=1e-10)


def test_a_weight_of_zero_changes_nothing():
    assert mixed(LOSSES["kd"], 0.0) is LOSSES["kd"]


def test_unlabelled_rows_get_no_gradient_from_labels(draw, gradient):
    student, teacher, labels = draw()
    labels[:] = UNLABELLED
    loss = LOSSES["kd"]
    soft = gradient(lambda leaf: loss.compute(leaf, torch.tensor(teacher), None, loss.defaults), student)
    mix = gradient(
        lambda leaf: mixed(loss, 0.5).compute(leaf, torch.tensor(teacher), torch.tensor(labels), loss.defaults), student
    )
    np.testing.assert_array_equal(mix, soft)


@pytest.mark.parametrize("hard_weight", [-0.1, 1.1, float("nan")])
def test_a_weight_is_a_share(hard_weight):
    with pytest.raises(ConfigError, match=r"hard_weight is .* expected a share from 0"):
        mixed(LOSSES["kd"], hard_weight)


def test_cross_entropy_needs_logits_and_whole_labels():
    with pytest.raises(ConfigError, match="rkd compares embeddings, and cross-entropy on labels needs logits"):
        mixed(LOSSES["rkd"], 0.5)
    with pytest.raises(ContractError, match=r"labels of torch\.float32, expected whole numbers"):
        mixed(LOSSES["mse"], 0.5).compute(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2), LossOptions())
