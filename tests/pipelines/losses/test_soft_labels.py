import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from monograph.errors import ContractError
from monograph.pipelines.losses.kd import kd
from monograph.pipelines.losses.soft_labels import soft_cross_entropy, tempered_cross_entropy


def test_by_hand():
    """The softmax of ln 3 and 0 is 3/4 and 1/4."""
    value = soft_cross_entropy(torch.tensor([[np.log(3), 0.0]]), torch.tensor([[0.6, 0.4]]))
    assert value.tolist() == pytest.approx([-(0.6 * np.log(0.75) + 0.4 * np.log(0.25))], rel=1e-6)


def test_is_the_sum_over_classes(draw, softmax64):
    student, teacher, _ = draw()
    soft = softmax64(teacher)
    expected = -(soft * np.log(softmax64(student))).sum(axis=1)
    np.testing.assert_allclose(soft_cross_entropy(torch.tensor(student), torch.tensor(soft)), expected, rtol=1e-12)
    np.testing.assert_allclose(tempered_cross_entropy(torch.tensor(student), torch.tensor(teacher), 1.0), expected, rtol=1e-12)


def test_one_hot_rows_are_hard_labels(draw):
    student, _, labels = (torch.tensor(values) for values in draw())
    one_hot = torch.eye(5, dtype=torch.float64)[labels]
    torch.testing.assert_close(soft_cross_entropy(student, one_hot), cross_entropy(student, labels, reduction="none"))


def test_is_kd_plus_the_teachers_entropy(draw, softmax64):
    student, teacher, _ = draw()
    p = softmax64(teacher / 3)
    difference = tempered_cross_entropy(torch.tensor(student), torch.tensor(teacher), 3.0) - kd(
        torch.tensor(student), torch.tensor(teacher), 3.0
    )
    np.testing.assert_allclose(difference, -9 * (p * np.log(p)).sum(axis=1), rtol=1e-10)


@pytest.mark.parametrize("row", [[2.0, -1.0], [3.0, 1.0], [float("nan"), 1.0]])
def test_logits_are_no_soft_labels(row):
    with pytest.raises(ContractError, match=r"soft labels must be probabilities.*pass logits through a softmax first"):
        soft_cross_entropy(torch.zeros(2, 2), torch.tensor([[0.5, 0.5], row]))
