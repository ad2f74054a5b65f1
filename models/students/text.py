"""A student of texts: a small transformer encoder of plain modules, which both of PyTorch's exporters can write.

Shape letters: ``b`` batch, ``s`` sequence, ``d`` width, ``a`` width of the attention, ``n`` heads, ``c`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from monograph.errors import ConfigError
from monograph.models.students.contracts import ModuleAndContract, text_classifier_contract

_MASKED_SCORE = -1e4
"""Added to the scores of padding: its exponential is zero, and float16 can hold it."""


def transformer(
    vocabulary_size: int = 30522,
    max_length: int = 128,
    class_count: int = 2,
    width: int = 128,
    depth: int = 2,
    heads: int = 2,
    dropout: float = 0.1,
    attention_width: int | None = None,
    feed_forward_width: int | None = None,
    normed_embeddings: bool = False,
) -> ModuleAndContract:
    """``depth`` pre-norm encoder layers of ``width`` units on token ids with learned positions, and their masked mean.

    Takes ``input_ids`` and ``attention_mask`` int64 ``[b, s]`` with ``s`` up to ``max_length`` tokens; gives ``logits``
    float32 ``[b, c]``. The tokenizer is not part of it. Source: Xiong et al. 2020, arXiv 2002.04745 (pre-norm).

    Layers may be slim: what they add to is ``width`` wide, and inside they are narrower, as when heads and units of the linear
    layers are pruned (McCarley et al. 2019, arXiv 1910.06360). So a student can take a teacher's token embeddings in their
    full width, which are looked up and cost no multiply-accumulates, and spend few on its layers.

    Args:
        vocabulary_size: how many token ids there are.
        max_length: tokens of the longest text.
        class_count: c.
        width: of the embeddings, and of what layers add to.
        depth: how many layers there are.
        heads: of each layer's attention, which share its width equally.
        dropout: a probability, in training alone.
        attention_width: of queries, keys and values; ``width`` by default.
        feed_forward_width: between the two linear layers; 4 times ``width`` by default.
        normed_embeddings: norm what the first layer takes, as a teacher does whose embeddings are small numbers.

    Raises:
        ConfigError: a size is not positive, or ``heads`` does not divide the width of the attention.
    """
    inner = attention_width if attention_width is not None else width
    between = feed_forward_width if feed_forward_width is not None else 4 * width
    sizes = {"vocabulary_size": vocabulary_size, "max_length": max_length, "width": width, "depth": depth, "heads": heads}
    sizes |= {"attention_width": inner, "feed_forward_width": between}
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{name} is {size}, expected a positive number")
    if inner % heads:
        raise ConfigError(f"width {inner} is no multiple of heads {heads}: each head takes an equal share of the width")
    layer = partial(EncoderLayer, width, heads, dropout, inner, between)
    module = TextClassifier(vocabulary_size, max_length, class_count, width, depth, layer, dropout, normed_embeddings)
    return module, text_classifier_contract(vocabulary_size, max_length, class_count)


@torch.no_grad()
def start_from_embeddings(student: nn.Module, table: torch.Tensor) -> None:
    """Start the student's token embeddings from a teacher's, ``table`` float32 ``[vocabulary, m]``, in the student's width.

    A table of the same width is taken as it is. A wider one is projected onto its first principal axes, which keep most of
    its variance that so few numbers can; a narrower one fills as many of the student's numbers as it has.

    Raises:
        ConfigError: the student has no token embeddings, or those of another vocabulary.
    """
    own = getattr(student, "token_embedding", None)
    if not isinstance(own, nn.Embedding) or own.num_embeddings != len(table):
        raise ConfigError(f"token embeddings of {len(table):,} tokens cannot start those of {type(student).__name__}")
    if table.shape[1] == own.embedding_dim:
        own.weight.copy_(table)
        return
    centred = table.float() - table.float().mean(0)
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, : own.embedding_dim]  # largest first
    own.weight[:, : axes.shape[1]] = centred @ axes


class TextClassifier(nn.Module):
    """Token ids to logits; what :func:`transformer` makes."""

    def __init__(
        self,
        vocabulary_size: int,
        max_length: int,
        class_count: int,
        width: int,
        depth: int,
        make_layer: Callable[[], EncoderLayer],
        dropout: float,
        normed_embeddings: bool = False,
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary_size, width)
        self.position_embedding = nn.Embedding(max_length, width)
        for table in (self.token_embedding, self.position_embedding):
            nn.init.normal_(table.weight, std=0.02)  # as in BERT: PyTorch's own std of 1 would drown what the layers add
        self.embedding_norm = nn.LayerNorm(width) if normed_embeddings else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(make_layer() for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, class_count)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return ``logits`` float32 ``[b, c]`` for ``input_ids`` and ``attention_mask`` int64 ``[b, s]``."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        embedded = self.token_embedding(input_ids) + self.position_embedding(positions)
        hidden = self.dropout(self.embedding_norm(embedded))  # [b x s x d]
        mask = attention_mask.to(hidden.dtype)  # [b x s]
        bias = ((1 - mask) * _MASKED_SCORE)[:, None, None, :]  # [b x 1 x 1 x s]
        for layer in self.layers:
            hidden = layer(hidden, bias)
        weights = mask[:, :, None]  # [b x s x 1]
        mean = (self.norm(hidden) * weights).sum(1) / weights.sum(1).clamp(min=1)  # [b x d]
        logits: torch.Tensor = self.head(self.dropout(mean))
        return logits


class EncoderLayer(nn.Module):
    """Self-attention, then two linear layers; each on a normed copy of what it adds to, and as wide inside as it is told."""

    def __init__(self, width: int, heads: int, dropout: float, attention_width: int, feed_forward_width: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, attention_width // heads
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, attention_width) for _ in range(3))
        self.attention_output = nn.Linear(attention_width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, feed_forward_width), nn.GELU(), nn.Linear(feed_forward_width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return ``[b, s, d]`` for ``hidden`` ``[b, s, d]`` and what is added to the scores, ``bias`` ``[b, 1, 1, s]``."""
        hidden = hidden + self.dropout(self._attend(self.attention_norm(hidden), bias))
        added: torch.Tensor = self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))
        return hidden + added

    def _attend(self, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        query, key, value = (self._by_head(project(hidden)) for project in (self.query, self.key, self.value))
        scores = query @ key.transpose(2, 3) / math.sqrt(self.head_width) + bias  # [b x n x s x s]
        mixed = self.dropout(scores.softmax(-1)) @ value  # [b x n x s x a/n]
        batch, sequence = hidden.shape[:2]
        output: torch.Tensor = self.attention_output(mixed.transpose(1, 2).reshape(batch, sequence, -1))
        return output

    def _by_head(self, projected: torch.Tensor) -> torch.Tensor:
        """Return ``[b, n, s, a/n]`` for ``[b, s, a]``."""
        batch, sequence = projected.shape[:2]
        return projected.reshape(batch, sequence, self.heads, self.head_width).transpose(1, 2)
