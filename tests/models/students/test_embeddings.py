"""A text student that starts from its teacher's token embeddings."""

from __future__ import annotations

import pytest
import torch

from monograph.errors import ConfigError
from monograph.models.students import mlp, start_from_embeddings, transformer


def test_a_wider_table_keeps_most_of_its_distances():
    """Tokens that lie in six dimensions of forty, and a little noise: eight numbers keep how far each is from another."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(200, 6, generator=generator) @ torch.randn(6, 40, generator=generator)
    table = table + 0.01 * torch.randn(200, 40, generator=generator) + 3
    student = transformer(200, 16, 3, width=8)[0]
    start_from_embeddings(student, table)
    torch.testing.assert_close(torch.pdist(student.token_embedding.weight.detach()), torch.pdist(table), rtol=0.02, atol=0.1)


def test_a_narrower_table_fills_what_it_can():
    table = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    student = transformer(50, 16, 3, width=8)[0]
    rest = student.token_embedding.weight[:, 4:].detach().clone()
    start_from_embeddings(student, table)
    torch.testing.assert_close(torch.pdist(student.token_embedding.weight[:, :4].detach()), torch.pdist(table))
    assert torch.equal(student.token_embedding.weight[:, 4:], rest)


def test_a_table_of_the_same_width_is_taken_as_it_is():
    table = torch.randn(50, 24, generator=torch.Generator().manual_seed(0))
    student = transformer(50, 16, 3, width=24, attention_width=8)[0]
    start_from_embeddings(student, table)
    assert torch.equal(student.token_embedding.weight, table)


def test_other_tokens_and_other_students_are_refused():
    with pytest.raises(ConfigError, match="token embeddings of 30 tokens cannot start those of TextClassifier"):
        start_from_embeddings(transformer(50, 16, 3, width=8)[0], torch.zeros(30, 8))
    with pytest.raises(ConfigError, match="cannot start those of Sequential"):
        start_from_embeddings(mlp()[0], torch.zeros(30, 8))
