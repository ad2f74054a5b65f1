"""What is minimised, computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from monograph.errors import DataError
from monograph.models.contract import Kind
from monograph.models.data.rows import UNLABELLED
from monograph.pipelines.adapt.methods import balanced_weights
from monograph.pipelines.training.batches import Batch
from monograph.pipelines.training.objectives import check_score_labels, own_objective, validation_loss


def batch(labels: list, dtype: torch.dtype = torch.int64) -> Batch:
    return Batch((), torch.tensor(labels, dtype=dtype), torch.arange(len(labels)))


def test_scores_are_logits_of_each_label():
    logits = torch.tensor([[0.0, 2.0], [-1.0, 0.5]])
    loss = own_objective(Kind.SCORES)([logits], batch([[1, 0], [0, 1]], torch.float32))
    softplus = lambda value: math.log1p(math.exp(value))  # noqa: E731 # as the formula has it
    by_hand = [(softplus(-0.0) + softplus(2.0)) / 2, (softplus(-1.0) + softplus(-0.5)) / 2]
    torch.testing.assert_close(loss, torch.tensor(by_hand))
    one = own_objective(Kind.SCORES)([logits[:, :1]], batch([1, 0], torch.float32))
    torch.testing.assert_close(one, torch.tensor([softplus(-0.0), softplus(-1.0)]))


def test_numbers_are_squared_errors():
    loss = own_objective(Kind.REGRESSION)([torch.tensor([[1.0, 2.0], [0.0, 0.0]])], batch([[0, 0], [3, 1]], torch.float32))
    assert loss.tolist() == [2.5, 5.0]


def test_smoothed_labels():
    logits, share = torch.tensor([[1.0, 0.0, -1.0]]), 0.3
    log_probabilities = logits.log_softmax(1)[0]
    wanted = torch.tensor([share / 3, share / 3, 1 - share + share / 3])
    loss = own_objective(Kind.LOGITS, share)([logits], batch([2]))
    torch.testing.assert_close(loss, -(wanted * log_probabilities).sum()[None])


def test_a_row_without_a_label_counts_nothing():
    objective = own_objective(Kind.LOGITS, 0.1, np.array([1.0, 2.0]))
    assert objective([torch.zeros(2, 2)], batch([UNLABELLED, 1]))[0] == 0


class TestClassWeights:
    def test_by_hand(self):
        np.testing.assert_allclose(balanced_weights(np.array([0, 0, 0, 1]), 3), [4 / (2 * 3), 4 / 2, 0])

    def test_of_a_balanced_set_they_change_nothing(self):
        labels = [0, 1, 2, 0, 1, 2]
        gradients = []
        for weights in (None, balanced_weights(np.array(labels), 3)):
            logits = torch.linspace(-1, 1, 18).reshape(6, 3).requires_grad_()
            own_objective(Kind.LOGITS, 0.0, weights)([logits], batch(labels)).mean().backward()
            gradients.append(logits.grad)
        torch.testing.assert_close(gradients[0], gradients[1])

    def test_a_rare_class_counts_as_much_as_any_other(self):
        labels = [0, 0, 0, 1]
        loss = own_objective(Kind.LOGITS, 0.0, balanced_weights(np.array(labels), 2))([torch.zeros(4, 2)], batch(labels))
        assert loss[3] == pytest.approx(3 * float(loss[0]))
        assert float(loss[:3].sum()) == pytest.approx(float(loss[3]))


def test_validation_loss():
    labels, scores = torch.tensor([0.0, 1.0]), torch.tensor([[0.0], [0.0]])
    assert validation_loss(Kind.SCORES, scores, labels) == pytest.approx(math.log(2))
    ratings = torch.tensor([1.0, 5.0])
    assert validation_loss(Kind.SCORES, torch.tensor([[2.0], [3.0]]), ratings) == pytest.approx(2.5)
    assert validation_loss(Kind.REGRESSION, torch.tensor([[2.0], [3.0]]), ratings) == pytest.approx(2.5)
    assert validation_loss(Kind.LOGITS, torch.zeros(1, 4), torch.tensor([3])) == pytest.approx(math.log(4))


def test_labels_that_are_no_shares():
    check_score_labels(np.array([0.0, 0.3, 1.0]), "d.npz")
    with pytest.raises(DataError, match=r"d.npz: a label is 4, and scores are learned from labels of 0 and 1"):
        check_score_labels(np.array([0.0, 4.0]), "d.npz")
